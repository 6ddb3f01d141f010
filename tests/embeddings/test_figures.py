"""Pictures: colours that stay apart, images at their places, everything said that must be."""

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from cnnviz.core.data.datasets import open_data
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.summary import DataRecord
from cnnviz.embeddings import figures, sheets
from cnnviz.embeddings.features import Features
from cnnviz.embeddings.figures import quality_figure, quality_lines
from cnnviz.embeddings.neighbors import nearest
from cnnviz.embeddings.options import Method
from cnnviz.embeddings.pca import pca
from cnnviz.embeddings.quality import label_quality, map_quality
from cnnviz.embeddings.results import EmbeddingResult, Map, agreement
from cnnviz.embeddings.sheets import thumbnails

# Machado, Oliveira and Fernandes 2009, full severity; linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
WHITE = np.array([0.95047, 1, 1.08883])


def lab(colour, deficiency):
    srgb = np.array(to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(deficiency) @ linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_ten_colours_stay_apart_for_everybody(deficiency):
    seen = [lab(colour, DEFICIENCIES[deficiency]) for colour in figures.PALETTE]
    differences = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(differences) > 18, "a just noticeable difference is about 2.3"


def test_sixty_classes_have_sixty_looks():
    looks = {(figures.color_of(k), figures.marker_of(k)) for k in range(60)}
    assert len(looks) == figures.DISTINCT == 60


@pytest.fixture
def result(tmp_path):
    """Twenty plain images, a class for each half; the network is wrong on the first."""
    for number in range(20):
        place = tmp_path / "ab"[number // 10]
        place.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (number * 10, 50, 100)).save(place / f"{number:02}.png")
    data = open_data([str(tmp_path)])
    values = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    values[10:] += 4
    labels = np.array([0] * 10 + [1] * 10)
    predicted = labels.copy()
    predicted[0] = 1
    components = pca(values, 5)
    near = nearest(values, 19)
    places = np.ascontiguousarray(components.scores_Nc[:, :2])
    judged = map_quality(values, near.indices, places, labels)
    return EmbeddingResult(
        images=20,
        data=DataRecord.of(data, 20),
        images_in_data=20,
        labelled=20,
        classes=2,
        layer="layer",
        dimensions=6,
        features_reused=False,
        components=5,
        explained_variance=1.0,
        wrongly_predicted=1,
        labels_not_matched=None,
        judged=20,
        neighbor_recall=1.0,
        features=label_quality(values, near.indices, labels),
        pca=judged,
        maps=(Map(method=Method.PCA, quality=judged, places_N2=places),),
        neighbors=agreement(near.indices[:, :5], labels),
        seconds={},
        image_data=data,
        preprocess=Preprocess(8, (8, 8)),
        vectors=Features(values, np.arange(20), predicted, "layer", (), "key"),
        labels_N=labels,
        label_names=tuple("ab"[k] for k in labels),
        correct_N=predicted == labels,
        near=near,
    )


def moved(result, places):
    """The same with other places on its map."""
    return dataclasses.replace(
        result, maps=(dataclasses.replace(result.maps[0], places_N2=places),)
    )


def texts(drawn):
    figure = drawn.margin if isinstance(drawn, sheets.Sheet) else drawn
    found = [text.get_text() for text in figure.findobj(Text)]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return found


def test_thumbnails_are_the_images_in_the_order_asked_for(result):
    pictures = thumbnails(result.image_data, [3, 17, 0], 8, result.preprocess)
    assert pictures.shape == (3, 8, 8, 3)
    assert pictures[:, 4, 4].tolist() == [[30, 50, 100], [170, 50, 100], [0, 50, 100]]


def test_an_image_that_went_missing_is_grey(result, tmp_path):
    (tmp_path / "a" / "03.png").unlink()
    pictures = thumbnails(result.image_data, [2, 3], 8, result.preprocess)
    assert pictures[0, 4, 4].tolist() == [20, 50, 100]
    assert (pictures[1] == 200).all()


def test_frames_have_the_color_of_the_class_and_wrong_ones_a_black_corner(result):
    framed = sheets.framed_thumbnails(result, np.arange(20))
    side = framed.shape[1]
    for k, image in enumerate(framed):
        colour = sheets.rgb(figures.color_of(k // 10))
        assert (image[-1] == colour).all()
        assert (image[side // 2, -1] == colour).all()
        assert image[side // 2, side // 2].tolist() == [k * 10, 50, 100]
        assert (image[0, 0] == 0).all() == (k == 0)


def canvas_of(sheet):
    return sheet.canvas_HW3


def test_a_sheet_is_its_canvas_and_its_margin_side_by_side(result):
    framed = sheets.framed_thumbnails(result, np.arange(20))
    sheet = sheets.images(result, np.arange(20), framed)
    canvas, drawn = sheet.canvas_HW3, sheet.pixels()
    height, width = canvas.shape[:2]
    assert drawn.shape == (height, width + round(0.37 * height), 3)
    np.testing.assert_array_equal(drawn[:, :width], canvas)
    assert (drawn[:, width:] < 100).any(), "the margin is empty"


@pytest.mark.parametrize("height", [1003, 1400, 1606])
def test_a_margin_is_as_high_as_its_canvas(result, height):
    sheet = sheets._sheet(np.zeros((height, 30, 3), np.uint8), result, result.maps[0], 20)
    assert sheet.pixels().shape == (height, 30 + round(0.37 * height), 3)


def test_each_image_stands_at_its_place(result):
    framed = sheets.framed_thumbnails(result, np.arange(20))
    places = result.maps[0].places_N2
    canvas = canvas_of(sheets.images(result, np.arange(20), framed))
    side = framed.shape[1]
    for k, column in ((places[:, 0].argmin(), 0), (places[:, 0].argmax(), -1)):
        rows = np.flatnonzero((canvas[:, column] != 255).any(axis=1))
        assert len(rows) == side
        left = 0 if column == 0 else canvas.shape[1] - side
        np.testing.assert_array_equal(
            canvas[rows[0] : rows[0] + side, left : left + side], framed[k]
        )
    filled_rows = np.flatnonzero((canvas != 255).any(axis=(1, 2)))
    top, bottom = filled_rows[[0, -1]]
    columns = np.flatnonzero((canvas[top] != 255).any(axis=1))
    left, highest = columns[0], places[:, 1].argmax()
    np.testing.assert_array_equal(canvas[top : top + side, left : left + side], framed[highest])
    (wide, high) = np.ptp(places, axis=0)
    assert (canvas.shape[1] - side) / (bottom + 1 - top - side) == pytest.approx(wide / high, 0.01)


def test_images_fit_the_canvas_whatever_the_shape_of_the_map(result, monkeypatch):
    monkeypatch.setattr(sheets, "SMALLEST_CANVAS", 60)
    pictures = np.full((20, 4, 4, 3), 7, np.uint8)
    for seed in range(30):
        places = np.random.default_rng(seed).random((20, 2)).astype(np.float32)
        drawn = moved(result, places)
        canvas = canvas_of(sheets.images(drawn, np.arange(20), pictures))
        filled = (canvas == 7).all(axis=2)
        assert filled.any(axis=0)[[0, -1]].all() or filled.any(axis=1)[[0, -1]].all()


def test_the_grid_shows_every_image_whole(result):
    pictures = np.stack([np.full((8, 8, 3), k, np.uint8) for k in range(20)])
    canvas = canvas_of(sheets.grid(result, np.arange(20), pictures))
    values, counts = np.unique(canvas[canvas[..., 0] != 255][:, 0], return_counts=True)
    assert values.tolist() == list(range(20))
    assert len(set(counts)) == 1


@pytest.mark.parametrize("draw", ["scatter", "images", "grid"])
def test_every_picture_says_how_far_to_trust_it(result, draw):
    if draw == "scatter":
        figure = figures.scatter(result)
    else:
        framed = sheets.framed_thumbnails(result, np.arange(20))
        figure = getattr(sheets, draw)(result, np.arange(20), framed)
    shown = texts(figure)
    told = " ".join("\n".join(shown).split())
    assert all(line in told for line in quality_lines(result, result.maps[0]))
    assert {"a", "b", "wrongly predicted (1)"} <= set(shown)


def test_a_sample_is_said_on_the_picture(result):
    chosen = np.arange(0, 20, 2)
    framed = sheets.framed_thumbnails(result, chosen)
    for figure in (
        sheets.images(result, chosen, framed), sheets.grid(result, chosen, framed)
    ):  # fmt: skip
        assert "a random sample of 10\nof the 20 images" in texts(figure)


def test_a_large_set_is_sampled_with_the_seed():
    assert sheets.chosen_images(10_000, 0).tolist() == list(range(10_000))
    sample = sheets.chosen_images(10_001, 0)
    assert len(np.unique(sample)) == 10_000
    assert sample.tolist() == sheets.chosen_images(10_001, 0).tolist()
    assert sample.tolist() != sheets.chosen_images(10_001, 1).tolist()


def test_points_have_the_color_of_their_class(result):
    axes = figures.scatter(result).axes[0]
    first, second, rings = axes.collections
    for points, k in ((first, 0), (second, 1)):
        assert len(points.get_offsets()) == 10
        assert points.get_facecolor()[0, :3] == pytest.approx(to_rgb(figures.color_of(k)))
    np.testing.assert_allclose(rings.get_offsets(), result.maps[0].places_N2[:1])


def unlabelled(result, predicted):
    return dataclasses.replace(
        result,
        image_data=dataclasses.replace(result.image_data, classes=None),
        labels_N=np.full(20, -1),
        label_names=("",) * 20,
        correct_N=None,
        predicted_names=predicted,
    )


def test_without_labels_points_have_the_colour_of_their_prediction(result):
    figure = figures.scatter(unlabelled(result, ("cat",) * 12 + ("dog",) * 8))
    cats, dogs = figure.axes[0].collections
    assert [len(points.get_offsets()) for points in (cats, dogs)] == [12, 8]
    assert cats.get_facecolor()[0, :3] == pytest.approx(to_rgb(figures.color_of(0)))
    assert {"predicted cat", "predicted dog"} <= set(texts(figure))


def test_looks_are_those_of_the_points_and_numbers_in_names_are_ordered_by_value(result):
    names = ("10", "9") * 10
    labelled = dataclasses.replace(result, label_names=names, predicted_names=("9", "cat") * 10)
    looks = figures.looks_of(labelled)
    assert list(looks) == ["9", "10", "cat"]
    assert looks["cat"] == (figures.color_of(2), figures.marker_of(2))
    groups = figures.groups_of(labelled)
    assert [groups.names[k] for k in groups.group_N] == list(names)
    assert list(figures.looks_of(unlabelled(result, ("cat",) * 12 + ("dog",) * 8))) == [
        "cat",
        "dog",
    ]


def test_rare_predictions_are_one_grey_group(result):
    names = tuple(f"class {k}" for k in range(20))
    figure = figures.scatter(unlabelled(result, names))
    assert len(figure.axes[0].collections) == 11
    assert "other predictions" in texts(figure)


def test_classes_are_named_at_their_images(result):
    axes = figures.scatter(result).axes[0]
    assert {text.get_text() for text in axes.texts} == {"a", "b"}


def test_hundreds_of_classes_are_named_on_the_map(result):
    names = tuple(f"class {k}" for k in range(100))
    crowded = dataclasses.replace(
        result,
        image_data=dataclasses.replace(result.image_data, classes=names),
        labels_N=np.arange(100),
        label_names=names,
        correct_N=None,
    )
    crowded = moved(crowded, np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32))
    figure = figures.scatter(crowded)
    assert {text.get_text() for text in figure.axes[0].texts} == set(names)
    assert "100 classes, named there" in texts(figure)


def test_quality_bars_have_the_heights_of_the_numbers(result):
    """Measures that 20 images do not have are left out, and the others stay the right ones."""
    axes = quality_figure(result).axes[0]
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    asked = ("10 nearest kept", "distances, rank correlation", "class by 10 nearest", "silhouette")
    assert tuple(names) == asked
    heights = [round(bar.get_height(), 6) for bar in axes.patches if bar.get_height()]
    features, map_ = result.features, result.pca
    shown = [features.knn_accuracy, features.silhouette]
    shown += [map_.preservation_10, map_.spearman, map_.knn_accuracy, map_.silhouette]
    assert heights == [round(value, 6) for value in shown]
