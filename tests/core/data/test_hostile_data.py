"""Tars, data sets and tables of strangers: refused in one line, in no time and no memory."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cnnviz.core import files
from cnnviz.core.data.datasets import open_data
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import csv_rows, csv_text
from cnnviz.core.output.run_folder import RunFolder

BLOCK = 512


def _image() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def _tar(names: tuple[str, ...] = ("a.png", "b.png")) -> bytes:
    stream, content = io.BytesIO(), _image()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _header(kind: bytes, size: bytes) -> bytes:
    """A header with any kind and size field, and the right checksum."""
    header = bytearray(tarfile.TarInfo("x.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _base256(number: int) -> bytes:
    return (
        (number + (0 if number >= 0 else 256**12)).to_bytes(12)
        if number < 0
        else (b"\x80" + number.to_bytes(11))
    )


def _pax(record: bytes) -> bytes:
    rest = len(record) + 2
    body = b"%d %s\n" % (rest + len(str(rest + 2)), record)
    return _header(b"x", b"%011o" % len(body)) + body.ljust(BLOCK, b"\0")


END = bytes(2 * BLOCK)
FIRST = _tar(("a.png",))[: BLOCK + -(-len(_image()) // BLOCK) * BLOCK]
TARS: dict[str, bytes] = {
    "a size of -1": FIRST + _header(b"0", _base256(-1)) + END,
    "a very negative size": FIRST + _header(b"0", _base256(-(10**9))) + END,
    "a size beyond the end": FIRST + _header(b"0", _base256(10**15)) + END,
    "a long name of 8 GB": FIRST + _header(b"L", _base256(8 * 2**30)) + END,
    "a long link of 8 GB": FIRST + _header(b"K", _base256(8 * 2**30)) + END,
    "attributes of 6 GB": FIRST + _header(b"x", _base256(6 * 2**30)) + END,
    "global attributes of 6 GB": FIRST + _header(b"g", _base256(6 * 2**30)) + END,
    "a length of 20 digits": FIRST + _pax(b"size=99999999999999999999") + _header(b"0", b"0") + END,
    "a negative length": FIRST + _pax(b"size=-99999") + _header(b"0", b"0") + END,
    "a length of -1": FIRST + _pax(b"size=-1") + _header(b"0", b"0") + END,
    "cut after a file": FIRST,
    "cut in the end": FIRST + bytes(100),
    "garbage after a file": FIRST + b"\x07" * BLOCK + END,
    "garbage behind its end": FIRST + END + b"\x07" * BLOCK + END,
    "two in one, the second cut": FIRST + END + FIRST,
    "nothing": b"",
}


@pytest.mark.parametrize("kind", TARS)
def test_tars_that_are_not_whole(kind: str, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(TARS[kind])
    with pytest.raises(CnnvizError, match=r"\A[^\n]*is not a complete tar file[^\n]*\Z"):
        open_data([str(tmp_path / "t.tar")])


def test_a_whole_tar_and_its_padding(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(_tar())
    (tmp_path / "short.tar").write_bytes(FIRST + bytes(BLOCK))
    assert len(open_data([str(tmp_path / "t.tar")])) == 2
    assert len(open_data([str(tmp_path / "short.tar")])) == 1


@pytest.mark.parametrize("between", [BLOCK, 2 * BLOCK, 7 * BLOCK])
def test_tars_joined_by_cat_are_read_to_the_last(between: int, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(FIRST + bytes(between) + _tar(("b.png", "c.png")) + FIRST + END)
    data = open_data([str(path)])
    assert [example.path.rpartition("/")[2] for example in data.examples] == [
        "a.png", "b.png", "c.png", "a.png",
    ]  # fmt: skip
    assert len({data.open(row).tobytes() for row in range(4)}) == 1


@pytest.mark.parametrize(
    "name", ["t{0..9999999}.tar", "t{0..999999999999}.tar", f"t{{0..{'9' * 5000}}}.tar",
    "t{0..9999999}{0..9999999}.tar"],
)  # fmt: skip
def test_ranges_of_any_length(name: str, tmp_path: Path) -> None:
    with pytest.raises(CnnvizError, match=r"no file|is not a file name"):
        open_data([str(tmp_path / name)])


def _arrow(change: Callable[[Path], object], folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"bytes": _image(), "path": None}] * 3, "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    change(folder)


def _pipe(folder: Path) -> None:
    (arrow,) = folder.glob("*.arrow")
    arrow.unlink()
    os.mkfifo(arrow)


def _fewer_names(folder: Path) -> None:
    path = folder / "dataset_info.json"
    content = json.loads(path.read_text())
    content["features"]["label"]["names"] = ["a"]
    path.write_text(json.dumps(content))


ARROWS: dict[str, Callable[[Path], object]] = {
    "a pipe": _pipe,
    "a device": lambda f: [(p.unlink(), p.symlink_to("/dev/zero")) for p in f.glob("*.arrow")],
    "null": lambda f: (f / "dataset_info.json").write_text("null"),
    "a list": lambda f: (f / "dataset_info.json").write_text("[]"),
    "deep": lambda f: (f / "dataset_info.json").write_text("[" * 10**5 + "]" * 10**5),
    "state null": lambda f: (f / "state.json").write_text("null"),
    "fewer names": _fewer_names,
    "cut": lambda f: [p.write_bytes(p.read_bytes()[:-200]) for p in f.glob("*.arrow")],
    "empty": lambda f: [p.write_bytes(b"") for p in f.glob("*.arrow")],
}


@pytest.mark.needs("datasets")
@pytest.mark.parametrize("kind", ARROWS)
def test_data_sets_that_are_damaged(kind: str, tmp_path: Path) -> None:
    _arrow(ARROWS[kind], tmp_path / "set")
    with pytest.raises(CnnvizError, match=r"\A[^\n]+\Z"):
        open_data([f"hf-dataset:{tmp_path / 'set'}"])


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "'=1", "''@x", "-rf.png"]
PLAIN = ["-1", "+2.5", "-1e-5", "cat", "it's", "'", "a=b", "", "'cat'"]


@pytest.mark.parametrize("cell", [*FORMULAS, *PLAIN])
def test_cells_come_back_and_are_no_formulas(cell: str, tmp_path: Path) -> None:
    text = csv_text([["name", "x"], [cell, -0.5]])
    assert csv_rows(text) == [["name", "x"], [cell, "-0.5"]]
    assert (f"'{cell}" in text) == (cell in FORMULAS)
    path = RunFolder.open(tmp_path / "out").write_csv("t.csv", ["name", "x"], [[cell, -0.5]])
    assert path.read_text() == text


def test_text_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST_TEXT", 10)
    (tmp_path / "x.json").write_text(" " * 11)
    with pytest.raises(CnnvizError, match="has 11 bytes; at most 10 are read"):
        files.read_text(tmp_path / "x.json")
    with pytest.raises(files.DAMAGE):
        csv_rows(f'a\n"{"x" * (files.LONGEST_CELL + 1)}"\n')


def test_an_existing_file_wins_over_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10:x.png").write_bytes(_image())
    assert open_data(["cifar10:x.png"]).open(0).size == (8, 8)
