"""Arrays and multi-band TIFF for networks of any number of channels."""

import ast
import gc
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from cnnviz.cli.main import COMMANDS, app
from cnnviz.core import files, load_model
from cnnviz.core.data import rasters
from cnnviz.core.data.datasets import batches, open_data
from cnnviz.core.data.images import read_image
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.models.preprocess import Preprocess, adjust, plain
from cnnviz.core.output.drawing import image_pixels
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.masks import fill_picture
from cnnviz.occlusion.options import EngineChoice

SIDE, NEAR = 16, 5
SOURCE = """
import torch
from torch import nn

class InfraRed(nn.Module):
    '''Class 1 by the mean of the fourth band over the picture, class 2 by that of the first.'''
    def __init__(self, channels):
        super().__init__()
        self.near = nn.Conv2d(channels, 3, 5, padding=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.near.weight.zero_()
            self.near.bias.zero_()
            self.near.weight[1, -1] = 0.4
            self.near.weight[2, 0] = 0.4
    def forward(self, x):
        return self.pool(self.near(x)).flatten(1)

def two(): return InfraRed(2)
def four(): return InfraRed(4)
def thirteen(): return InfraRed(13)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return str(path)


def wants(channels: int, **given: Any) -> Preprocess:
    none: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return Preprocess(None, (SIDE, SIDE), **{**none, **given})


def bands(channels: int = 4) -> NDArray[np.uint8]:
    generator = np.random.default_rng(channels)
    return generator.integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)


def _npy(path: Path, values: NDArray[Any]) -> Path:
    np.save(path.with_suffix(".npy"), values)
    return path.with_suffix(".npy")


def _planes(path: Path, values: NDArray[Any]) -> Path:
    return _npy(path, np.ascontiguousarray(np.moveaxis(values, 2, 0)))


def _npz(path: Path, values: NDArray[Any]) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), label=np.arange(3), picture=values)
    return path.with_suffix(".npz")


def _tiff(path: Path, values: NDArray[Any]) -> Path:
    made = path.with_suffix(".tif")
    tifffile.imwrite(made, values, photometric="minisblack", planarconfig="contig")
    return made


def _tiff_of_planes(path: Path, values: NDArray[Any]) -> Path:
    made = path.with_suffix(".tiff")
    tifffile.imwrite(made, np.moveaxis(values, 2, 0), photometric="minisblack")
    return made


FORMATS = [_npy, _planes, _npz, _tiff, _tiff_of_planes]
Write = Callable[[Path, NDArray[Any]], Path]


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_every_format_gives_the_same_channels(write: Write, channels: int, tmp_path: Path) -> None:
    values = bands(channels)
    image = read_image(write(tmp_path / "x", values), wants(channels))
    assert image.raster
    assert image.pixels.dtype == torch.float32
    assert np.array_equal(image.pixels.numpy(), values.transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_range_says_what_stands_for_0_and_1(write: Write, kind: type, tmp_path: Path) -> None:
    values = (bands().astype(np.int64) * 40).astype(kind)
    path = write(tmp_path / "x", values)
    with pytest.raises(CnnvizError, match=r"name with --range LOW,HIGH those that become 0 and 1"):
        read_image(path, wants(4))
    pixels = read_image(path, wants(4, scale=(100.0, 10_000.0))).pixels.numpy()
    right = (values.astype(np.float64) - 100) / 9900
    assert np.allclose(pixels, right.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("write", [_npy, _tiff])
def test_floats_between_0_and_1_are_taken_as_they_are(write: Write, tmp_path: Path) -> None:
    values = (bands() / 255).astype(np.float32)
    pixels = read_image(write(tmp_path / "x", values), wants(4)).pixels.numpy()
    assert np.array_equal(pixels, values.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(16, 16), (9, 12), (33, 20)])
def test_an_array_of_colours_is_the_picture(size: tuple[int, int], tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 24 * 30 * 3).reshape(24, 30, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.png")
    preprocess = adjust(plain((24, 30)), size, None, None)
    picture = read_image(tmp_path / "x.png", preprocess)
    array = read_image(_npy(tmp_path / "x", smooth), preprocess)
    assert (array.box_original, array.original_size) == (
        picture.box_original,
        picture.original_size,
    )
    # Pillow rounds a picture to bytes when it resizes it.
    assert (array.pixels - picture.pixels).abs().max() <= 1.01 / 255
    grey = read_image(_npy(tmp_path / "g", smooth[..., 0]), preprocess)
    assert torch.equal(grey.pixels[0], array.pixels[0])
    assert torch.equal(grey.pixels[0], grey.pixels[2])


def test_a_range_reads_tiffs_of_three_channels_too(tmp_path: Path) -> None:
    values = bands(3).astype(np.uint16) * 10
    pixels = read_image(_tiff(tmp_path / "x", values), wants(3, scale=(0.0, 2550.0))).pixels
    assert np.allclose(pixels.numpy(), values.transpose(2, 0, 1) / 2550)


def test_bands_are_drawn_as_asked(tmp_path: Path) -> None:
    values = bands(5)
    path = _npy(tmp_path / "x", values)
    assert np.array_equal(image_pixels(read_image(path, wants(5))), values[..., :3])
    chosen = image_pixels(read_image(path, wants(5, show=(4, 0, 2))))
    assert np.array_equal(chosen, values[..., [4, 0, 2]])
    grey = image_pixels(read_image(path, wants(5, show=(3,))))
    assert np.array_equal(grey, np.repeat(values[..., 3:4], 3, 2))
    two = image_pixels(read_image(_npy(tmp_path / "y", bands(2)), wants(2)))
    assert np.array_equal(two, np.repeat(bands(2)[..., :1], 3, 2))


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, ("harmed",)


def _pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Harmful()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _saved(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _zipped(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BAD = {
    "text.npy": (b"no array at all", "cannot be read as an array"),
    "empty.npy": (b"", "cannot be read as an array"),
    "short.npy": (_saved(bands())[:200], "cannot be read as an array"),
    "flat.npy": (_saved(np.zeros(7)), "has shape 7"),
    "nothing.npy": (_saved(np.zeros((0, 0, 4), np.float32)), "not an image, or too large"),
    "scalar.npy": (_saved(np.zeros(())), "has shape"),
    "five.npy": (_saved(bands(5)), "the network takes 4 channels"),
    "stack.npy": (_saved(np.zeros((2, 4, 8, 8), np.uint8)), "the network takes 4 channels"),
    "grey.npy": (_saved(bands()[..., 0]), "the network takes 4 channels"),
    "words.npy": (_saved(np.array([["a", "b"]])), "not numbers"),
    "yes.npy": (_saved(np.ones((8, 8, 4), bool)), "values of type bool"),
    "complex.npy": (_saved(np.ones((8, 8, 4), complex)), "values of type complex128"),
    "nan.npy": (_saved(np.full((8, 8, 4), np.nan)), "not finite"),
    "inf.npy": (_saved(np.full((8, 8, 4), np.inf, np.float16)), "not finite"),
    "pickled.npy": (_pickled(), "cannot be read as an array"),
    "pickled.npz": (_zipped(x=np.zeros((8, 8, 4)))[:-40], "cannot be read as an array"),
    "two.npz": (_zipped(x=bands(), y=bands()), "holds 2 arrays with 2 or 3 axes"),
    "none.npz": (_zipped(x=np.arange(3)), "holds 0 arrays with 2 or 3 axes"),
    "text.npz": (b"no archive", "cannot be read as an array"),
    "text.tif": (b"no picture", "cannot be read as an array"),
    "header.tif": (b"II*\0\x08\0\0\0", "cannot be read as an array"),
    "text.png": (b"no picture", "cannot be read as an array"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_raster_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CnnvizError, match=words) as caught:
        read_image(tmp_path / name, wants(4))
    assert "\n" not in str(caught.value)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("write", [_npy, _npz, _tiff])
def test_an_array_of_gigabytes_is_refused_unread(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x", bands())
    for module in (rasters, files):
        monkeypatch.setattr(module, "LARGEST", bands().nbytes - 1)
    with pytest.raises(CnnvizError, match="bytes"):
        read_image(path, wants(4))


def test_other_refusals(tmp_path: Path, source: str) -> None:
    with pytest.raises(CnnvizError, match="no file"):
        read_image(tmp_path / "gone.npy", wants(4))
    pickle_file = tmp_path / "x.npy"
    pickle_file.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CnnvizError, match="cannot be read"):
        read_image(pickle_file, wants(4))
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    with pytest.raises(CnnvizError, match="has shape 9x9x3, and the network takes 4 channels"):
        read_image(tmp_path / "x.png", wants(4))
    with pytest.raises(UsageError, match="is a colour; the network takes 4 channels"):
        fill_picture("#ff0000", torch.zeros(4, 8, 8), wants(4))
    with pytest.raises(UsageError, match=r"given for 3 channels; .* takes 4"):
        load_model(f"{source}:four", size=SIDE, mean=(1, 2, 3))
    for show in ((5,), (0,), (1, 2)):
        with pytest.raises(UsageError, match="one or three of the channels 1 to 4"):
            load_model(f"{source}:four", size=SIDE, show=show)
    with pytest.raises(UsageError, match="as many as each other"):
        load_model(f"{source}:four", size=SIDE, mean=(1, 2, 3), std=(1, 2))


def test_pictures_with_alpha_feed_four_channels(tmp_path: Path) -> None:
    Image.fromarray(bands()).save(tmp_path / "x.png")
    pixels = read_image(tmp_path / "x.png", wants(4)).pixels
    assert np.array_equal(pixels.numpy(), bands().transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize(("name", "channels"), [("two", 2), ("four", 4), ("thirteen", 13)])
def test_the_network_says_how_many_channels_it_takes(source: str, name: str, channels: int) -> None:
    model = load_model(f"{source}:{name}", size=SIDE)
    assert model.preprocess.mean == (0.0,) * channels
    assert f"takes {channels} channels; values in 0…1 are not normalised" in model.notes[0]
    one = load_model(f"{source}:{name}", size=SIDE, mean=(0.25,))
    assert one.preprocess.mean == (0.25,) * channels
    assert one.preprocess.std == (1.0,) * channels
    each = tuple(k / 20 for k in range(channels))
    given = load_model(f"{source}:{name}", size=SIDE, mean=each, std=(0.5,))
    assert (given.preprocess.mean, given.preprocess.std) == (each, (0.5,) * channels)
    assert not given.notes
    pixels = torch.rand(channels, 3, 3)
    normal = (pixels - torch.tensor(each).view(-1, 1, 1)) / 0.5
    assert torch.equal(given.preprocess.normalise(pixels), normal)


def planted(path: Path, channels: int = 4) -> Path:
    """The last band is bright at rows 4 to 9 and columns 8 to 13, the first dimly everywhere."""
    values = np.zeros((SIDE, SIDE, channels), np.float32)
    values[4:10, 8:14, -1] = 1
    values[..., 0] = 0.05
    return _npy(path, values)


@pytest.mark.parametrize("engine", list(EngineChoice))
@pytest.mark.parametrize("fill", ["mean", "black", "gray", "white", "image-mean", "blur", "noise"])
def test_occlusion_is_the_plain_loop(
    source: str, engine: EngineChoice, fill: str, tmp_path: Path
) -> None:
    model = load_model(f"{source}:four", size=SIDE, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,))
    image = read_image(planted(tmp_path / "x"), model.preprocess)
    spec = OcclusionSpec(masks=((4, 4),), stride=3, fill=fill, engine=engine, targets=("1",))
    panel = occlude(model, image, spec).panels[0]
    cover = fill_picture(fill, image.pixels, model.preprocess, spec.seed)
    drops = panel.probability - panel.probabilities_P
    assert float(drops.abs().max()) > 1e-3
    for (top, left, bottom, right), found in zip(panel.grid.boxes_P4.tolist(), drops, strict=True):
        covered = image.pixels.clone()
        covered[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
        alone = probability(model, covered)
        assert float(found) == pytest.approx(panel.probability - alone, abs=1e-5)


@torch.no_grad()
def probability(model: Model, pixels_CHW: torch.Tensor) -> float:
    """Of class 1."""
    normal = model.preprocess.normalise(pixels_CHW)[None]
    return float(model.logits(normal).softmax(1)[0, 1])


def test_the_planted_band_is_what_the_map_shows(source: str, tmp_path: Path) -> None:
    model = load_model(f"{source}:thirteen", size=SIDE)
    image = read_image(planted(tmp_path / "x", 13), model.preprocess)
    panel = occlude(model, image, OcclusionSpec(masks=((6, 6),), stride=2, fill="black")).panels[0]
    assert panel.target == 1
    assert panel.max_drop_box == (4, 8, 10, 14)


def test_data_sets_of_arrays_stream(source: str, tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        planted(tmp_path / "data" / name)
    (tmp_path / "data" / "b" / "bad.npy").write_bytes(b"no array")
    data = open_data([str(tmp_path / "data")])
    assert data.classes == ("a", "b")
    errors = []
    loaded = list(batches(data, wants(4), 8, on_error=lambda *error: errors.append(error)))
    assert sum(len(batch.indices) for batch in loaded) == 3
    assert loaded[0].images.shape[1:] == (4, SIDE, SIDE)
    assert "cannot be read as an array" in errors[0][1]


class Finalised:
    """Garbage whose collection runs Python, as that of many objects does."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        sum(range(50))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_read_while_other_threads_parse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    # Python 3.11 then fails now and then by itself: about one header in twenty under this load.
    picture = np.zeros((4, 4, 3), np.uint8)
    files = [tmp_path / f"{number}{suffix}" for number in range(400)]
    for file in files:
        np.save(file, picture) if suffix == ".npy" else np.savez(file, picture)
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    parse = ast.literal_eval

    def parse_amid_garbage(header: str) -> object:
        Finalised()
        return parse(header)

    def read(file: Path, deeper: int) -> int:
        return read(file, deeper - 1) if deeper else rasters.read_raster(file, wants(3)).size

    monkeypatch.setattr(ast, "literal_eval", parse_amid_garbage)
    gc.set_threshold(5, 2, 2)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            depths = (number % 7 for number in range(len(files)))
            assert set(pool.map(read, files, depths)) == {picture.size}
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


