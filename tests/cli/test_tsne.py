"""`cnnviz tsne` from the outside: files, numbers, exit statuses, messages."""

import csv
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from rendering import rendered

from cnnviz.cli.main import run
from cnnviz.core.errors import CnnvizError
from cnnviz.core.output.record import to_json
from cnnviz.embeddings import load, neighbors, quality

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "tsne.schema.json"
NET = """
import torch
from torch import nn

class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(48, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()
            self.head.weight[1, :16] = 1.0    # class 1 is whatever has more red than nothing

    def forward(self, x):
        return self.head(self.pool(x).flatten(1))

def make():
    return Means()

def dead():
    net = Means()
    net.pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Threshold(1e9, 0.0))
    return net
"""
LABELS = "dark\nred\n"


def write_photos(folder):
    """Forty noisy images: dark ones, red ones, and one red one that is called dark."""
    rng = np.random.default_rng(0)
    for number in range(40):
        red = number % 2 == 1
        place = folder / ("red" if red and number != 1 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (16, 16, 3))
        pixels[..., 0] += 150 * red
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    return folder


def write_net(folder):
    """The options that name the network, and all others that the tests share."""
    (folder / "net.py").write_text(NET)
    (folder / "labels.txt").write_text(LABELS)
    return [
        "--model", f"{folder / 'net.py'}:make", "--labels", str(folder / "labels.txt"),
        "--size", "16", "--device", "cpu", "--out", str(folder / "out"), "--perplexity", "5",
        "--quiet",
    ]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def options(tmp_path):
    return write_net(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's folder, to be looked at and left as it is."""
    root = tmp_path_factory.mktemp("finished")
    with rendered():
        assert run(["tsne", str(write_photos(root / "photos")), *write_net(root)]) == 0
    return root / "out"


@pytest.fixture
def out(photos, options, tmp_path):
    """A finished run without pictures, to be run again."""
    assert run(["tsne", str(photos), *options, "--no-pictures"]) == 0
    return tmp_path / "out"


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summary_in(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_a_run_writes_what_its_summary_says(finished):
    summary = summary_in(finished)
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    written = sorted(str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file())
    assert written == sorted([*summary["files"], "summary.json"])
    pictures = {f"{name}.png" for name in ("scatter", "images", "grid", "quality")}
    tables = {
        f"{name}.{kind}" for name in ("embedding", "neighbors") for kind in ("csv", "parquet")
    }
    assert pictures | tables | {"features.npz"} == set(summary["files"])
    results = summary["results"]
    assert results["images"] == results["labelled"] == 40
    assert results["dimensions"] == 48
    assert results["wrongly_predicted"] == 1
    assert results["maps"][0]["backend"] == "opentsne"
    assert results["features"]["knn_accuracy"] == pytest.approx(39 / 40)


def test_the_embedding_names_image_label_and_prediction(finished):
    rows = table(finished / "embedding.csv")
    assert len(rows) == 40
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    assert [Path(row["image"]).name for row in wrong] == ["01.png"]
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    red = np.array([row["predicted"] == "red" for row in rows])
    centres = places[red].mean(0), places[~red].mean(0)
    spread = max(places[red].std(), places[~red].std())
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_the_mislabelled_image_comes_first_among_neighbors(finished):
    rows = table(finished / "neighbors.csv")
    assert len(rows) == 40
    assert Path(rows[0]["image"]).name == "01.png"
    assert rows[0]["shared"] == "0"
    assert {rows[0][f"label{i}"] for i in range(1, 6)} == {"red"}
    assert [int(row["shared"]) for row in rows] == sorted(int(row["shared"]) for row in rows)
    first = [float(rows[0][f"distance{i}"]) for i in range(1, 6)]
    assert first == sorted(first)


def test_features_can_be_read_by_anybody(finished):
    with np.load(finished / "features.npz") as stored:
        assert stored["features"].shape == (40, 48)
        assert stored["features"].dtype == np.float32
        assert stored["classes"][stored["labels"]].tolist() == ["dark"] * 21 + ["red"] * 19
        assert len(stored["images"]) == 40


@pytest.mark.pictures
def test_one_seed_gives_one_result(finished, photos, options, tmp_path):
    """A second run, from and to other folders."""
    assert run(["tsne", str(photos), *options]) == 0
    for name in ("scatter.png", "images.png", "grid.png", "quality.png"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    places = [
        [(Path(row["image"]).name, row["x"], row["y"]) for row in table(folder / "embedding.csv")]
        for folder in (finished, tmp_path / "out")
    ]
    assert places[0] == places[1]
    results = [summary_in(folder)["results"] for folder in (finished, tmp_path / "out")]
    elsewhere = {"seconds": 0, "data": 0}  # the day, and where the pictures lie
    assert results[0] | elsewhere == results[1] | elsewhere


def test_features_are_used_again_while_nothing_changed(out, photos, options, capsys):
    loud = [option for option in options if option != "--quiet"]
    assert (
        run(["tsne", str(photos), *loud, "--overwrite", "--perplexity", "8", "--no-pictures"]) == 0
    )
    told = capsys.readouterr().err
    assert "the features of the earlier run are used again" in told
    assert "perplexity 8: KL " in told
    assert summary_in(out)["results"]["features_reused"] is True
    Image.new("RGB", (16, 16), "red").save(photos / "red" / "01b.png")
    assert run(["tsne", str(photos), *options, "--overwrite", "--no-pictures"]) == 0
    assert summary_in(out)["results"]["features_reused"] is False


def test_several_perplexities_have_a_folder_each(photos, options, tmp_path):
    assert run(["tsne", str(photos), *options, "--perplexity", "10"]) == 0
    out = tmp_path / "out"
    summary = summary_in(out)
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    assert [m["folder"] for m in summary["results"]["maps"]] == ["perplexity-5", "perplexity-10"]
    for folder in ("perplexity-5", "perplexity-10"):
        assert (out / folder / "scatter.png").is_file()
        assert len(table(out / folder / "embedding.csv")) == 40
    assert (out / "perplexities.png").is_file()
    assert not (out / "scatter.png").exists()


def test_pca_alone_needs_no_perplexity(photos, options, tmp_path):
    assert run(["tsne", str(photos), *options, "--method", "pca", "--limit", "4"]) == 0
    summary = summary_in(tmp_path / "out")
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    results = summary["results"]
    assert results["images"] == 4
    assert results["images_in_data"] == 40
    (found,) = results["maps"]
    assert found["method"] == "pca"
    assert found["quality"] == results["pca"]


def test_no_pictures_draws_none(out):
    assert not [name for name in summary_in(out)["files"] if name.endswith(".png")]


@pytest.mark.parametrize("perplexities", [["5"], ["5", "10"]])
def test_a_run_can_be_loaded(photos, options, tmp_path, perplexities):
    more = [word for value in perplexities[1:] for word in ("--perplexity", value)]
    assert run(["tsne", str(photos), *options, *more, "--no-pictures"]) == 0
    loaded = load(tmp_path / "out")
    summary = summary_in(tmp_path / "out")["results"]
    assert to_json(loaded) == summary
    rows = table(tmp_path / "out" / summary["maps"][-1]["folder"] / "embedding.csv")
    assert loaded.image_names == tuple(row["image"] for row in rows)
    assert loaded.predicted_names == tuple(row["predicted"] for row in rows)
    assert [place.x for place in loaded.on(loaded.maps[-1])] == pytest.approx(
        [float(row["x"]) for row in rows]
    )
    nearest = {row["image"]: row["neighbor1"] for row in table(tmp_path / "out" / "neighbors.csv")}
    first = [loaded.image_names[place] for place in loaded.nearest_Nk[:, 0]]
    assert first == [nearest[image] for image in loaded.image_names]


def test_a_damaged_run_is_refused(out):
    rows = (out / "neighbors.csv").read_text().replace("01.png", "elsewhere.png")
    (out / "neighbors.csv").write_text(rows)
    with pytest.raises(CnnvizError, match=r"neighbors.csv is not of the images in embedding.csv"):
        load(out)
    (out / "embedding.csv").write_text("image,label,predicted,x\n")
    with pytest.raises(CnnvizError, match=r"y: Field required|at least|images"):
        load(out)


def test_without_labels_label_measures_are_left_out(photos, options, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        path.rename(flat / path.name)
    assert run(["tsne", str(flat), *options]) == 0
    summary = summary_in(tmp_path / "out")
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    results = summary["results"]
    assert results["labelled"] == 0
    assert results["features"] == {"knn_accuracy": None, "silhouette": None}
    assert results["neighbors"] is results["wrongly_predicted"] is None
    assert {row["shared"] for row in table(tmp_path / "out" / "neighbors.csv")} == {""}


def test_classes_of_their_own_are_shown_but_not_judged(photos, options, tmp_path, capsys):
    (photos / "red").rename(photos / "crimson")
    loud = [option for option in options if option != "--quiet"]
    assert run(["tsne", str(photos), *loud, "--no-pictures"]) == 0
    assert "predictions are not judged" in capsys.readouterr().err
    results = summary_in(tmp_path / "out")["results"]
    assert results["wrongly_predicted"] is None
    assert "crimson" in results["labels_not_matched"]
    assert results["features"]["knn_accuracy"] > 0.9


def test_one_class_works(photos, options, tmp_path):
    assert run(["tsne", str(photos / "red"), *options, "--no-pictures"]) == 0
    results = summary_in(tmp_path / "out")["results"]
    assert results["features"]["silhouette"] is None


def test_a_bad_image_is_reported_and_the_rest_is_done(photos, options, tmp_path, capsys):
    (photos / "red" / "05.png").write_bytes(b"no image")
    assert run(["tsne", str(photos), *options, "--no-pictures"]) == 1
    assert "05.png' is not an image that can be read" in capsys.readouterr().err
    summary = summary_in(tmp_path / "out")
    assert summary["results"]["images"] == 39
    assert [Path(e["input"]).name for e in summary["errors"]] == ["05.png"]


def test_too_few_images_say_the_largest_perplexity(photos, options, capsys):
    assert run(["tsne", str(photos), *options, "--perplexity", "31"]) == 2
    message = capsys.readouterr().err
    assert "--perplexity 31 needs over 93 images, and there are 40" in message
    assert "the largest that works is 13" in message


def test_identical_images_are_refused(options, tmp_path, capsys):
    for number in range(20):
        (tmp_path / "same").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), "red").save(tmp_path / "same" / f"{number}.png")
    assert run(["tsne", str(tmp_path / "same"), *options]) == 1
    assert "all 20 points are the same, so there is nothing to lay out" in capsys.readouterr().err


def test_a_dead_layer_is_refused_by_name(photos, options, capsys):
    options[1] = options[1].replace(":make", ":dead")
    assert run(["tsne", str(photos), *options, "--layer", "pool"]) == 1
    assert "layer 'pool': all 40 points are the same" in capsys.readouterr().err


def test_an_unknown_layer_is_wrong_usage(photos, options, capsys):
    assert run(["tsne", str(photos), *options, "--layer", "heed"]) == 2
    assert "no layer 'heed'" in capsys.readouterr().err


def test_results_are_not_replaced_unasked(out, photos, options, capsys):
    before = (out / "embedding.csv").read_bytes()
    assert run(["tsne", str(photos), *options]) == 2
    assert "is not empty; use --overwrite" in capsys.readouterr().err
    assert (out / "embedding.csv").read_bytes() == before


def test_of_very_many_images_neighbours_are_approximate_and_a_part_is_judged(
    photos, options, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(neighbors, "LARGEST_EXACT", 20)
    monkeypatch.setattr(quality, "LARGEST_JUDGED", 20)
    monkeypatch.setattr(quality, "JUDGED", 15)
    out = tmp_path / "many"
    loud = [option for option in options if option not in ("--quiet", "-q")]
    assert run(["tsne", str(photos), *loud, "--no-pictures", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the neighbors are approximate (Annoy)" in said
    assert "judged by a sample of 15 images" in said
    results = json.loads((out / "summary.json").read_text())["results"]
    assert results["judged"] == 15
    assert 0.9 < results["neighbor_recall"] <= 1
