"""Similarity to a reference image: cosines by a plain loop, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import image_of
from PIL import Image
from torch import Tensor
from torch.nn import functional

from cnnviz.cli.main import run
from cnnviz.core import load_model
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.embeddings.likeness import like
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice

SIDE = 16
SOURCE = """
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self, end=lambda x: x, last=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.more = nn.Conv2d(6, 8, 3, bias=False)
        self.embedding = nn.Linear(8, last, bias=False)
        self.end = end
    def forward(self, x):
        return self.end(self.embedding(self.more(self.conv(x).relu()).relu().mean((2, 3))))

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net(last=8)
        self.fc = nn.Linear(8, 5)
    def forward(self, x):
        return self.fc(self.net.more(self.net.conv(x).relu()).relu().mean((2, 3)))

class Undecided(Head):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) < 1e9 else x

def unit(): return Net(lambda x: functional.normalize(x, dim=1))
def named(): return Net()
def classifier(): return Head()
def untraceable(): return Undecided()
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    pixels = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "reference.png")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "black.png")
    return str(path)


def made(source: str, name: str) -> Model:
    return load_model(f"{source}:{name}", size=SIDE, mean=(0,), std=(1,))


def by_hand(model: Model, name: str, images_NCHW: Tensor) -> Tensor:
    """Features by the layers of the network."""
    net = model.module if name in ("unit", "named") else model.module.net
    means = net.more(net.conv(images_NCHW).relu()).relu().mean((2, 3))
    return net.embedding(means) if name in ("unit", "named") else means


@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
@pytest.mark.parametrize("name", ["unit", "named", "classifier", "untraceable"])
def test_numbers_are_cosines_by_a_loop(source: str, name: str, engine: EngineChoice) -> None:
    reference = Path(source).parent / "reference.png"
    model = made(source, name)
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    asked = OcclusionSpec(masks=((4, 4),), stride=4, fill="black", engine=engine)
    result = occlude(like(model, reference), image_of(pixels), asked)
    if name != "untraceable":
        assert result.engine == engine.value
    with torch.no_grad():
        known = torch.from_numpy(np.asarray(Image.open(reference)).copy()).movedim(2, 0) / 255
        expected = []
        for y0, x0, y1, x1 in result.targets[0].grid.boxes_P4.tolist():
            covered = pixels.clone()
            covered[:, y0:y1, x0:x1] = 0
            pair = by_hand(model, name, torch.stack([covered, known]))
            expected.append(float(functional.cosine_similarity(pair[0], pair[1], dim=0)))
    panel = result.targets[0]
    assert panel.class_ == "like reference.png"
    assert panel.probabilities_P.tolist() == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-4


def test_a_layer_can_be_compared(source: str) -> None:
    reference = Path(source).parent / "reference.png"
    model = like(made(source, "classifier"), reference, "net.conv")
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    known = torch.from_numpy(np.asarray(Image.open(reference)).copy()).movedim(2, 0) / 255
    conv = made(source, "classifier").module.net.conv
    with torch.no_grad():
        both = conv(torch.stack([pixels, known])).mean((2, 3))
        expected = float(functional.cosine_similarity(both[0], both[1], dim=0))
        assert float(model.logits(pixels[None])) == pytest.approx(expected, abs=1e-6)


def test_an_image_is_like_itself(source: str) -> None:
    reference = Path(source).parent / "reference.png"
    pixels = torch.from_numpy(np.asarray(Image.open(reference)).copy()).movedim(2, 0) / 255
    result = occlude(like(made(source, "unit"), reference), image_of(pixels))
    assert result.targets[0].value == pytest.approx(1, abs=1e-6)
    assert result.measured.head.text(1.0) == "similarity 1.00"


@pytest.mark.parametrize("name", ["unit", "named"])
def test_an_embedding_is_not_taken_for_classes(source: str, name: str) -> None:
    model = made(source, name)
    assert not model.head.has_classes
    assert any("features of an embedding and not classes" in note for note in model.notes)
    with pytest.raises(UsageError, match=r"features of an embedding, not classes: --like REF"):
        occlude(model, image_of(torch.rand(3, SIDE, SIDE)))


def test_what_cannot_be_compared_is_refused(source: str) -> None:
    folder = Path(source).parent
    with pytest.raises(CnnvizError, match=r"black.png' in net.py:unit are all 0 or not finite"):
        like(made(source, "unit"), folder / "black.png")
    with pytest.raises(CnnvizError, match=r"nothing\.png"):
        like(made(source, "unit"), folder / "nothing.png")
    with pytest.raises(UsageError, match=r"no layer 'nope' in net.py:classifier"):
        like(made(source, "classifier"), folder / "reference.png", "nope")


def test_both_explains_the_reference_too(
    source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run with the two files exchanged does; and the next image's run is not changed by it."""
    folder = Path(source).parent
    monkeypatch.chdir(folder)
    for seed, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    line = ["--model", "net.py:named", "--size", str(SIDE), "--mean", "0", "--std", "1"]
    line += ["--mask", "8", "--stride", "4", "--pictures", "none", "--quiet"]

    def results(out: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = json.loads((folder / out / "summary.json").read_text())[
            "results"
        ]
        return content

    shown = [*line[:-3], "--pictures", "overlay", "--quiet"]
    towards = ["--like", "reference.png", "--both", "--out", "x"]
    assert run(["occlude", "a.png", "b.png", *shown, *towards]) == 0
    for name, entry in zip("ab", results("x"), strict=True):
        assert run(["occlude", "reference.png", *line, "--like", f"{name}.png", "--out", name]) == 0
        other = results(f"{name}/reference")[0]["targets"][0]
        assert entry["reference"] == other
        assert entry["reference"]["class"] == f"like {name}.png"
        assert (folder / "x" / name / "both.png").exists()
        assert run(["render", f"x/{name}/reference.npz", "--out", f"drawn-{name}", "--quiet"]) == 0
        drawn = results(f"drawn-{name}/reference")[0]["targets"][0]
        assert {key: drawn[key] for key in drawn} == {key: other[key] for key in drawn}
    assert run(["occlude", "a.png", *line, "--like", "reference.png", "--out", "y"]) == 0
    assert results("y/a")[0]["targets"] == results("x")[0]["targets"]
    assert run(["occlude", "a.png", *line, "--both", "--out", "z"]) == 2
    assert "--both needs --like" in capsys.readouterr().err
