"""The box of the evidence, where the drop saturates and where it does not."""

import pytest
import torch
from networks import image_of, model_of
from torch import nn
from torch.nn import functional

from cnnviz.audit.study import evidence
from cnnviz.occlusion.experiment import occlude
from cnnviz.occlusion.options import OcclusionSpec
from cnnviz.occlusion.results import Panel

SIDE, MASK, STRIDE = 40, 8, 2
Box = tuple[int, int, int, int]


class Hard(nn.Module):
    """Class 1 where at least `count` whole squares are white, with no part of them missing."""

    def __init__(self, side: int, count: int = 1) -> None:
        super().__init__()
        self.side, self.count = side, count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = functional.avg_pool2d(x.amin(1, keepdim=True), self.side, 1) > 1 - 1e-4
        seen = (whole.sum((1, 2, 3)) >= self.count).to(x)
        rest = x.mean((1, 2, 3))  # what else a mask covers matters a little
        return torch.stack([6 - 4 * rest, 12 * seen], 1)


class Soft(nn.Module):
    """The logit of class 1 is the brightness of one place."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.y0, self.x0, self.y1, self.x1 = box

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        there = x[:, :, self.y0 : self.y1, self.x0 : self.x1].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(there), 12 * there], 1)


def panel_of(network: nn.Module, squares: list[Box], fill: str = "black") -> Panel:
    pixels = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.6
    for y0, x0, y1, x1 in squares:
        pixels[:, y0:y1, x0:x1] = 1
    spec = OcclusionSpec(((MASK, MASK),), STRIDE, fill=fill, targets=("1",))
    return occlude(model_of(network, (SIDE, SIDE), ["0", "1"]), image_of(pixels), spec).panels[0]


def square(y: int, x: int, side: int) -> Box:
    return y, x, y + side, x + side


def holds(outer: Box, inner: Box) -> bool:
    return all(a <= b for a, b in zip(outer[:2], inner[:2], strict=True)) and all(
        a >= b for a, b in zip(outer[2:], inner[2:], strict=True)
    )


@pytest.mark.parametrize("side", [3, 6, 8, 13])
@pytest.mark.parametrize("place", [(0, 0), (0, 17), (1, 27), (12, 13), (15, 20), (27, 26)])
def test_a_shortcut_that_saturates_is_wholly_in_its_box(side: int, place: tuple[int, int]) -> None:
    there = square(*place, side)
    box, position = evidence(panel := panel_of(Hard(side), [there]))
    assert holds(box, there)
    assert max(box[2] - box[0], box[3] - box[1]) <= side + 2 * MASK
    assert panel.winners_P[position] == 0


def test_a_shortcut_that_most_masks_touch_is_wholly_in_its_box() -> None:
    there = square(10, 11, 20)
    panel = panel_of(Hard(20), [there])
    assert panel.mean_drop > panel.max_drop / 2
    assert holds(evidence(panel)[0], there)


def test_the_corner_of_the_image_too() -> None:
    there = square(SIDE - 4, SIDE - 4, 4)
    assert evidence(panel_of(Hard(4), [there]))[0] == square(SIDE - MASK, SIDE - MASK, MASK)


@pytest.mark.parametrize("place", [(0, 0), (10, 14), (16, 32)])
def test_soft_evidence_is_in_the_mask_that_hurts_most(place: tuple[int, int]) -> None:
    there = square(*place, MASK)
    panel = panel_of(Soft(there), [there])
    assert panel.max_drop_box == there
    assert evidence(panel) == (there, int(panel.values_P.argmax()))


def test_of_two_squares_that_are_both_needed_one_is_taken_whole() -> None:
    first, second = square(4, 4, 6), square(22, 21, 6)
    box, _ = evidence(panel_of(Hard(6, count=2), [first, second]))
    assert holds(box, first) != holds(box, second)


def test_a_map_without_evidence_keeps_its_largest_drop() -> None:
    panel = panel_of(Soft(square(4, 4, 9)), [], fill="white")
    assert panel.max_drop <= 0
    assert evidence(panel)[0] == panel.max_drop_box


def test_evidence_that_is_everywhere_is_no_place_of_many_masks() -> None:
    panel = panel_of(Soft((0, 0, SIDE, SIDE)), [])
    assert panel.mean_drop > panel.max_drop / 2
    assert evidence(panel)[0] == panel.max_drop_box
