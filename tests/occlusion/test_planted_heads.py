"""Networks of every head whose evidence is known by construction: the map says where, and how much.

A picture of four bands is dark but for a bright square in some of them. The networks average a band
over the picture, so the covered share of a square is what a class loses, in closed form.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.models.load import Model
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice, Score

SIDE, SQUARE = 24, 6
PLACES = {0: (3, 3), 1: (3, 15), 2: (15, 3), 3: (15, 15)}
"""Band to the top and left of its square."""
SHARE = SQUARE**2 / SIDE**2
SOURCE = """
import torch
from torch import nn

class Bands(nn.Module):
    '''Value k: scale times the mean of band k over the picture, plus shift.'''
    def __init__(self, values, scale, shift):
        super().__init__()
        self.conv = nn.Conv2d(4, values, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.conv.weight.copy_(scale * torch.eye(4)[:values, :, None, None])
            self.conv.bias.fill_(shift)
    def forward(self, x):
        return self.pool(self.conv(x)).flatten(1)

def binary(): return Bands(1, 96.0, -3.0)
def several(): return Bands(4, 96.0, -3.0)
def values(): return Bands(4, 160.0, 1.0)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(SOURCE)
    return str(tmp_path / "net.py")


def made(source: str, name: str, head: str) -> Model:
    return load_model(f"{source}:{name}", size=SIDE, mean=(0,), std=(1,), head=head)


def picture(folder: Path, model: Model) -> WorkingImage:
    bands = np.zeros((SIDE, SIDE, 4), np.float32)
    for band, (top, left) in PLACES.items():
        bands[top : top + SQUARE, left : left + SQUARE, band] = 1
    np.save(folder / "bands.npy", bands)
    return read_image(folder / "bands.npy", model.preprocess)


def spec(engine: EngineChoice, target: str, score: Score = Score.PROBABILITY) -> OcclusionSpec:
    masks = ((SQUARE, SQUARE),)
    return OcclusionSpec(
        masks=masks, stride=3, fill="black", engine=engine, targets=(target,), score=score
    )


def lost(boxes_P4: Tensor, band: int) -> Tensor:
    """(P,) the share of the band's square that each mask covers."""
    top, left = PLACES[band]
    y0, x0, y1, x1 = boxes_P4.T
    high = (y1.clamp_max(top + SQUARE) - y0.clamp_min(top)).clamp_min(0)
    wide = (x1.clamp_max(left + SQUARE) - x0.clamp_min(left)).clamp_min(0)
    return high * wide / SQUARE**2


def sigmoid(value: Tensor) -> Tensor:
    return 1 / (1 + (-value).exp())


ENGINES = [EngineChoice.FULL, EngineChoice.INCREMENTAL]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_logit_is_a_class_and_its_opposite(
    source: str, engine: EngineChoice, tmp_path: Path
) -> None:
    model = made(source, "binary", "auto")
    assert model.labels == ("negative", "positive")
    image = picture(tmp_path, model)
    yes = occlude(model, image, spec(engine, "positive")).panels[0]
    no = occlude(model, image, spec(engine, "negative")).panels[0]
    shown = 1 - lost(yes.grid.boxes_P4, 0)
    by_hand = sigmoid(96 * SHARE * shown.double() - 3)
    assert yes.probability == pytest.approx(1 / (1 + math.exp(3 - 96 * SHARE)), abs=1e-6)
    torch.testing.assert_close(yes.probabilities_P.double(), by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close(no.probabilities_P, 1 - yes.probabilities_P, atol=1e-6, rtol=0)
    assert yes.max_drop_box == (3, 3, 9, 9)
    assert no.max_drop <= 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("band", list(PLACES))
def test_classes_on_their_own_have_each_their_own_place(
    source: str, engine: EngineChoice, band: int, tmp_path: Path
) -> None:
    model = made(source, "several", "sigmoid")
    image = picture(tmp_path, model)
    panel = occlude(model, image, spec(engine, str(band))).panels[0]
    shown = 1 - lost(panel.grid.boxes_P4, band)
    by_hand = sigmoid(96 * SHARE * shown.double() - 3)
    torch.testing.assert_close(panel.probabilities_P.double(), by_hand, atol=1e-5, rtol=0)
    top, left = PLACES[band]
    assert panel.max_drop_box == (top, left, top + SQUARE, left + SQUARE)
    crosses = (by_hand < 0.5).double().mean()
    assert panel.flips is not None
    assert panel.flips.share == pytest.approx(float(crosses))
    assert 0 < panel.flips.share < 0.2


@pytest.mark.parametrize("engine", ENGINES)
def test_values_are_in_their_own_unit(source: str, engine: EngineChoice, tmp_path: Path) -> None:
    model = made(source, "values", "none")
    image = picture(tmp_path, model)
    for band in PLACES:
        panel = occlude(model, image, spec(engine, str(band), Score.LOGIT)).panels[0]
        assert panel.value == pytest.approx(160 * SHARE + 1, abs=1e-4)
        by_hand = 160 * SHARE * lost(panel.grid.boxes_P4, band)
        torch.testing.assert_close(panel.values_P, by_hand.double(), atol=1e-4, rtol=0)
        assert panel.max_drop == pytest.approx(160 * SHARE, abs=1e-4)
