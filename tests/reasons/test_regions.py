"""Regions against all subsets of few cells, and what holds of every result."""

from pathlib import Path

import pytest
import torch
from networks import image_of, model_of
from torch import Tensor, nn

from cnnviz.core import UsageError, load_model, read_image
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.sufficient import FEW, Need, Search
from cnnviz.reasons import ReasonsSpec, reasons
from cnnviz.reasons.experiment import Reasoner
from cnnviz.reasons.regions import find_regions

SAMPLES = Path(__file__).parent.parent.parent / "sample_images"


def random_net(seed: int) -> Model:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 64, 3)),
    )
    net[-1].weight.data *= 4  # far from even answers
    return model_of(net.eval(), (24, 24), ("a", "b", "c"))


def search_of(model: Model, seed: int, cell: int) -> Search:
    image = image_of(torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(seed)))
    result = occlude(model, image, OcclusionSpec())
    return Search(model, result.measured, result.panels[0], OcclusionSpec(batch_size=64), cell)


def without_one(search: Search, cells_L: Tensor) -> Tensor:
    members = cells_L.nonzero()[:, 0]
    without_NL = cells_L.repeat(len(members), 1)
    without_NL[torch.arange(len(members)), members] = False
    return without_NL


@pytest.mark.parametrize("need", Need)
def test_no_single_cell_can_go_and_few_are_more_than_the_smallest_set_has(need: Need) -> None:
    gaps = []
    for seed in range(4):
        search = search_of(random_net(seed), seed, 8)
        assert search.cells == 9
        region = search.smallest(need)
        sets_NL = (torch.arange(512)[:, None] >> torch.arange(9)) & 1 == 1
        sizes = sets_NL[search.met(sets_NL, need)[0]].sum(1)  # the oracle: all 512 sets
        if region is None:
            assert need is not Need.HOLD
            continue
        cells_L = region.cells_rc.flatten()
        assert bool(search.met(cells_L[None], need)[0])
        if region.cells:
            assert not search.met(without_one(search, cells_L), need)[0].any()
        gaps.append(region.cells - int(sizes.min()))
    assert len(gaps) >= 3
    assert min(gaps) == 0
    assert sum(gaps) <= len(gaps)  # at most one cell on average


def test_reasons_are_disjoint_hold_alone_and_cannot_lose_a_cell() -> None:
    model = load_model()
    spec = ReasonsSpec(skip=("pairs", "filters"), cell=8)
    result = reasons(model, SAMPLES / "truck.png", spec)
    (target,) = result.targets
    measured, panel = result.occlusion.measured, result.occlusion.targets[0]
    search = Search(model, measured, panel, OcclusionSpec(), 8)
    covered_L = torch.zeros(search.cells, dtype=torch.bool)
    assert target.reasons
    for reason in target.reasons:
        cells_L = torch.zeros(search.cells, dtype=torch.bool)
        cells_L[list(reason.cells)] = True
        assert not (cells_L & covered_L).any()
        covered_L |= cells_L
        assert reason.alone >= 0.9 * target.reading
        assert reason.alone == pytest.approx(search.reading(cells_L, keep=True), abs=1e-5)
        assert reason.without == pytest.approx(search.reading(covered_L, keep=False), abs=1e-5)
        assert not search.met(without_one(search, cells_L), Need.HOLD)[0].any()
    if target.needed is not None:
        needed_L = torch.zeros(search.cells, dtype=torch.bool)
        needed_L[list(target.needed.cells)] = True
        assert bool(search.met(needed_L[None], Need.BOTH)[0])
        assert not search.met(without_one(search, needed_L), Need.BOTH)[0].any()
        assert target.needed.lost


def test_the_search_ends_at_the_maximum_and_says_so() -> None:
    model, spec = load_model(), OcclusionSpec()
    result = occlude(model, SAMPLES / "frog.png", spec)
    search = Search(model, result.measured, result.panels[0], spec, 8)
    fields = class_fields(result.measured, result.panels[0].index, 0.5)
    found = find_regions(search, fields, 1)
    assert len(found.reasons) == 1
    assert not found.complete


@pytest.mark.slow
def test_progress_counts_every_pass() -> None:
    model = load_model()
    layers = ("features.block3.conv2",)
    spec = ReasonsSpec(skip=("pairs",), cell=8, segments="grid", parts=4, layers=layers, group=16)
    reasoner, steps = Reasoner(model, spec), list[int]()
    result = reasoner.run(read_image(SAMPLES / "truck.png", model.preprocess), steps.append)
    (target,) = result.targets
    assert target.shapley is not None
    assert target.carriers is not None
    groups = len(target.carriers.layers[0].every) + 1  # and all filters together
    known = reasoner.occluder.positions + 2 * groups
    assert reasoner.steps == known
    assert sum(steps) == known + target.passes + target.shapley.passes
    assert max(steps) < 200  # in small steps


def test_a_changed_cell_is_run_as_the_whole_image_is() -> None:
    search = search_of(random_net(0), 0, 4)
    cells_L = torch.rand(search.cells, generator=torch.Generator().manual_seed(0)) < 0.6
    for need in Need:
        for changed in (cells_L.nonzero()[:, 0], (~cells_L).nonzero()[:, 0]):
            assert len(changed) > FEW
            changed_NL = cells_L.repeat(len(changed), 1)
            changed_NL[torch.arange(len(changed)), changed] ^= True
            met_N, margin_N = search.met(changed_NL, need)
            by_engine = search.met_changed(cells_L, changed, need)
            assert by_engine[0].tolist() == met_N.tolist()
            assert torch.allclose(by_engine[1], margin_N, atol=1e-4)


def test_a_regression_has_no_reasons() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(22 * 22, 1))
    torch.manual_seed(0)
    model = model_of(net.eval(), (24, 24), ("v",), head=Head(Kind.NONE))
    with pytest.raises(UsageError, match="reasons needs classes or boxes"):
        reasons(model, image_of(torch.zeros(3, 24, 24)), ReasonsSpec())
