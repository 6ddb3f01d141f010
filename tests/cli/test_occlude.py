import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "sample_images"
SHIP = SAMPLES / "ship.png"
FAST = ["--mask", "8", "--stride", "8"]


def valid(folder: Path, command: str = "occlude") -> dict:
    """The folder's summary, once it has been held against its schema."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "docs" / "schemas" / f"{command}.schema.json").read_text())
    jsonschema.validate(summary, schema)
    for name in summary["files"]:
        assert (folder / name).is_file()
    return summary


def test_one_image_gets_its_pictures_scores_and_a_valid_summary(tmp_path):
    assert run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet"]) == 0
    summary = valid(tmp_path / "ship")
    names = {"input.png", "crop.png", "overlay.png", "heatmap.png", "probability.png", "label.png"}
    assert set(summary["files"]) == names | {"scores.npz", "agreement.png"}
    (entry,) = summary["results"]
    assert entry["prediction"]["class"] == "ship"
    assert entry["prediction"] == entry["top5"][0]
    (target,) = entry["targets"]
    assert target["positions"] == 16
    with np.load(tmp_path / "ship" / "scores.npz", allow_pickle=False) as scores:
        assert scores["logits"].shape == (16, 10)
        assert scores["logits"].dtype == np.float32
        assert scores["base_logits"].shape == (10,)
        assert scores["boxes"].tolist()[:2] == [[0, 0, 8, 8], [0, 8, 8, 16]]
        assert scores["maps"].shape == (1, 32, 32)


def test_the_numbers_follow_from_the_scores_on_disk(tmp_path):
    run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet", "--target", "ship"])
    (target,) = valid(tmp_path / "ship")["results"][0]["targets"]
    with np.load(tmp_path / "ship" / "scores.npz") as scores:
        logits, base, boxes = (scores[n].astype(float) for n in ("logits", "base_logits", "boxes"))

    def softmax(z):
        powers = np.exp(z - z.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def log_odds(p):
        return np.log(p / (1 - p))

    before, after = softmax(base)[8], softmax(logits)[:, 8]
    drops = log_odds(before) - log_odds(after)
    assert target["max_drop"] == pytest.approx(drops.max(), rel=1e-6)
    assert target["mean_drop"] == pytest.approx(drops.mean(), rel=1e-6)
    assert target["max_drop_box"] == boxes[drops.argmax()].tolist()
    assert target["reliance"] == pytest.approx((before - after.min()) / before, abs=1e-6)
    flips = logits.argmax(1) != base.argmax()
    assert target["flips"]["share"] == pytest.approx(flips.mean())
    assert sum(to["positions"] for to in target["flips"]["to"]) == flips.sum()


def test_a_mask_over_the_whole_image_gives_the_fill_images_scores(tmp_path):
    arguments = ["--mask", "32", "--stride", "32", "--fill", "#ff0000", "--quiet"]
    run(["occlude", str(SHIP), *arguments, "--out", str(tmp_path)])
    red = tmp_path / "red.png"
    Image.new("RGB", (40, 40), "#ff0000").save(red)
    run(["occlude", str(red), *arguments, "--out", str(tmp_path)])
    with (
        np.load(tmp_path / "ship" / "scores.npz") as ship,
        np.load(tmp_path / "red" / "scores.npz") as plain,
    ):
        np.testing.assert_allclose(ship["logits"][0], plain["base_logits"], atol=2e-5)


def test_targets_and_masks_make_a_panel_each(tmp_path):
    masks = ["--mask", "8", "--mask", "6x10", "--stride", "8"]
    targets = ["--target", "top2", "--target", "Ship", "--target", "3"]
    run(["occlude", str(SHIP), *masks, *targets, "--out", str(tmp_path), "--quiet"])
    found = valid(tmp_path / "ship")["results"][0]["targets"]
    asked = [(t["class"], tuple(t["mask"])) for t in found]
    assert len(asked) == len(set(asked))
    assert asked[:2] == [("ship", (8, 8)), ("ship", (6, 10))]
    assert {name for name, _ in asked} >= {"ship", "cat"}
    with np.load(tmp_path / "ship" / "scores.npz") as scores:
        assert scores["maps"].shape[0] == len(asked)
        assert (
            len(scores["boxes"]) == len(scores["logits"]) == sum(g.prod() for g in scores["grids"])
        )


def test_a_label_adds_its_class_and_says_whether_the_prediction_was_right(tmp_path):
    run(["occlude", str(SHIP), *FAST, "--label", "cat", "--out", str(tmp_path), "--quiet"])
    entry = valid(tmp_path / "ship")["results"][0]
    assert entry["correct"] is False
    assert entry["label"]["class"] == "cat"
    assert [t["class"] for t in entry["targets"]] == ["ship", "cat"]


def test_a_watched_layer_gets_a_picture_and_its_sums(tmp_path):
    arguments = [*FAST, "--layer", "features.block3.relu2", "--out", str(tmp_path), "--quiet"]
    assert run(["occlude", str(SHIP), *arguments]) == 0
    summary = valid(tmp_path / "ship")
    assert "activation.png" in summary["files"]
    watched = summary["results"][0]["activation"]
    assert watched["sum_min"] <= watched["sum_max"]


def test_many_images_share_a_summary_and_a_bad_one_does_not_stop_the_rest(tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    shutil.copy(SHIP, photos / "ship.png")
    shutil.copy(SHIP, photos / "a" / "ship.png")
    (photos / "text.jpg").write_text("this is no picture")
    (photos / "cut.png").write_bytes(SHIP.read_bytes()[:3000])
    assert run(["occlude", str(photos), *FAST, "--out", str(tmp_path / "out"), "--quiet"]) == 1
    summary = valid(tmp_path / "out")
    assert sorted(entry["folder"] for entry in summary["results"]) == ["ship", "ship-2"]
    assert sorted(Path(e["input"]).name for e in summary["errors"]) == ["cut.png", "text.jpg"]
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_folder_names_can_be_the_labels(tmp_path):
    (tmp_path / "ship").mkdir()
    shutil.copy(SHIP, tmp_path / "ship" / "one.png")
    arguments = [*FAST, "--label", "folder", "--out", str(tmp_path / "out"), "--quiet"]
    assert run(["occlude", str(tmp_path / "ship"), *arguments]) == 0
    assert valid(tmp_path / "out" / "one")["results"][0]["correct"] is True


def test_json_prints_the_summary_and_nothing_else(tmp_path, capsys):
    assert run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == valid(tmp_path / "ship")


@pytest.mark.pictures
def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        arguments = [*FAST, "--fill", "noise", "--seed", "7", "--quiet", "--no-scores"]
        run(["occlude", str(SHIP), *arguments, "--out", str(tmp_path / name)])
    first, second = (tmp_path / name / "ship" for name in ("one", "two"))
    summaries = [valid(folder) for folder in (first, second)]
    assert summaries[0]["results"] == summaries[1]["results"]
    assert "scores.npz" not in summaries[0]["files"]
    for name in summaries[0]["files"]:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.pictures
def test_render_draws_the_runs_own_pictures_again(tmp_path):
    run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet", "--target", "top2"])
    arguments = ["--target", "top2", "--out", str(tmp_path / "again"), "--quiet"]
    assert run(["render", str(tmp_path / "ship"), *arguments]) == 0
    rendered = valid(tmp_path / "again" / "ship", "render")
    for name in ("overlay.png", "heatmap.png", "probability.png", "label.png"):
        assert name in rendered["files"]
        again, original = (folder / name for folder in (tmp_path / "again/ship", tmp_path / "ship"))
        assert again.read_bytes() == original.read_bytes()


def test_render_draws_another_class_and_score(tmp_path):
    run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet"])
    arguments = ["--target", "cat", "--score", "loss", "--colormap", "jet", "--quiet"]
    assert run(["render", str(tmp_path / "ship"), *arguments, "--out", str(tmp_path / "r")]) == 0
    (entry,) = valid(tmp_path / "r" / "ship", "render")["results"]
    assert entry["score"] == "loss"
    assert entry["targets"][0]["class"] == "cat"


def test_render_refuses_a_folder_without_scores_and_a_damaged_file(tmp_path, capsys):
    assert run(["render", str(tmp_path), "--out", str(tmp_path / "r")]) == 1
    assert "no scores.npz in" in capsys.readouterr().err
    run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet"])
    scores = tmp_path / "ship" / "scores.npz"
    scores.write_bytes(scores.read_bytes()[:500])
    assert run(["render", str(tmp_path / "ship"), "--out", str(tmp_path / "r")]) == 1
    assert "it is damaged or not a file of cnnviz" in capsys.readouterr().err


def test_the_samples_pass_and_a_wrong_place_fails_the_smoke_check(tmp_path, capsys):
    expect = ["--expect", str(SAMPLES / "truth.json"), "--quiet"]
    command = ["occlude", str(SHIP), *expect, "--out", str(tmp_path)]
    assert run([*command, "--min-inside", "0.3"]) == 0
    (target,) = valid(tmp_path / "ship")["results"][0]["targets"]
    assert target["pointing_game_hit"] is True
    assert target["inside"] > target["object_share"]
    corner = ["--expect", "40,0,100,40", "--min-inside", "0.5", "--out", str(tmp_path / "x")]
    assert run(["occlude", str(SHIP), *corner, "--quiet"]) == 3
    assert "1 of 1 images have less than 0.5 of the positive evidence" in capsys.readouterr().err
    assert valid(tmp_path / "x" / "ship")["results"][0]["targets"][0]["inside"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--alpha", "1.5"], 2, "--alpha 1.5 is out of range; it takes a number from 0 to 1"),
        (["--mask", "40"], 2, "mask 40x40 is larger than the working image 32x32"),
        (["--stride", "0"], 2, "invalid stride '0'; --stride takes a side in pixels (15) or HxW"),
        (["--target", "horze"], 2, "horse"),
        (["--target", "10"], 2, "10"),
        (["--target", "top11"], 2, "'top11' asks for 11 of 10 classes"),
        (["--fill", "grey"], 2, "no fill 'grey'; --fill takes mean"),
        (
            ["--layer", "stem.convv"],
            2,
            "no layer 'stem.convv' in bundled; the nearest are stem.conv",
        ),
        (["--model", "resnet81"], 2, "resnet18"),
        (["--batch-size", "0"], 2, "invalid batch size '0'"),
        (["--device", "tpu"], 2, "no device 'tpu'"),
        (["--min-inside", "0.5"], 2, "--min-inside needs --expect"),
        (["--min-inside", "5", "--expect", "1,2,3,4"], 2, "--min-inside 5 is out of range"),
        (["--expect", "nowhere.json"], 2, "--expect 'nowhere.json' cannot be used"),
        (["--mean", "a,b,c"], 2, "'a,b,c' is not a list of numbers"),
        (["--score", "softmax"], 2, "'softmax' is not one of"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(tmp_path, capsys, arguments, status, message):
    assert run(["occlude", str(SHIP), *arguments, "--out", str(tmp_path / "out")]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_with_results_is_refused_before_anything_runs(tmp_path, capsys):
    command = ["occlude", str(SHIP), *FAST, "--out", str(tmp_path), "--quiet"]
    assert run(command) == 0
    before = (tmp_path / "ship" / "summary.json").read_bytes()
    assert run(command) == 2
    assert "is not empty; use --overwrite" in capsys.readouterr().err
    assert (tmp_path / "ship" / "summary.json").read_bytes() == before
    assert run([*command, "--overwrite"]) == 0


def test_a_photograph_of_one_pixel_works(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    arguments = [*FAST, "--out", str(tmp_path / "out"), "--quiet"]
    assert run(["occlude", str(tmp_path / "dot.png"), *arguments]) == 0


def test_file_names_cannot_drive_the_terminal_or_the_figures(tmp_path, capsys):
    name = tmp_path / "\x1b[31m$\\frac{a$.png"
    shutil.copy(SHIP, name)
    assert run(["occlude", str(name), *FAST, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "\x1b[31m" not in captured.out + captured.err


def test_labels_with_markup_are_drawn_and_printed_literally(tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    names = [
        "[red]a[/red]",
        "$\\frac{$",
        "\x1b[2J",
        *(f"c{i}" for i in range(3, 8)),
        "[bold]x",
        "t",
    ]
    labels.write_text("\n".join(names))
    arguments = ["--labels", str(labels), *FAST, "--out", str(tmp_path / "out")]
    assert run(["occlude", str(SHIP), *arguments]) == 0
    captured = capsys.readouterr()
    assert "[bold]x" in captured.out
    assert "\x1b[2J" not in captured.out


@pytest.mark.parametrize("option", ["--label", "--expect"])
def test_labels_that_are_no_classes_are_refused_before_the_first_image(tmp_path, capsys, option):
    for folder, name in (("ship", "one.png"), ("scenes", "two.png")):
        (tmp_path / folder).mkdir()
        shutil.copy(SHIP, tmp_path / folder / name)
    boxes = {
        n: {"label": c, "boxes": [[0, 0, 9, 9]]}
        for n, c in (("one.png", "ship"), ("two.png", "scenes"))
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    value = "folder" if option == "--label" else str(tmp_path / "boxes.json")
    images = [str(tmp_path / "ship"), str(tmp_path / "scenes")]
    assert run(["occlude", *images, *FAST, option, value, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "1 of the 2 labels are not classes of bundled: no class 'scenes'" in printed
    assert "occluding" not in printed
    assert not (tmp_path / "out").exists()


def test_expected_objects_have_columns_and_one_box_for_several_images_is_noted(tmp_path, capsys):
    shutil.copy(SHIP, tmp_path / "a.png")
    shutil.copy(SHIP, tmp_path / "b.png")
    line = [*FAST, "--expect", "0,0,9999,9999"]
    assert run(["occlude", str(tmp_path), *line, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "--expect 0,0,9999,9999: taken for each of the 2 images" in err
    assert all(word in out for word in ("hit", "inside", "yes", "100.0 %"))
    assert run(["occlude", str(tmp_path / "a.png"), *line, "--out", str(tmp_path / "one")]) == 0
    assert "taken for each" not in capsys.readouterr().err


def test_one_image_has_its_five_most_probable_classes_in_a_table(tmp_path, capsys):
    assert run(["occlude", str(SHIP), *FAST, "--out", str(tmp_path)]) == 0
    summary = valid(tmp_path / "ship")
    title, rows = summary["findings"][1]["title"], summary["findings"][1]["rows"]
    assert title == "Top 5"
    assert title in capsys.readouterr().out
    assert [row[0] for row in rows] == [top["class"] for top in summary["results"][0]["top5"]]
