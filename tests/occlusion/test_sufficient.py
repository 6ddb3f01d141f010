"""Networks whose evidence is known by construction: what suffices for them, and what loses them."""

import math
from pathlib import Path

import pytest
import torch
from networks import image_of
from torch import Tensor

from cnnviz.core import UsageError, WorkingImage, load_model
from cnnviz.core.models.load import Model
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.results import Sufficiency
from cnnviz.occlusion.sufficient import HELD

# A 32 x 32 picture has cells of 2 x 2. Place A is 3 x 3 cells, B as large, C speaks against.
A, B = (slice(4, 10), slice(4, 10)), (slice(20, 26), slice(18, 24))
CELLS = 9
WEIGHT, BIAS = 12.0, 4.0
NET = f"""
import torch
from torch import nn


class Planted(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        a, b, c = (
            x[:, 0, place[0], place[1]].mean((1, 2))
            for place in (
                (slice(4, 10), slice(4, 10)),
                (slice(20, 26), slice(18, 24)),
                (slice(4, 10), slice(22, 28)),
            )
        )
        seen = {{"one": a, "either": torch.maximum(a, b), "against": a - c / 2}}[self.kind]
        if self.kind == "value":
            return seen[:, None]
        margin = {WEIGHT} * seen - {BIAS}
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def one():
    return Planted("one")


def either():
    return Planted("either")


def against():
    return Planted("against")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "planted.py"
    path.write_text(NET)
    return path


def made(source: Path, kind: str, head: str = "softmax") -> Model:
    return load_model(f"{source}:{kind}", size=32, head=head, mean=[0.0], std=[1.0])


def picture() -> WorkingImage:
    return image_of(torch.ones(3, 32, 32))


def found(model: Model, target: str = "0") -> Sufficiency:
    spec = OcclusionSpec(sufficient=True, fill="black", targets=(target,))
    (result,) = occlude(model, picture(), spec).sufficient or ()
    return result


def probability(seen: float) -> float:
    return 1 / (1 + math.exp(BIAS - WEIGHT * seen))


def needed(base: float) -> int:
    """The fewest of a place's cells that hold nine tenths of the probability."""
    return next(n for n in range(CELLS + 1) if probability(n / CELLS) >= HELD * base)


def lost(full: float) -> int:
    """The fewest cells of a place that take the margin below zero."""
    return next(n for n in range(CELLS + 1) if probability(full - n / CELLS) < 0.5)


def outside(region: Tensor, *places: tuple[slice, slice]) -> int:
    rest = region.clone()
    for place in places:
        rest[place] = False
    return int(rest.sum())


def test_one_place_suffices_and_its_loss_is_the_classs(source: Path) -> None:
    result = found(made(source, "one"))
    assert result.reading == pytest.approx(probability(1))
    assert int(result.region.cells_rc.sum()) == needed(probability(1))
    assert outside(result.pixels_of(result.region), A) == 0
    assert result.region.share == pytest.approx(needed(probability(1)) / 256)
    assert result.losing is not None
    assert int(result.losing.cells_rc.sum()) == lost(1.0)
    assert outside(result.pixels_of(result.losing), A) == 0
    rest = 1 - needed(probability(1)) / CELLS
    assert result.without == pytest.approx(probability(rest), abs=1e-6)
    assert result.redundancy == pytest.approx(probability(rest) / probability(1), abs=1e-5)


def test_of_two_places_either_suffices_and_both_must_go(source: Path) -> None:
    model = made(source, "either")
    assert occlude(model, picture(), OcclusionSpec(fill="black")).panels[0].max_drop == 0
    result = found(model)
    region = result.pixels_of(result.region)
    assert int(result.region.cells_rc.sum()) == needed(probability(1))
    assert min(outside(region, A), outside(region, B)) == 0
    assert result.redundancy == pytest.approx(1)
    assert result.losing is not None
    assert int(result.losing.cells_rc.sum()) == 2 * lost(1.0)
    assert outside(result.pixels_of(result.losing), A, B) == 0


def test_what_speaks_against_is_in_no_region_and_leaving_it_out_helps(source: Path) -> None:
    result = found(made(source, "against"))
    assert result.reading == pytest.approx(probability(0.5))
    for region in (result.region, result.losing):
        assert region is not None
        assert outside(result.pixels_of(region), A) == 0
    assert result.kept_curve.max() > result.reading + 0.1


def test_the_curves_go_from_the_fill_to_the_picture_and_back(source: Path) -> None:
    result = found(made(source, "one"))
    assert len(result.kept_curve) == len(result.covered_curve) == 257
    blank, whole = probability(0), probability(1)
    assert result.kept_curve[0] == pytest.approx(blank, abs=1e-6)
    assert result.kept_curve[-1] == pytest.approx(whole, abs=1e-6)
    assert result.covered_curve[0] == pytest.approx(whole, abs=1e-6)
    assert result.covered_curve[-1] == pytest.approx(blank, abs=1e-6)


def test_a_class_that_is_not_the_answer_is_lost_at_half_of_its_probability(source: Path) -> None:
    result = found(made(source, "against"), "1")
    assert result.lost_when == "its probability falls below 50 % of what it was"
    assert result.losing is not None
    assert result.losing.probability < 0.5 * result.reading


def test_a_wholly_covered_picture_may_keep_the_class(source: Path) -> None:
    dark = image_of(torch.zeros(3, 32, 32))
    spec = OcclusionSpec(sufficient=True, fill="black")
    (result,) = occlude(made(source, "one"), dark, spec).sufficient or ()
    assert result.index == 1
    assert result.losing is None
    assert result.region.share == 0  # the fill is the picture


def test_a_regression_has_nothing_to_hold_or_lose(source: Path) -> None:
    with pytest.raises(UsageError, match="--sufficient needs classes"):
        found(made(source, "one", "none"))


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 2)])
def test_strips_have_no_more_cells_than_squares(tmp_path: Path, size: tuple[int, int]) -> None:
    net = tmp_path / "mean.py"
    net.write_text(
        "import torch\nfrom torch import nn\n"
        "class Mean(nn.Module):\n"
        "    def forward(self, x):\n"
        "        seen = x.mean((1, 2, 3))\n"
        "        return torch.stack([8 * seen, 4 - 8 * seen], 1)\n"
        "def make():\n    return Mean()\n"
    )
    model = load_model(f"{net}:make", size=size, mean=[0.0], std=[1.0])
    image = image_of(torch.ones(3, *size))
    spec = OcclusionSpec(sufficient=True, fill="black")
    (result,) = occlude(model, image, spec).sufficient or ()
    assert result.region.cells_rc.numel() <= 400
    assert result.pixels_of(result.region).shape == size
    assert result.region.probability >= 0.9 * result.reading
