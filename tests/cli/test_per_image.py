"""A declared study: entries, files, table and checks of images that are studied one by one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from networks import model_of
from PIL import Image
from torch import nn

from cnnviz.cli.console import Console
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CheckFailed, CnnvizError
from cnnviz.core.output.record import Record, Share
from cnnviz.core.output.run_folder import RunFolder


@dataclass(frozen=True)
class Brightness(Record):
    """The mean of an image's pixels."""

    image: str
    mean: Share


class Study(ImageStudy[tuple[str, float], Brightness]):
    kind = Brightness
    work = "measuring"
    steps = 2
    title, columns = "Brightness", ("image", "mean")
    show = "*.txt"

    def __init__(self, minimum: float) -> None:
        self.studied: list[str] = []
        self.checks = (self._check,)
        self._minimum = minimum

    def one(self, image: WorkingImage, path: str, advance: Advance) -> tuple[str, float]:
        self.studied.append(Path(path).name)
        if image.pixels.max() == 0:
            raise CnnvizError(f"'{path}' is black")
        advance(1)
        return path, float(image.pixels.mean())

    def entry(self, result: tuple[str, float]) -> Brightness:
        return Brightness(*result)

    def files(self, result: tuple[str, float], folder: RunFolder) -> None:
        folder.write_text("mean.txt", str(result[1]))

    def rows(self, entry: Brightness) -> Iterator[Sequence[object]]:
        yield Path(entry.image).name, f"{entry.mean:.2f}"

    def _check(self, entries: Iterable[Brightness]) -> None:
        dark = {entry.image: "dark" for entry in entries if entry.mean < self._minimum}
        if dark:
            raise CheckFailed(f"{len(dark)} images are dark", dark)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, level in (("a.png", 50), ("b.png", 0), ("c.png", 200)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(name)
    return ["a.png", "b.png", "c.png"]


def go(names: list[str], study: Study, *, resume: bool = False) -> ImageRun:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), (8, 8), "ab")
    run = ImageRun("measure", OutputOptions(out=Path("out")))
    run.go(study, model, run.images(names, None), {"options": 1}, seed=0, resume=resume)
    return run


def test_a_failed_image_does_not_stop_the_others_nor_the_checks(
    photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(minimum=0.5)
    with pytest.raises(typer.Exit):
        go(photos, study)
    content = json.loads(Path("out/summary.json").read_text())
    assert study.studied == photos
    assert content["results"] == [
        {"image": "a.png", "mean": pytest.approx(50 / 255, abs=1e-6), "folder": "a"},
        {"image": "c.png", "mean": pytest.approx(200 / 255, abs=1e-6), "folder": "c"},
    ]
    assert content["errors"] == [{"input": "b.png", "message": "'b.png' is black"}]
    assert Path("out/c/mean.txt").exists()
    shown = capsys.readouterr()
    assert "Brightness" in shown.out
    assert "0.78" in shown.out
    assert "out/a/mean.txt" in shown.out
    assert "1 images are dark" in shown.err
    assert "measuring: 3/3 images" in shown.err


def test_what_is_done_is_not_studied_again(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, study = [photos[0], photos[2]], Study(minimum=0.0)
    write = Study.files

    def broken(self: Study, result: tuple[str, float], folder: RunFolder) -> None:
        if "c.png" in result[0]:
            raise KeyboardInterrupt
        write(self, result, folder)

    monkeypatch.setattr(Study, "files", broken)
    with pytest.raises(KeyboardInterrupt):
        go(names, study)
    monkeypatch.setattr(Study, "files", write)
    again = Study(minimum=0.5)
    with pytest.raises(CheckFailed, match="1 images are dark") as failed:
        go(names, again, resume=True)
    assert again.studied == ["c.png"]
    assert failed.value.failed == {"a.png": "dark"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.5", "−0.5"),
        ("p -9 % (-1e-05 to -0.2)", "p −9 % (−1e-05 to −0.2)"),
        ("gain=-3: >-0.001, -4. -inf", "gain=−3: >−0.001, −4. −inf"),
        ("- -", "- -"),
        ("-9.png 10-20 n-3 2026-11-30 x -a", "-9.png 10-20 n-3 2026-11-30 x -a"),
    ],
)
def test_negative_numbers_have_a_minus_sign_in_tables_and_sentences(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(OutputOptions())
    console.table("title", ("name", "value"), [("a", text), ("b", "-")])
    console.sentence(text)
    table, sentence = capsys.readouterr().out.split("└")
    assert f" {shown} " in table
    assert sentence.endswith(f"\n{shown}\n")


@pytest.mark.parametrize("number", ["<0.001", ">-0.001", "1.79k", "349M", "95%", "inf", "-4"])
def test_numbers_with_bounds_and_units_are_aligned_to_the_right(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(OutputOptions()).table("title", ("name", "a long heading"), [("a", number), ("b", "")])
    row = capsys.readouterr().out.splitlines()[4]
    assert row.split("│")[2].startswith(" " * 5)


def test_steps_beyond_the_total_are_counted_and_their_number_is_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(OutputOptions())
    with console.progress("searching", 4) as advance:
        for _ in range(6):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[3:] == ["searching: 4/4", "searching: 5/?", "searching: 6/?"]
    console._err._force_terminal = True
    with console.progress("searching", 4) as advance:
        advance(3)
        advance(3)