def test_python_s_own_failure_is_not_retried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 3), np.uint8))
    calls = []

    def load(*_: object, **__: object) -> None:
        calls.append(1)
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(SystemError):
        rasters.read_raster(tmp_path / "a.npy", wants(3))
    assert 1 < len(calls) < 100


def test_a_folder_of_pictures_leaves_arrays_beside_them_alone(tmp_path: Path) -> None:
    planted(tmp_path / "a")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert [Path(e.path).name for e in open_data([str(tmp_path)]).examples] == ["x.png"]


def test_a_manifest_names_arrays(tmp_path: Path) -> None:
    planted(tmp_path / "a")
    (tmp_path / "list.csv").write_text("a.npy\n")
    data = open_data([str(tmp_path / "list.csv")])
    assert data.working(0, wants(4)).pixels.shape == (4, SIDE, SIDE)


def arguments(command: str, root: Path) -> list[str]:
    photo, data = str(root / "data" / "1" / "a.npy"), str(root / "data")
    return {
        "occlude": [photo, "--show", "4,3,2"],
        "render": [str(root / "occlude" / "a")],
        "layers": [],
        "filters": ["--layer", "near"],
        "activations": [photo, "--layer", "near"],
        "saliency": [photo, "--method", "grad-cam", "--layer", "near"],
        "trust": [photo],
        "reasons": [photo, "--cell", "16", "--grid", "2"],
        "diff": [str(root / "audit"), str(root / "audit")],
        "audit": [data, "--top", "2"],
        "max-patches": [data, "--layer", "near"],
        "ablate": [data, "--filters", "near:1"],
        "tsne": [data, "--perplexity", "2"],
    }[command]


def test_every_command_takes_four_channels(source: str, tmp_path: Path) -> None:
    for number in range(10):
        place = tmp_path / "data" / "12"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = np.load(planted(place / "abcdefghij"[number]))
        values += np.random.default_rng(number).random(values.shape, np.float32) / 20
        np.save(place / "abcdefghij"[number], values * 1000)
    options = ["--model", f"{source}:four", "--size", str(SIDE), "--range", "0,1100"]
    for command in COMMANDS:
        if command in ("models", "merge", "rerun", "report", "doctor", "detect"):
            continue
        own = arguments(command, tmp_path)
        given = options if command not in ("render", "diff") else []
        out = ["--out", str(tmp_path / command), "--quiet"]
        ran = CliRunner().invoke(app, [command, *own, *given, *out])
        assert ran.exit_code == 0, (command, ran.output, ran.exception)
        found = list((tmp_path / command).rglob("summary.json"))
        assert found
        assert json.loads(found[0].read_text())["command"] == command
