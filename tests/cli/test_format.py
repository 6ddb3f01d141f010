"""Figures as PDF or SVG, and maps on one scale."""

from pathlib import Path

import numpy as np
import pytest
from parts import slow_but
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.output.canvas import MARGIN
from cnnviz.core.output.layout import GAP, PANEL
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.style import DPI

LINES = {
    "occlude": ["occlude", "0.png", "--mask", "16"],
    "saliency": ["saliency", "0.png"],
    "filters": ["filters", "--layer", "stem.conv"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    Image.fromarray(pixels).save(tmp_path / "$a_{1}$<script>.png")
    return tmp_path


def files(folder: str) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name[-4:] != "json"}


CASES = [(name, k, start) for k, start in (("pdf", b"%PDF"), ("svg", b"<?xml")) for name in LINES]


@pytest.mark.parametrize(
    ("command", "kind", "start"),
    slow_but(CASES, ("saliency", "pdf", b"%PDF"), ("filters", "svg", b"<?xml")),
)
def test_figures_are_written_as_asked_and_the_same_each_time(
    command: str, kind: str, start: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        assert run([*LINES[command], "--format", kind, "--out", folder]) == 0
    assert f".{kind}\n" in capsys.readouterr().out  # named at the end
    assert files("one") == files("two")
    figures = [data for name, data in files("one").items() if name.endswith(f".{kind}")]
    assert figures
    assert all(data.startswith(start) for data in figures)
    assert run([*LINES[command], "--out", "png"]) == 0
    as_png = {name for name in files("png") if name not in files("one")}
    assert {Path(name).with_suffix(f".{kind}").as_posix() for name in as_png} <= set(files("one"))


@pytest.mark.pictures
def test_names_are_no_markup_in_an_svg() -> None:
    assert run(["occlude", "$a_{1}$<script>.png", "--format", "svg", "--out", "o", "-q"]) == 0
    for path in Path("o").rglob("*.svg"):
        assert b"<script" not in path.read_bytes()


def test_a_run_resumes_in_its_own_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["occlude", "0.png", "$a_{1}$<script>.png", "--mask", "16", "--out", "o", "-q"]

    def interrupted(_folder: RunFolder, _name: str) -> RunFolder:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "subfolder", interrupted)
        assert run(line) == 130
    assert run([*line, "--format", "svg", "--resume"]) == 2
    assert "--format" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "x"])
def test_a_scale_is_a_positive_number(scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["occlude", "0.png", f"--scale={scale}", "--out", "o"]) == 2
    assert "--scale" in capsys.readouterr().err


COLUMNS = [
    (name, *case)
    for name in ("occlude", "saliency")
    for case in ((None, 4), ("1", 1), ("2", 2), ("9", 4))
]


@pytest.mark.pictures
@pytest.mark.parametrize(
    ("command", "columns", "wide"), slow_but(COLUMNS, ("saliency", None, 4), ("saliency", "2", 2))
)
def test_panels_stand_in_as_many_columns_as_asked(
    command: str, columns: str | None, wide: int
) -> None:
    more = ["--columns", columns] if columns else []
    line = [*LINES[command], "--target", "top3", "--out", "o", "-q"]
    assert run([*line, *more]) == 0
    with Image.open("o/0/overlay.png") as image:  # the input and three panels
        dots = DPI / 72
        assert image.width == pytest.approx(dots * (wide * (PANEL + GAP) - GAP + 2 * MARGIN), abs=3)
        assert image.height == pytest.approx(dots * -(-4 // wide) * 1.2 * PANEL, rel=0.25)


def test_a_map_and_its_picture_are_composed_once() -> None:
    assert run([*LINES["occlude"], "--format", "svg", "--out", "o", "-q"]) == 0
    assert Path("o/0/overlay.svg").read_text().count("<image ") == 3  # input, map, colour bar
