"""Whatever comes through the doors for files: it is read, or it is an error with one line.

Valid files of each kind are damaged at random places, a fixed number of times.
"""

import io
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from cnnviz.core.data.datasets import open_data
from cnnviz.core.data.images import read_image
from cnnviz.core.data.outlines import read_outlines
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.labels import read_labels
from cnnviz.core.models.load import load_model
from cnnviz.core.models.preprocess import plain

TIMES = 40
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000")
Maker = Callable[[], bytes]


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def array(kind: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).random((24, 24, 3), dtype=np.float32)
    write = {"npy": np.save, "npz": np.savez, "npz small": np.savez_compressed}[kind]
    write(stream, pixels)  # type: ignore[operator]
    return stream.getvalue()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def checkpoint(kind: str) -> bytes:
    net, stream = network().eval(), io.BytesIO()
    if kind == "safetensors":
        return save(net.state_dict())
    if kind == "script":
        with warnings.catch_warnings(action="ignore"):
            torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), stream)
    elif kind == "exported":
        program = torch.export.export(net, (torch.zeros(1, 3, 8, 8),), strict=False)
        torch.export.save(program, stream)
    else:
        torch.save(net.state_dict(), stream, _use_new_zipfile_serialization=kind != "old pickle")
    return stream.getvalue()


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, a piece taken out, put in or doubled, or its end missing."""
    data = bytearray(whole)
    place = chance.randrange(len(data))
    length = chance.choice([1, 2, 8, 64])
    kind = chance.randrange(5)
    if kind == 0:
        for at in chance.sample(range(len(data)), min(length, len(data))):
            data[at] = chance.randrange(256)
    elif kind == 1:
        del data[place : place + length]
    elif kind == 2:
        data[place:place] = bytes(chance.randrange(256) for _ in range(length))
    elif kind == 3:
        data[place:place] = data[place : place + length]
    else:
        del data[place:]
    return bytes(data)


def each_damage(
    maker: Maker, path: Path, read: Callable[[Path], object], times: int = TIMES
) -> tuple[int, int]:
    """How often a damaged file was read, and how often refused with one line."""
    whole, chance = maker(), random.Random(str(path.name))  # noqa: S311
    path.write_bytes(whole)
    read(path)
    ends = [0, 0]
    for _ in range(times):
        path.write_bytes(damaged(whole, chance))
        try:
            read(path)
            ends[0] += 1
        except CnnvizError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 2000  # noqa: PT017
            ends[1] += 1
    return ends[0], ends[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind.lower()}"
    _read, refused = each_damage(lambda: picture(kind), path, lambda p: read_image(p, plain(16)))
    assert refused


@pytest.mark.parametrize("kind", ["npy", "npz", "npz small"])
def test_damaged_arrays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind.split(maxsplit=1)[0]}"
    _read, refused = each_damage(lambda: array(kind), path, lambda p: read_image(p, plain(16)))
    assert refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pickle", "old pickle", "safetensors", "script", "exported"])
def test_damaged_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(4, 3))\n"
    )
    _read, refused = each_damage(
        lambda: checkpoint(kind),
        tmp_path / "x.pth",
        lambda p: load_model("net.py:make", checkpoint=p, size=8),
    )
    assert refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["script", "exported"])
def test_damaged_networks(tmp_path: Path, kind: str) -> None:
    _read, refused = each_damage(
        lambda: checkpoint(kind), tmp_path / "x.pt2", lambda p: load_model(checkpoint=p, size=8)
    )
    assert refused


MANIFEST = 'path,label\na.png,cat\n\'b.png\',"dog"\n"c;d.png",bird\n'
ROWS = '{"path": "a.png", "label": "cat"}\n{"path": "b.png", "label": ["dog", 2]}\n'


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("x.csv", MANIFEST, lambda p: open_data([str(p)])),
        ("x.jsonl", ROWS, lambda p: open_data([str(p)])),
        ("x.txt", "cat\ndog\nbird\n", read_labels),
        ("labels.json", json.dumps({"0": ["n01", "cat"], "1": ["n02", "dog"]}), read_labels),
        ("list.json", json.dumps(["cat", "dog"]), read_labels),
        (
            "boxes.json",
            json.dumps({"a.png": {"boxes": [[1, 2, 3, 4]]}}),
            lambda p: read_outlines(str(p)),
        ),
        (
            "polygons.json",
            json.dumps({"a.png": {"polygons": [[[1, 2], [3, 4], [5, 0]]], "label": "cat"}}),
            lambda p: read_outlines(str(p)),
        ),
    ],
)
def test_damaged_texts(
    tmp_path: Path, name: str, text: str, read: Callable[[Path], object]
) -> None:
    each_damage(text.encode, tmp_path / name, read, times=5 * TIMES)


CELLS = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_any_manifest_is_a_list_or_a_line(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    """What JSON lines say is what is listed, whatever letters they are of."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"path": p, "label": c}) + "\n" for p, c in rows))
    found = open_data([str(path)])
    names = [found.classes[e.label] if e.label is not None else "" for e in found.examples]  # type: ignore[index]
    assert names == [label.strip() for _path, label in rows]
    for index in range(len(found)):
        with pytest.raises(CnnvizError, match=r"\A[^\n]+\Z"):
            found.open(index)
    (tmp_path / "x.csv").write_text("".join(f"{p},{c}\n" for p, c in rows), encoding="utf-8")
    try:
        open_data([str(tmp_path / "x.csv")])
    except CnnvizError as error:
        assert str(error)  # noqa: PT017
