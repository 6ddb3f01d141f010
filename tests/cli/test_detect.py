"""detect and occlude --box from the outside: files, tables, render, diff, report, messages."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from cnnviz.cli.main import run

SOURCE = """
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

class Bright(nn.Module):
    def forward(self, images):
        found = []
        for image in images:
            near = avg_pool2d(image.mean(0, keepdim=True)[None], 8, 4)[0, 0]
            y, x = torch.meshgrid(*map(torch.arange, near.shape), indexing="ij")
            corner = 4 * torch.stack([x, y], -1).flatten(0, 1).float()
            scores = near.flatten()
            kept = scores > 0.7
            boxes = torch.cat([corner, corner + 8], 1)[kept]
            labels = torch.ones(len(boxes), dtype=torch.long)
            found.append({"boxes": boxes, "scores": scores[kept], "labels": labels})
        return found

def make(): return Bright()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "names.txt").write_text("background\nlamp\n")
    (tmp_path / "data").mkdir()
    for name, x in (("a", 8), ("b", 16)):
        image = Image.new("RGB", (32, 32))
        ImageDraw.Draw(image).rectangle((x, 8, x + 7, 15), fill=(240, 240, 240))
        image.save(tmp_path / "data" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


NET = ["--model", "net.py:make", "--size", "32", "--mean", "0", "--std", "1", "--quiet"]
NET += ["--labels", "names.txt"]


def results(path: Path) -> list[dict[str, object]]:
    content: list[dict[str, object]] = json.loads((path / "summary.json").read_text())["results"]
    return content


def test_boxes_are_drawn_and_numbered(folder: Path) -> None:
    assert run(["detect", "data", *NET, "--out", "d"]) == 0
    assert [entry["boxes"] for entry in results(folder / "d")] == [
        [{"number": 1, "class": "lamp", "score": pytest.approx(0.941, abs=1e-3),
          "box": [8, x, 16, x + 8], "box_original": [8, x, 16, x + 8]}]
        for x in (8, 16)
    ]  # fmt: skip
    assert (folder / "d" / "a" / "boxes.png").exists()


@pytest.mark.slow
def test_a_box_is_explained_drawn_again_compared_and_reported(folder: Path) -> None:
    line = ["occlude", "data", *NET, "--box", "lamp", "--mask", "8", "--stride", "4"]
    assert run([*line, "--out", "o", "--report"]) == 0
    assert run([*line, "--out", "p", "--fill", "gray"]) == 0
    first = results(folder / "o")[0]["targets"][0]  # type: ignore[index]
    assert (first["class"], first["box"]) == ("1 lamp", [8, 8, 16, 16])
    assert first["reliance"] == pytest.approx(1)
    names = {"overlay", "heatmap", "value", "boxes"}
    assert {path.stem for path in (folder / "o" / "a").glob("*.png")} == names | {"input"}
    assert (folder / "o" / "report.html").stat().st_size > 10_000
    assert run(["render", "o/a", "--box", "1", "--out", "r", "--quiet"]) == 0
    assert run(["diff", "o", "o", "--out", "f", "--quiet"]) == 0
    resumed = [*line, "--out", "o", "--resume", "--threshold", "0.8"]
    assert run(resumed) == 2  # other boxes may be found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["occlude", "data"], "net.py:make returns boxes: --box N, CLASS, CLASS@N or all says"),
        (["saliency", "data"], "net.py:make returns boxes, which saliency does not take; cnnviz"),
        (["audit", "data"], "net.py:make returns boxes, which audit does not take"),
        (["trust", "data"], "net.py:make returns boxes, which trust does not take"),
        (["occlude", "data", "--box", "0"], "invalid box '0'; --box takes a number from 1"),
        (["occlude", "data", "--box", "7"], "no box '7' with a score of at least 0.5; there are 1"),
    ],
)
def test_what_does_not_take_boxes_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], line: list[str], message: str
) -> None:
    for name in "cd":  # tsne takes no fewer than four
        shutil.copy(folder / "data" / "a.png", folder / "data" / f"{name}.png")
    assert run([*line, *NET, "--out", "x"]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_classifier_has_no_boxes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["detect", "data", "--out", "x"]) == 2
    assert "bundled returns no boxes; detect takes detectors" in capsys.readouterr().err
    assert not (folder / "x").exists()


def test_a_detectors_faults_name_the_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "short.txt").write_text("background\n")
    assert run(["detect", "data", *NET, "--labels", "short.txt", "--out", "x"]) == 1
    printed = capsys.readouterr().err
    assert "a.png': net.py:make returns a box of class 1; there are 1 class names" in printed
    assert "b.png': net.py:make returns a box" in printed


def test_very_many_boxes_are_drawn_in_part(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "net.py").write_text(SOURCE.replace("[kept]", "[kept].repeat(3000, 1)[:3000]", 1)
        .replace("scores[kept]", "scores[kept].repeat(3000)[:3000]"))  # fmt: skip
    assert run(["detect", "data/a.png", *[n for n in NET if n != "--quiet"], "--out", "x"]) == 0
    assert "… and 2,900 more, not drawn" in capsys.readouterr().out
    assert len(results(folder / "x" / "a")[0]["boxes"]) == 3000  # type: ignore[arg-type]
    assert run(["occlude", "data/a.png", *NET, "--box", "all", "--out", "y"]) == 1
    assert "--box names 3,000 boxes; at most 100" in capsys.readouterr().err


def test_a_page_checks_boxes_and_lists_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = ["--threshold", "0.7", "--size", "64"]
    assert run(["detect", "data/a.png", *NET, *low, "--out", "x", "--report"]) == 0
    page = (folder / "x" / "a" / "report.html").read_text()
    count = len(results(folder / "x" / "a")[0]["boxes"])  # type: ignore[arg-type]
    assert count > 1
    assert f"results ({count} rows)" in page
    summary = folder / "x" / "a" / "summary.json"
    summary.write_text(summary.read_text().replace('"score": 0.9', '"score": 9.9'))
    assert run(["report", "x/a", "--out", "forged.html"]) == 1
    assert "score" in capsys.readouterr().err
    assert not (folder / "forged.html").exists()


def test_boxes_and_references_exclude_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--like", "data/b.png"], ["--text", "a lamp"]):
        assert run(["occlude", "data/a.png", *NET, "--box", "1", *option, "--out", "x"]) == 2
        assert f"{option[0]}: net.py:make returns boxes; --box N" in capsys.readouterr().err
    assert run(["occlude", "data/a.png", "--like", "", "--out", "x"]) == 2
    assert "--like '' is not a file name" in capsys.readouterr().err
