"""Summaries are read in one place, which checks them and opens nothing outside the run's folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cnnviz.core import files
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.output.record import from_json
from cnnviz.core.output.summary import FinishedRun, read_summary, run_folders

CONTENT: dict[str, Any] = {
    "schema": "cnnviz.layers/1",
    "command": "layers",
    "version": "1.0",
    "argv": ["layers", "--model", "x"],
    "model": {
        "name": "x",
        "weights_sha256": "0" * 64,
        "classes": 3,
        "input_size": [32, 32],
        "head": "softmax",
    },
    "device": "cpu",
    "precision": "fp32",
    "seed": 0,
    "elapsed_seconds": 0.5,
    "results": {"layers": []},
    "files": ["layers.csv"],
    "errors": [{"input": "a.png", "message": "cannot be read"}],
}


def written(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(CONTENT | changes))
    return folder


def test_a_summary_is_read_from_its_folder_or_its_path(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    for named in (folder, folder / "summary.json"):
        run = read_summary(named)
        assert (run.folder, run.command) == (folder, "layers")
        assert run.failed == {"a.png"}
        assert run.content == CONTENT
        assert run.summary.model is not None
        assert run.summary.model.input_size == (32, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "cnnviz.layers/2"},
        {"schema": "other.layers/1"},
        {"command": ["layers"]},
        {"argv": "layers"},
        {"argv": ["layers", 3]},
        {"model": {"name": "x"}},
        {"model": CONTENT["model"] | {"weights_sha256": "../x"}},
        {"model": CONTENT["model"] | {"classes": -1}},
        {"model": CONTENT["model"] | {"input_size": [32]}},
        {"files": [None, 3]},
        {"errors": ["a.png"]},
        {"elapsed_seconds": -1},
        {"precision": "fp8"},
        {"shard": 3},
        {"shard": {"number": -1, "count": 2, "of": {}}},
    ],
)
def test_what_is_not_a_summary_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="is not a summary of cnnviz"):
        read_summary(written(tmp_path, **change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"a"', "[" * 100_000])
def test_what_is_not_an_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UsageError, match="is not a summary of cnnviz"):
        read_summary(tmp_path)


def test_missing_and_large_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CnnvizError, match="no file"):
        read_summary(tmp_path)
    monkeypatch.setattr(files, "LARGEST_TEXT", 100)
    with pytest.raises(CnnvizError, match="at most 100 are read"):
        read_summary(written(tmp_path))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x", "a\0b"])
def test_files_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    run = read_summary(written(tmp_path / "run"))
    (run.folder / "link").symlink_to(tmp_path)
    with pytest.raises(CnnvizError, match="outside its folder"):
        run.file(name)
    assert run.file("sub/layers.csv") == run.folder / "sub" / "layers.csv"


def test_runs_are_found_in_subfolders(tmp_path: Path) -> None:
    for name in ("b", "a"):
        written(tmp_path / "runs" / name)
    assert [path.name for path in run_folders(tmp_path / "runs")] == ["a", "b"]
    assert run_folders(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a"]
    assert run_folders(tmp_path / "runs" / "a" / "summary.json") == [tmp_path / "runs" / "a"]
    with pytest.raises(UsageError, match="no finished run in"):
        run_folders(tmp_path)


def _lookup() -> None:
    raise KeyError("x")


def _division() -> None:
    raise ZeroDivisionError


def _invalid() -> None:
    from_json(tuple[int, ...], ["x"])


@pytest.mark.parametrize("work", [_lookup, _division, _invalid])
def test_damage_is_an_error_of_one_line(tmp_path: Path, work: Callable[[], None]) -> None:
    run = read_summary(written(tmp_path))
    with pytest.raises(CnnvizError, match="are damaged or "), run.reading():
        work()


def test_images_of_a_run_are_opened_again(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (900, 300)).save(photos / "a.png")
    data = {"sources": [str(photos)]}
    run = FinishedRun.of(tmp_path, CONTENT | {"results": {"data": data}})
    picture = run.data.picture(str(photos / "a.png"))
    assert picture is not None
    assert picture.shape == (213, 640, 3)
    part = run.data.picture(str(photos / "a.png"), (0, 10.5, 20, 40.2))
    assert part is not None
    assert part.shape == (20, 31, 3)
    assert run.data.picture(str(photos / "b.png")) is None
    gone = FinishedRun.of(tmp_path, CONTENT | {"results": {"data": {"sources": ["gone"]}}})
    assert gone.data.image("a.png") is None
    with pytest.raises(CnnvizError, match="string"):
        _ = FinishedRun.of(tmp_path, CONTENT | {"results": {"data": {"sources": [3]}}}).data
