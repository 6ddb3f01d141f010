"""The sample images and photos: labels and outlines fit, and the networks predict them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cnnviz.core.data.images import read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.models.load import Model, load_model
from cnnviz.occlusion import occlude
from cnnviz.occlusion.maps import judge

FOLDER = Path(__file__).parent.parent.parent / "sample_images"
TRUTH = json.loads((FOLDER / "truth.json").read_text())
PHOTOS = FOLDER.parent / "sample_photos"
PHOTO_TRUTH = json.loads((PHOTOS / "truth.json").read_text())


def pixels(path: Path) -> np.ndarray:
    """(height, width, 3) levels."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def on_object(name: str) -> np.ndarray:
    """(height, width) bool: the picture's pixels inside the outlines of truth.json."""
    height, width, _ = pixels(FOLDER / name).shape
    mask = Image.new("1", (width, height))
    for outline in TRUTH[name]["polygons"]:
        ImageDraw.Draw(mask).polygon([(x - 0.5, y - 0.5) for x, y in outline], fill=1)
    return np.array(mask)


def test_every_picture_has_its_truth_and_the_other_way_round() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(TRUTH)
    assert len(TRUTH) >= 6


@pytest.mark.parametrize("name", TRUTH)
def test_picture_is_large_enough_and_its_file_small(name: str) -> None:
    assert min(pixels(FOLDER / name).shape[:2]) >= 256
    assert (FOLDER / name).stat().st_size < 150_000


@pytest.mark.parametrize("name", TRUTH)
def test_outlines_and_box_bound_the_same_object(name: str) -> None:
    mask = on_object(name)
    ((x0, y0, x1, y1),) = TRUTH[name]["boxes"]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, [x0, y0, x1, y1], atol=2)
    assert 0.03 < mask.mean() < 0.3, "an object should leave most of the picture to its background"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


@pytest.mark.parametrize("name", TRUTH)
def test_object_lies_in_the_part_of_the_picture_that_the_network_sees(
    name: str, model: Model
) -> None:
    top, left, bottom, right = read_image(FOLDER / name, model.preprocess).box_original
    ((x0, y0, x1, y1),) = TRUTH[name]["boxes"]
    assert left <= x0 < x1 <= right
    assert top <= y0 < y1 <= bottom


@pytest.mark.parametrize("name", TRUTH)
def test_bundled_model_reads_the_picture_rightly_and_surely(name: str, model: Model) -> None:
    working = read_image(FOLDER / name, model.preprocess)
    with torch.inference_mode():
        logits = model.logits(model.preprocess.normalise(working.pixels)[None])
    probabilities = logits.softmax(dim=1)[0]
    assert model.labels[int(probabilities.argmax())] == TRUTH[name]["label"]
    assert float(probabilities.max()) >= 0.7


@pytest.mark.parametrize("name", TRUTH)
def test_covering_the_object_hurts_more_than_covering_the_background(
    name: str, model: Model
) -> None:
    working = read_image(FOLDER / name, model.preprocess)
    expectation = read_outlines(str(FOLDER / "truth.json")).for_image(name)
    verdict = judge(occlude(model, working).panels[0].map_HW, outline_mask(expectation, working))
    assert verdict.pointing_game_hit
    assert verdict.inside is not None
    assert verdict.inside > 2 * verdict.object_share


def test_every_photo_has_its_truth_and_label() -> None:
    with (PHOTOS / "labels.csv").open(newline="") as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert labels == {name: entry["label"] for name, entry in PHOTO_TRUTH.items()}
    assert sorted(path.name for path in PHOTOS.glob("*.jpg")) == sorted(PHOTO_TRUTH)
    assert len(PHOTO_TRUTH) >= 4


@pytest.mark.parametrize("name", PHOTO_TRUTH)
def test_photo_is_large_enough_and_its_file_small(name: str) -> None:
    height, width, _ = pixels(PHOTOS / name).shape
    assert 512 <= min(height, width) <= max(height, width) <= 768
    assert (PHOTOS / name).stat().st_size <= 200_000


@pytest.mark.parametrize("name", PHOTO_TRUTH)
def test_outlines_of_a_photo_lie_in_it_and_have_the_listed_boxes(name: str) -> None:
    height, width, _ = pixels(PHOTOS / name).shape
    outlines = read_outlines(str(PHOTOS / "truth.json")).for_image(name).polygons
    bounds = [np.r_[np.min(outline, axis=0), np.max(outline, axis=0)] for outline in outlines]
    np.testing.assert_array_equal(bounds, PHOTO_TRUTH[name]["boxes"])
    assert np.min(bounds) >= 0
    assert np.max(bounds, axis=0)[2] <= width
    assert np.max(bounds, axis=0)[3] <= height


@pytest.mark.slow
def test_squeezenet_predicts_every_photo_and_its_map_peaks_on_the_object(assets: Path) -> None:
    network = load_model("squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth")
    outlines = read_outlines(str(PHOTOS / "truth.json"))
    for name, entry in PHOTO_TRUTH.items():
        working = read_image(PHOTOS / name, network.preprocess)
        panel = occlude(network, working).panels[0]
        assert panel.class_ == entry["label"], name
        assert panel.reading >= 0.6, name
        verdict = judge(panel.map_HW, outline_mask(outlines.for_image(name), working))
        assert verdict.pointing_game_hit, name
        assert verdict.inside is not None
        assert verdict.inside > verdict.object_share, name
