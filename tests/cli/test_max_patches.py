"""`cnnviz max-patches` from the outside: files, numbers, exit statuses, messages."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.output.record import to_json
from cnnviz.filters.patches.results import load

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "max-patches.schema.json"
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 30, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(30, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return f"{path}:make"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve noisy images of two classes, one of them called $cats$."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for number in range(12):
        place = root / ("$cats$" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number:02}.png")
    return root


@pytest.fixture
def options(net: str, tmp_path: Path) -> list[str]:
    return ["--model", net, "--size", "16", "--device", "cpu", "--out", str(tmp_path / "out")]


def summary_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def test_a_run_writes_what_its_summary_says(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["max-patches", str(photos), *options, "--top", "3", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    out = tmp_path / "out"
    summary = summary_in(out)
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert written == sorted([*summary["files"], "summary.json"])
    assert written == sorted(
        [
            *(f"0/{name}" for name in ("images-2.png", "images.png", "patches-2.png")),
            *("0/patches.png", "2/images.png", "2/patches.png", "summary.json"),
        ]
    )
    results = summary["results"]
    assert to_json(load(out)) == results
    assert [(e["layer"], e["filters"]) for e in results["layers"]] == [("0", 30), ("2", 4)]
    assert len(results["filters"]) == 34
    assert all(len(entry["patches"]) == 3 for entry in results["filters"])
    assert {p["class"] for e in results["filters"] for p in e["patches"]} == {"$cats$", "dogs"}


def test_json_puts_the_summary_and_nothing_else_on_stdout(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["max-patches", str(photos), *options, "--json", "--no-pictures"]
    assert run([*command, "--filters", "2:0,3"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == summary_in(tmp_path / "out")
    assert shown["files"] == []
    assert [(e["layer"], e["filter"]) for e in shown["results"]["filters"]] == [("2", 0), ("2", 3)]


def test_two_runs_are_byte_for_byte_the_same(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    command = ["max-patches", str(photos), *options[:-1], "--layer", "2", "--quiet"]
    for name in ("one", "two"):
        assert run([*command[:-3], str(tmp_path / name), *command[-3:]]) == 0
    one, two = (summary_in(tmp_path / name) for name in ("one", "two"))
    assert one["results"] == two["results"]
    for name in one["files"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_unreadable_files_are_listed_the_rest_is_done_and_the_status_is_1(
    photos: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dogs" / "05-broken.png").write_bytes(b"no image")
    assert run(["max-patches", str(photos), *options, "--layer", "2", "--quiet"]) == 1
    summary = summary_in(tmp_path / "out")
    jsonschema.validate(summary, json.loads(SCHEMA.read_text()))
    ((error),) = summary["errors"]
    assert error["input"].endswith("05-broken.png")
    assert summary["results"]["images"] == 12
    assert "05-broken.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "scan-state.npz").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer", "7"], "no layer '7'"),
        (["--layer", "2", "--filters", "4"], "channel 4 in '4' does not exist"),
        (["--filters", "random:99"], "asks for 99 filters; there are 34"),
        (["--top", "0"], "--top 0 is out of range; it takes a whole number from 1"),
        (["--save-every", "0"], "--save-every 0 is out of range; it takes a whole number from 1"),
        (["--per-image", "2", "--score", "mean"], "--per-image 2 needs --score max"),
        (["--score", "median"], "'median'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    photos: Path,
    options: list[str],
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["max-patches", str(photos), *options, *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_empty_folder_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["max-patches", str(tmp_path / "empty"), *options]) == 2
    assert "holds no image" in capsys.readouterr().err


def test_fewer_images_than_top_gives_rows_as_long_as_there_are_images(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    files = [str(path) for path in sorted(photos.rglob("*.png"))[:4]]
    assert run(["max-patches", *files, *options, "--quiet"]) == 0
    results = summary_in(tmp_path / "out")["results"]
    assert all(len(entry["patches"]) == 4 for entry in results["filters"])
    assert all("classes" not in entry for entry in results["filters"])


@pytest.mark.pictures
def test_an_interrupted_scan_resumes_and_a_finished_one_does_not(
    photos: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cnnviz.core.output.journal import Journal

    out = tmp_path / "out"
    whole = tmp_path / "whole"
    command = ["max-patches", str(photos), *options[:-1]]
    more = ["--layer", "2", "--quiet", "--batch-size", "2", "--save-every", "1"]
    assert run([*command, str(whole), *more]) == 0

    save, saved = Journal.save, []

    def save_thrice(*given: Any) -> None:
        save(*given)
        saved.append(given)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "save", save_thrice)
    assert run([*command, str(out), *more]) == 130
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == ["scan-state.npz"]
    (out / ".scan-state.npz.0123abcd.tmp").write_bytes(b"killed while writing")
    assert run([*command, str(out), *more]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run([*command, str(out), *more, "--top", "2", "--resume"]) == 2
    assert "belongs to a run with other --top" in capsys.readouterr().err
    assert run([*command, str(out), *more, "--resume"]) == 0
    assert summary_in(out)["results"] == summary_in(whole)["results"]
    for name in summary_in(out)["files"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["2", "summary.json"]
    assert run([*command, str(out), *more, "--resume"]) == 2
    assert "holds a finished run: there is nothing to resume" in capsys.readouterr().err
