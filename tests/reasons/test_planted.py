"""Networks whose reasons are known by construction: their interactions, and the filters they use.

Three places of an image are red, green and blue. Of each layer one filter sees red, one green, one
blue; which ones is drawn, as are the cells of the places. The other filters see mixtures of the
colours, and nothing reads them.
"""

from itertools import combinations

import pytest
import torch
from networks import image_of, model_of
from torch import Tensor, nn

from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice
from cnnviz.occlusion.sufficient import Search
from cnnviz.reasons.carriers import NoEffect, carriers, patched_layers
from cnnviz.reasons.interactions import Interacting
from cnnviz.reasons.regions import find_regions
from cnnviz.reasons.results import Carriers, LayerCarriers

GRID, CELL, FILTERS = 5, 8, 8
KINDS = ("one", "either", "both", "two of three", "against")


class Planted(nn.Module):
    def __init__(self, kind: str, places: list[tuple[slice, slice]], seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.kind, self.places = kind, places
        self.seeing = [torch.randperm(FILTERS, generator=drawn)[:3].tolist() for _layer in range(2)]
        self.first = nn.Conv2d(3, FILTERS, 1, bias=False)
        self.second = nn.Conv2d(FILTERS, FILTERS, 1, bias=False)
        with torch.no_grad():
            for colour in range(3):
                one, two = self.seeing[0][colour], self.seeing[1][colour]
                self.first.weight[one] = torch.eye(3)[colour].view(3, 1, 1)
                self.second.weight[two] = torch.eye(FILTERS)[one].view(FILTERS, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        a, b, c = (
            x[:, filter_, rows, columns].mean((1, 2))
            for filter_, (rows, columns) in zip(self.seeing[1], self.places, strict=True)
        )
        if self.kind == "one":
            seen = a
        elif self.kind == "against":
            seen = a - c / 2
        elif self.kind == "either":
            seen = torch.maximum(a, b)
        elif self.kind == "both":
            seen = torch.minimum(a, b)
        else:
            seen = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
        margin = 8 * seen - 2
        return torch.stack([margin, torch.zeros_like(margin)], 1)


class Case:
    """A network, its image, and where its places are."""

    def __init__(self, kind: str, seed: int) -> None:
        drawn = torch.Generator().manual_seed(1000 * KINDS.index(kind) + seed)
        self.cells = torch.randperm(GRID * GRID, generator=drawn)[:3].tolist()
        self.places = []
        side = GRID * CELL
        pixels = 0.2 * torch.rand(3, side, side, generator=drawn)
        for colour, cell in enumerate(self.cells):
            down, right = torch.randint(3, (2,), generator=drawn).tolist()
            y, x = CELL * (cell // GRID) + down, CELL * (cell % GRID) + right
            self.places.append((slice(y, y + 6), slice(x, x + 6)))
            pixels[:, y : y + 6, x : x + 6] = torch.eye(3)[colour].view(3, 1, 1)
        self.net = Planted(kind, self.places, seed)
        self.model = model_of(self.net, (side, side), ("yes", "no"))
        self.image = image_of(pixels)

    def carriers(self, *colours: int) -> Carriers:
        """What carries the places of these colours."""
        region_HW = torch.zeros(self.image.pixels.shape[1:], dtype=torch.bool)
        for colour in colours:
            region_HW[self.places[colour]] = True
        layouts = patched_layers(self.model, ("first", "second"))
        return carriers(self.model, self.image, region_HW, 0, layouts, fill="black")


PLACEMENTS = [range(1), pytest.param(range(1, 8), marks=pytest.mark.slow)]
"""With the five kinds 40 placements."""


@pytest.mark.parametrize("seeds", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_pairs_that_interact_are_named_with_the_right_sign(
    kind: str, seeds: range
) -> None:
    redundant = [*combinations(range(3), 2)] if kind == "two of three" else [(0, 1)]
    relation = {"either": "either would do", "both": "both are needed"}.get(kind, "either would do")
    pairs = [] if kind in ("one", "against") else redundant
    for seed in seeds:
        case = Case(kind, seed)
        (result,) = Interacting(case.model, grid=GRID).run(case.image, [0])
        cells = {tuple(sorted(case.cells[colour] for colour in pair)) for pair in pairs}
        assert {(pair.first, pair.second) for pair in result.pairs} == cells
        assert {pair.relation.value for pair in result.pairs} <= {relation}
        assert result.of_pairs == 300
        red, _green, blue = (result.drops[cell] for cell in case.cells)
        assert (red > 1) is (kind in ("one", "both", "against"))
        assert (blue < -1) is (kind == "against")


def shares(layer: LayerCarriers, filters: list[int]) -> list[tuple[float, float]]:
    """What the filters restore and take, rounded; no other filter does either."""
    found = {c.filter: (round(c.restored, 4), round(c.taken, 4)) for c in layer.every}
    assert {number for number, both in found.items() if any(both)} <= set(filters)
    return [found[number] for number in filters]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_the_filters_that_carry_the_places_are_named(kind: str, seed: int) -> None:
    case = Case(kind, seed)
    occluded, expected, sums = {
        "one": ((0,), [(1, 1), (0, 0), (0, 0)], (1, 1)),
        "either": ((0, 1), [(1, 0), (1, 0), (0, 0)], (2, 0)),
        "both": ((0, 1), [(0, 1), (0, 1), (0, 0)], (0, 2)),
        "two of three": ((0, 1), [(1, 0), (1, 0), (0, 0)], (2, 0)),
        "against": ((0, 2), [(2, 2), (0, 0), (-1, -1)], (1, 1)),
    }[kind]
    result = case.carriers(*occluded)
    assert result.engine == "replay"
    for layer, filters in zip(result.layers, case.net.seeing, strict=True):
        assert shares(layer, filters) == expected
        assert layer.filters[0].filter in [filters[colour] for colour in occluded]
        assert (layer.restored, layer.taken) == pytest.approx((1, 1), abs=1e-5)
        assert (layer.restored_sum, layer.taken_sum) == pytest.approx(sums, abs=1e-4)


def test_a_region_that_changes_nothing_has_no_carriers() -> None:
    with pytest.raises(NoEffect, match="so no filter carries anything"):
        Case("either", 0).carriers(0)


@pytest.mark.parametrize("seeds", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reasons_are_the_places(kind: str, seeds: range) -> None:
    """By the colours' numbers: the reasons, in any order, and what is sufficient and necessary."""
    expected, needed = {
        "one": ([{0}], [{0}]),
        "either": ([{0}, {1}], [{0, 1}]),
        "both": ([{0, 1}], [{0, 1}]),
        "two of three": ([{0, 1}], [{0, 1}, {0, 2}, {1, 2}]),
        "against": ([{0}], [{0}]),
    }[kind]
    for seed in seeds:
        case = Case(kind, seed)
        spec = OcclusionSpec(targets=("yes",), fill="black", engine=EngineChoice.FULL)
        result = occlude(case.model, case.image, spec)
        search = Search(case.model, result.measured, result.panels[0], spec, CELL)
        target = find_regions(search, class_fields(result.measured, 0, 1.0), 4)
        found = [{case.cells.index(cell) for cell in reason.cells} for reason in target.reasons]
        if kind == "two of three":
            assert found[0] in needed
            assert len(found) == 1
        else:
            assert sorted(map(sorted, found)) == list(map(sorted, expected))
        assert target.complete
        assert [reason.lost for reason in target.reasons][-1]
        assert target.needed is not None
        assert {case.cells.index(cell) for cell in target.needed.cells} in needed
