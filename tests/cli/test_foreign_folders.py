"""Run folders that cnnviz did not write, or that were changed since: a line, and nothing drawn."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import files

Arrays = dict[str, Any]
Change = Callable[[Arrays], None]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `occlude` wrote for one picture."""
    folder = tmp_path_factory.mktemp("written")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "x.png")
    line = ["occlude", str(folder / "x.png"), "--mask", "16", "--stride", "8", "--quiet"]
    assert run([*line, "--layer", "stem.conv", "--out", str(folder / "out")]) == 0
    return folder / "out" / "x"


@pytest.fixture
def place(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def render() -> list[str]:
    return ["render", "run", "--out", "out", "--quiet"]


def refused(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert run(render()) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cnnviz: ")]
    assert len(said) == 1, said
    assert words in said[0]
    assert not list(Path().glob("out/**/*.png"))


def to(name: str, value: object) -> Change:
    return lambda arrays: arrays.update({name: np.asarray(value)})


def cast(name: str, kind: str) -> Change:
    return lambda arrays: arrays.update({name: arrays[name].astype(kind)})


def cut(name: str) -> Change:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def filled(name: str, value: float) -> Change:
    return lambda arrays: arrays.update({name: np.full_like(arrays[name], value)})


def empty(arrays: Arrays) -> None:
    for name in ("logits", "boxes", "activation"):
        arrays[name] = arrays[name][:0]
    arrays["grids"] = np.zeros((1, 2), np.int64)


def without(name: str) -> Change:
    return lambda arrays: arrays.pop(name)


NEEDED = ("logits", "base_logits", "boxes", "labels", "masks", "grids", "stride", "border")
CHANGES: dict[str, Change] = {
    **{f"no {name}": without(name) for name in NEEDED},
    **{f"less {name}": cut(name) for name in ("logits", "base_logits", "boxes", "labels", "grids")},
    **{f"{name} as text": cast(name, "U8") for name in ("logits", "base_logits", "activation")},
    **{f"{name} as floats": cast(name, "f8") for name in ("boxes", "masks", "grids", "stride")},
    **{f"{name} as bytes": cast(name, "u1") for name in ("logits", "boxes")},
    **{f"complex {name}": cast(name, "c8") for name in ("logits", "base_logits")},
    **{f"negative {name}": filled(name, -1) for name in ("boxes", "masks", "grids", "stride")},
    **{f"zero {name}": filled(name, 0) for name in ("boxes", "masks", "grids", "stride")},
    **{f"huge {name}": filled(name, 2**62) for name in ("boxes", "masks", "grids")},
    **{f"{name} is NaN": filled(name, np.nan) for name in ("logits", "base_logits", "activation")},
    **{f"{name} is infinite": filled(name, np.inf) for name in ("logits", "base_logits")},
    "no positions": empty,
    "boxes in disorder": lambda arrays: arrays.update(boxes=arrays["boxes"][:, ::-1].copy()),
    "another border": to("border", "sideways"),
    "a head of its own": to("head", "oracle"),
    "dates": to("logits", np.zeros((9, 10), "M8[s]")),
    "one number": to("logits", 1.0),
    "four axes": to("logits", np.zeros((1, 1, 1, 1), np.float32)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_that_are_not_a_measurement(
    place: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    with np.load(place / "scores.npz") as file:
        arrays = dict(file)
    CHANGES[change](arrays)
    np.savez(place / "scores.npz", **arrays)
    refused(capsys, "cannot be read")


def test_the_folder_as_it_was_written_is_drawn(place: Path) -> None:
    assert (place / "scores.npz").exists()
    assert run(render()) == 0


def test_objects_are_never_unpickled(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(place / "scores.npz") as file:
        arrays = dict(file)
    arrays["labels"] = np.array([{"a": 1}] * len(arrays["labels"]), object)
    np.savez(place / "scores.npz", allow_pickle=True, **arrays)
    refused(capsys, "cannot be read")


@pytest.mark.parametrize("name", ["scores.npz", "input.png"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.98])
def test_cut_files(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, share: float
) -> None:
    data = (place / name).read_bytes()
    (place / name).write_bytes(data[: int(share * len(data))])
    refused(capsys, "")


@pytest.mark.parametrize("name", ["scores.npz", "input.png"])
def test_missing_files_and_folders_in_their_place(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / name).unlink()
    refused(capsys, f"no {name} in run")
    (place / name).mkdir()
    refused(capsys, "is a folder")


def test_another_picture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(place / "input.png")
    refused(capsys, "cannot be read")


def test_an_archive_that_unpacks_to_gigabytes(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST", 10**7)
    with zipfile.ZipFile(place / "scores.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", bytes(2 * 10**7))
    refused(capsys, "unpacks to more than 10,000,000 bytes")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": 3}', '{"files": [null, 3]}'])
def test_foreign_summaries_are_no_obstacle(place: Path, text: str) -> None:
    (place / "summary.json").write_text(text)
    assert run(render()) == 0
    (Path("out") / "run" / "summary.json").write_text(text)
    assert run([*render(), "--overwrite"]) == 0
    assert json.loads((Path("out") / "run" / "summary.json").read_text())["command"] == "render"
