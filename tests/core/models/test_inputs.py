"""Networks with several inputs: which one is the image, and what the others hold."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import image_of
from PIL import Image
from torch import Tensor

from cnnviz.core import load_model
from cnnviz.core.data.inputs import read_input
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.options import name_and_file
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice

SIDE = 12
SOURCE = """
import torch
from torch import nn

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.out = nn.Conv2d(3, 4, 3), nn.Linear(3, 4), nn.Linear(8, 5)
    def forward(self, image, table):
        maps = self.conv(image).relu().mean((2, 3))
        return self.out(torch.cat([maps, self.fc(table)], 1))

class Depth(Table):
    '''The image comes second; the kind of camera is a whole number.'''
    def __init__(self):
        super().__init__()
        self.kind = nn.Embedding(3, 4)
    def forward(self, camera, left, right=None):
        maps = self.conv(left - (0 if right is None else right)).relu().mean((2, 3))
        return self.out(torch.cat([maps, self.kind(camera)], 1))

class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
    def forward(self, x):
        return self.conv(x).mean(2)

class Volume(Series):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3)

class Recurrent(Series):
    def __init__(self):
        super().__init__()
        self.conv = nn.LSTM(3, 4)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "row.json").write_text(json.dumps({"age": 2, "height": -1.5, "weight": 0.5}))
    (tmp_path / "row.csv").write_text("age,height,weight\n2,-1.5,0.5\n")
    (tmp_path / "bare.csv").write_text("2,-1.5,0.5\n")
    np.save(tmp_path / "row.npy", np.array([2, -1.5, 0.5]))
    np.save(tmp_path / "camera.npy", np.array(2))
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "right.png")
    return tmp_path


def made(folder: Path, name: str, cover: str | None = None, **files: str) -> Model:
    inputs = [(key, partial(read_input, key, str(folder / file))) for key, file in files.items()]
    return load_model(
        f"{folder / 'net.py'}:{name}", size=SIDE, mean=(0,), std=(1,), inputs=inputs, cover=cover
    )


def pixels() -> Tensor:
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
@pytest.mark.parametrize("file", ["row.json", "row.csv", "bare.csv", "row.npy"])
def test_a_row_of_a_table_stays_fixed(folder: Path, file: str, engine: EngineChoice) -> None:
    model = made(folder, "Table", table=file)
    asked = OcclusionSpec(masks=((4, 4),), stride=4, fill="black", engine=engine, targets=("3",))
    result = occlude(model, image_of(pixels()), asked)
    assert result.engine == engine.value
    net, row = model.module, torch.tensor([[2, -1.5, 0.5]])
    expected = []
    for y0, x0, y1, x1 in result.targets[0].grid.boxes_P4.tolist():
        covered = pixels()
        covered[:, y0:y1, x0:x1] = 0
        with torch.no_grad():
            maps = net.conv(covered[None]).relu().mean((2, 3))  # type: ignore[operator]
            logits = net.out(torch.cat([maps, net.fc(row)], 1))  # type: ignore[operator]
        expected.append(float(logits.softmax(1)[0, 3]))
    assert result.targets[0].probabilities_P.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cover", [None, "left", "right"])
def test_one_image_is_covered_and_the_other_stays(folder: Path, cover: str | None) -> None:
    other = "left" if cover == "right" else "right"
    model = made(folder, "Depth", cover, camera="camera.npy", **{other: "right.png"})
    known = torch.from_numpy(np.asarray(Image.open(folder / "right.png")).copy()).movedim(2, 0)
    difference = pixels() - known / 255
    net = model.module
    with torch.no_grad():
        if cover == "right":
            difference = -difference
        maps = net.conv(difference[None]).relu().mean((2, 3))  # type: ignore[operator]
        kind = net.kind(torch.tensor([2]))  # type: ignore[operator]
        expected = net.out(torch.cat([maps, kind], 1))[0]  # type: ignore[operator]
        got = model.logits(torch.stack([pixels(), pixels()]))
    assert torch.allclose(got, expected.expand(2, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "cover", "files", "message"),
    [
        (
            "Table",
            None,
            {},
            r"\(its forward takes image \(N, 3, H, W\), table \(N, 3\)\); --input table=F",
        ),
        ("Table", "table", {}, r"--input image=FILE gives 'image'"),
        (
            "Depth",
            None,
            {},
            r"takes camera \(whole numbers below 3\), left, right \(optional\)\); --input left=",
        ),
        ("Table", None, {"tabel": "row.json"}, r"has no input 'tabel'; its forward takes image"),
        ("Table", "depth", {"table": "row.json"}, r"has no input 'depth'"),
        ("Table", "table", {"table": "row.json"}, r"the input 'table' of .* is given twice"),
        ("Table", None, {"table": "row.json", "image": "right.png"}, r"gives all inputs of"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    folder: Path, name: str, cover: str | None, files: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        made(folder, name, cover, **files)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.json", '{"age": "old"}'),
        ("b.json", "[1, [2, 3]]"),
        ("c.json", "[1, NaN]"),
        ("d.csv", "1,2\n3,4\n5,6\n"),
        ("e.csv", "one,two\n"),
        ("f.npy", "no array"),
        ("g.png", "no image"),
        ("h.json", "[]"),
        ("i.json", "[" + 5000 * "9" + "]"),
    ],
)
def test_files_that_hold_no_input_are_refused(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(CnnvizError, match=rf"{file[:1]}\.{file[2:]}") as caught:
        made(folder, "Table", table=file)
    assert "sys." not in str(caught.value)


def test_a_row_of_another_length_is_named_and_not_the_size_of_the_image(folder: Path) -> None:
    (folder / "short.json").write_text("[1, 2]")
    with pytest.raises(CnnvizError, match=r"--input gives 'table' of shape \(2,\)") as caught:
        made(folder, "Table", table="short.json")
    assert "--size" not in str(caught.value)


@pytest.mark.parametrize("number", [np.uint64(2**64 - 1), np.float64(1e300), np.float64(-1e300)])
def test_numbers_that_do_not_fit_are_refused(folder: Path, number: np.generic) -> None:
    np.save(folder / "big.npy", np.array([number, 1, 2], number.dtype))
    with pytest.raises(CnnvizError, match=r"table=.*big\.npy cannot be read: .* too large for"):
        made(folder, "Table", table="big.npy")


@pytest.mark.parametrize("text", ["table", "=row.json", "table=", "a b=c"])
def test_inputs_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"--input takes NAME=FILE"):
        name_and_file(text, "--input")


@pytest.mark.parametrize(
    ("name", "what"),
    [("Series", "a sequence"), ("Recurrent", "a sequence"), ("Volume", "5 dimensions")],
)
def test_other_dimensions_are_refused_without_advice_on_size(
    folder: Path, name: str, what: str
) -> None:
    with pytest.raises(CnnvizError, match=f"cnnviz explains 2-D images, .*{what}") as caught:
        made(folder, name)
    assert "--size" not in str(caught.value)
