"""`cnnviz ablate` from the outside: files, numbers, exit statuses, messages."""

import csv
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.output.record import to_json
from cnnviz.filters.ablation.results import load

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "ablate.schema.json"
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7),
    )
"""
LABELS = ["$ants$", "bees", "cows", "dogs", "elks", "foxes", "gnus"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve noisy images of three of the seven classes."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for number in range(12):
        place = root / LABELS[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number:02}.png")
    return root


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    model = ["--model", f"{tmp_path / 'net.py'}:make", "--labels", str(tmp_path / "labels.txt")]
    return [*model, "--size", "16", "--device", "cpu", "--out", str(tmp_path / "out")]


def summary_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(content, json.loads(SCHEMA.read_text()))
    return content


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_writes_what_its_summary_says(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(photos), *options, "--filters", "0:1,3-5", "--filters", "4:2"]
    assert run([*command, "--sweep", "3", "--cumulative", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    out = tmp_path / "out"
    summary = summary_in(out)
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert written == sorted([*summary["files"], "summary.json"])
    pictures = {"classes.png", "confusions.png", "sweep.png", "cumulative.png"}
    tables = {f"{n}.{k}" for n in ("flips", "sweep", "cumulative") for k in ("csv", "parquet")}
    tables |= {"predictions.npz", "tally.npz"}
    assert set(summary["files"]) - {"flips.png"} == pictures | tables
    results = summary["results"]
    assert results["engine"] == {"name": "replay", "reason": None}
    assert results["filters"] == [
        {"layer": "0", "channels": [1, 3, 4, 5], "of": 8},
        {"layer": "4", "channels": [2], "of": 6},
    ]
    assert results["data"]["images"] == 12
    assert results["classes_without_images"] == LABELS[3:]
    assert len(rows_of(out / "sweep.csv")) == 6 == len(results["sweep"]["top"])
    assert len(results["cumulative"]) == 5
    loaded = load(out)
    assert to_json(loaded) == results
    assert [effect.filter for effect in loaded.effects] == list(range(6))
    assert len(loaded.flipped()) == results["flips"]["count"]


def test_tables_summary_and_arrays_tell_the_same_story(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    assert run(["ablate", str(photos), *options, "--filters", "1:all-but:0", "--quiet"]) == 0
    out = tmp_path / "out"
    results = summary_in(out)["results"]
    with np.load(out / "predictions.npz") as arrays:
        labels, before, after = (arrays[name] for name in ("labels", "before", "after"))
        images = arrays["images"]
    assert results["accuracy"]["before"]["correct"] == int((labels == before).sum())
    assert results["accuracy"]["after"]["correct"] == int((labels == after).sum())
    flips = rows_of(out / "flips.csv")
    assert len(flips) == results["flips"]["count"] == int((before != after).sum()) > 0
    files = sorted(str(path) for path in photos.rglob("*.png"))
    expected = [
        (files[images[row]], LABELS[labels[row]], LABELS[before[row]], LABELS[after[row]])
        for row in np.flatnonzero(before != after)
    ]
    assert [(r["image"], r["label"], r["before"], r["after"]) for r in flips] == expected
    assert (out / "flips.png").exists()


def test_json_puts_the_summary_and_nothing_else_on_stdout(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ablate", str(photos), *options, "--sweep", "all", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == summary_in(tmp_path / "out")
    assert shown["results"]["accuracy"]["after"] is None
    assert shown["results"]["flips"] is None
    layers = shown["results"]["sweep"]["layers"]
    assert layers == [{"layer": "0", "filters": 8}, {"layer": "3", "filters": 6}]
    tables = ["predictions.npz", "sweep.csv", "sweep.parquet", "sweep.png", "tally.npz"]
    assert sorted(shown["files"]) == tables


def test_two_runs_are_byte_for_byte_the_same(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    command = ["ablate", str(photos), *options[:-1]]
    more = ["--filters", "random:4", "--sweep", "3", "--cumulative", "--mode", "mean", "--quiet"]
    for name in ("one", "two"):
        assert run([*command, str(tmp_path / name), *more]) == 0
    one, two = (summary_in(tmp_path / name) for name in ("one", "two"))
    assert one["results"] == two["results"]
    assert one["files"] == two["files"]
    for name in one["files"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_unreadable_files_are_listed_the_rest_is_done_and_the_status_is_1(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bees" / "05-broken.png").write_bytes(b"no image")
    assert run(["ablate", str(photos), *options, "--filters", "0:0", "--quiet"]) == 1
    summary = summary_in(tmp_path / "out")
    ((error),) = summary["errors"]
    assert error["input"].endswith("05-broken.png")
    assert summary["results"]["accuracy"]["before"]["count"] == 12
    assert "05-broken.png" in capsys.readouterr().err


def test_a_check_that_does_not_hold_is_status_3_after_everything_is_written(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate", str(photos), *options, "--filters", "4:all", "--min-accuracy"]
    assert run([*command, "0.9", "--quiet"]) == 3
    assert "below 0.9" in capsys.readouterr().err
    left = summary_in(tmp_path / "out")["results"]["accuracy"]["after"]["top1"]
    assert run([*command, str(left), "--quiet", "--overwrite"]) == 0


def test_a_sample_and_a_silenced_layer_are_said(
    photos: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ablate", str(photos), *options, "--filters", "3:all", "--limit", "6"]) == 0
    told = capsys.readouterr()
    assert "note: all 6 filters of '3' are off" in told.err
    assert told.err.count("a sample of 6 of the 12 images") == 1
    assert "McNemar p" in told.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing to ablate; give --filters LAYER:3,7-12, or --sweep LAYER"),
        (["--filters", "0:8"], "layer '0' has channels 0 to 7"),
        (["--filters", "9:0"], "no layer '9'"),
        (["--filters", "0"], "'0' does not name any filters"),
        (["--filters", "0:0", "--cumulative"], "--cumulative needs --sweep"),
        (["--sweep", "0", "--min-accuracy", "0.5"], "--min-accuracy needs --filters"),
        (
            ["--filters", "0:0", "--min-accuracy", "50"],
            "--min-accuracy 50 is out of range; it takes a number from 0 to 1",
        ),
        (["--sweep", "0", "--top", "0"], "--top 0 is out of range; it takes a whole number from 1"),
        (
            ["--sweep", "0", "--memory", "0"],
            "--memory 0 is out of range; it takes a whole",
        ),
        (["--sweep", "0", "--mode", "noise"], "'noise'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2_and_writes_nothing(
    photos: Path,
    options: list[str],
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ablate", str(photos), *options, *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_refused_with_the_remedy(
    photos: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ablate", str(photos / "bees"), *options, "--filters", "0:0"]) == 2
    assert "give a folder with one folder per class" in capsys.readouterr().err
