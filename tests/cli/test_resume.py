"""Runs over many pictures that were cut off and go on: what is done stays, and nothing else."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parts import slow_but
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.cli.options import ModelOptions
from cnnviz.cli.run import _choices
from cnnviz.core.choices import HeadChoice
from cnnviz.core.files import UNFINISHED
from cnnviz.core.output.lines import LINES
from cnnviz.core.output.run_folder import RunFolder, json_parts, to_json

COUNT = 5
LINES_OF = {
    "occlude": ["--mask", "16", "--stride", "16", "--pictures", "overlay"],
    "saliency": [],
    "trust": [],
    "reasons": ["--cell", "16", "--skip", "pairs", "--skip", "filters"],
    "activations": ["--layer", "stem.conv"],
}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders with a picture of the same name in each, and one that is no picture."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("a/x.png", "b/x.png", "a/y.png", "b/z.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (tmp_path / "data" / "a" / "broken.png").write_bytes(b"no picture")
    past = 1_600_000_000
    for path in (tmp_path / "data").rglob("*.png"):
        os.utime(path, (past, past))
    return tmp_path / "data"


def line(command: str, out: str, *more: str) -> list[str]:
    return [command, "data", *LINES_OF[command], "--out", out, "--quiet", *more]


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], int], None]:
    """Ends a run, as Ctrl-C does, when it comes to write for the picture of that number."""

    def end(arguments: list[str], number: int) -> None:
        seen = 0
        whole = RunFolder.subfolder

        def subfolder(self: RunFolder, name: str) -> RunFolder:
            nonlocal seen
            seen += 1
            if seen > number:
                raise KeyboardInterrupt
            return whole(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "subfolder", subfolder)
            assert run(arguments) == 130

    return end


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "summary.json"}


def summary(folder: str) -> dict:
    content = json.loads(Path(folder, "summary.json").read_text())
    return {k: v for k, v in content.items() if k not in ("argv", "elapsed_seconds")}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("command", slow_but(LINES_OF, "occlude", "saliency", "activations"))
def test_cut_off_and_resumed_equals_uninterrupted(
    command: str, cut_off: Callable[[list[str], int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line(command, "whole")) == 1  # one picture is broken
    cut_off(line(command, "out"), 2)
    assert Path("out", UNFINISHED).exists()
    assert not Path("out", "summary.json").exists()
    assert len(Path("out", LINES).read_text().splitlines()) == 2
    capsys.readouterr()
    assert run(line(command, "out")) == 2
    assert "--resume to go on" in capsys.readouterr().err
    assert run(line(command, "out", "--resume")) == 1
    if command != "saliency":  # which says how long it took, with --compare alone
        assert files(Path("out")) == files(Path("whole"))
    assert summary("out") == summary("whole")
    assert not Path("out", UNFINISHED).exists()
    assert [Path(e["image"]).name for e in summary("out")["results"]] == [
        "x.png", "y.png", "x.png", "z.png",
    ]  # fmt: skip
    assert [e["folder"] for e in summary("out")["results"]] == ["x", "y", "x-2", "z"]
    assert len(summary("out")["errors"]) == 1


@pytest.mark.usefixtures("pictures")
def test_only_what_was_left_is_studied(
    cut_off: Callable[[list[str], int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cnnviz.occlusion.experiment import Occluder

    studied: list[str] = []
    whole = Occluder.run

    def noted(self: Occluder, image: object, **options: object) -> object:
        studied.append(image.path)
        return whole(self, image, **options)

    cut_off(line("occlude", "out"), 3)
    monkeypatch.setattr(Occluder, "run", noted)
    run(line("occlude", "out", "--resume"))
    assert studied == ["data/b/z.png"]


def _delete(_data: Path) -> None:
    Path("out/x/overlay.png").unlink()


def _change(data: Path) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "a" / "x.png")
    later = Path("out/x/overlay.png").stat().st_mtime + 10
    os.utime(data / "a" / "x.png", (later, later))


def _tear(_data: Path) -> None:
    path = Path("out", LINES)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(second + first[:-20])


def _lie(_data: Path) -> None:
    path = Path("out", LINES)
    first, second = path.read_text().splitlines()
    entry = json.loads(first)
    entry["files"].append("../data/b/z.png")
    path.write_text(f"{json.dumps(entry)}\n{second}\n")


@pytest.mark.parametrize("spoil", [_delete, _change, _tear, _lie])
def test_what_is_not_whole_is_done_again(
    spoil: Callable[[Path], None], pictures: Path, cut_off: Callable[[list[str], int], None]
) -> None:
    cut_off(line("occlude", "out"), 2)
    spoil(pictures)
    assert run(line("occlude", "out", "--resume")) == 1
    assert run(line("occlude", "whole")) == 1
    found, wanted = summary("out")["results"], summary("whole")["results"]
    assert len(found) == len(wanted) == 4
    for entry in wanted:
        (same,) = [e for e in found if e["image"] == entry["image"]]
        assert {**same, "folder": ""} == {**entry, "folder": ""}
        for name in ("overlay.png", "scores.npz"):
            one, other = Path("out", same["folder"], name), Path("whole", entry["folder"], name)
            assert one.read_bytes() == other.read_bytes()
    assert set(summary("out")["files"]) >= {f"{e['folder']}/overlay.png" for e in found}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("more", "differs"),
    [
        (["--mask", "8"], "options"),
        (["--colormap", "jet"], "look"),
        (["--precision", "bf16"], "precision"),
        (["--no-scores"], "--scores"),
    ],
)
def test_another_run_is_not_gone_on_with(
    more: list[str],
    differs: str,
    cut_off: Callable[[list[str], int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut_off(line("occlude", "out"), 2)
    before = files(Path("out"))
    assert run(line("occlude", "out", "--resume", *more)) == 2
    assert differs in capsys.readouterr().err
    assert files(Path("out")) == before


@pytest.mark.usefixtures("pictures")
def test_a_finished_run_and_one_that_never_began(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line("saliency", "out", "--resume")) == 1  # nothing there: begins
    assert run(line("saliency", "out", "--resume")) == 2
    assert "there is nothing to resume" in capsys.readouterr().err
    assert run(line("saliency", "out", "--resume", "--overwrite")) == 1
    assert len(summary("out")["results"]) == 4


@pytest.mark.usefixtures("pictures")
def test_checks_count_what_was_done_before(
    cut_off: Callable[[list[str], int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data/a/broken.png").unlink()
    more = ["--expect", "0,0,1,1", "--min-inside", "0.9"]
    cut_off(line("occlude", "out", *more), 2)
    capsys.readouterr()
    assert run(line("occlude", "out", "--resume", *more)) == 3
    assert "of 4 images have less than 0.9" in capsys.readouterr().err


@pytest.mark.pictures
@pytest.mark.usefixtures("pictures")
def test_pictures_are_drawn_as_asked_and_render_draws_the_rest() -> None:
    one = ["occlude", "data/a/x.png", "--quiet", "--out"]
    for which in ("all", "overlay", "none"):
        assert run([*one, which, "--pictures", which]) == 0
    drawn = {w: {p.name for p in Path(w, "x").glob("*.png")} for w in ("all", "overlay", "none")}
    assert drawn["none"] == {"input.png"}
    assert drawn["overlay"] == {"input.png", "overlay.png"}
    assert drawn["all"] > drawn["overlay"]
    assert run(["render", "none/x", "--out", "again", "--quiet"]) == 0
    for name in drawn["all"] - {"input.png"}:
        assert Path("again/x", name).read_bytes() == Path("all/x", name).read_bytes()


def test_entries_are_written_one_by_one_as_they_would_be_together() -> None:
    for results in ([], [{"a": 1}], [{"a": "x\n\0results\0"}, {"b": [1, {"c": None}]}]):
        content = {"schema": "s", "results": results, "files": ["f"]}
        streamed = "".join(json_parts({**content, "results": iter(results)}))
        assert streamed == to_json(content)
        assert "".join(json_parts(content)) == to_json(content)


def test_journals_depend_on_what_the_outputs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the options, and by the content of their files."""
    monkeypatch.chdir(tmp_path)
    Path("head.py").write_text("def rows(raw): return raw")
    Path("row.json").write_text("[1]")
    given = ModelOptions(pick="head.py:rows", inputs=(("table", "row.json"),))
    seen = {_choices(given), _choices(replace(given, head=HeadChoice.SIGMOID))}
    seen |= {_choices(replace(given, pick=None)), _choices(replace(given, cover="image"))}
    Path("head.py").write_text("def rows(raw): return -raw")
    seen.add(_choices(given))
    Path("row.json").write_text("[2]")
    assert len(seen | {_choices(given)}) == 6
    assert _choices(given) == _choices(replace(given, batch_size=3))
