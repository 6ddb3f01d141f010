import numpy as np
import pytest
import torch

from cnnviz.filters.layers import spread as module
from cnnviz.filters.layers.spread import LOWEST_EXPONENT, OCTAVES, Spread, spread_of


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_runs_with_different_channels_count_together_and_channels_are_unknown(
    order: tuple[int, ...],
) -> None:
    runs = [torch.randn(2, channels, 4, 4) for channels in (6, 6, 1)]
    total = Spread()
    for place in order:
        total.add(spread_of(runs[place], 1))
    assert total.count == sum(run.numel() for run in runs)
    assert total.highest == max(float(run.max()) for run in runs)
    assert total.dead is None


def test_dead_channels_of_runs_alike_are_those_that_never_change() -> None:
    total = Spread()
    for _ in range(2):
        values = torch.randn(2, 3, 4, 4)
        values[:, 1] = 0.5
        total.add(spread_of(values, 1))
    assert total.dead == [1]


def test_channels_of_one_value_each_are_not_dead() -> None:
    assert spread_of(torch.randn(1, 3, 1, 1), 1).dead is None
    assert spread_of(torch.zeros(2, 3, 1, 1), 1).dead == [0, 1, 2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("faulty", [False, True])
def test_counts_and_sums_equal_numpys_value_by_value(layout, dtype, faulty, monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 64)
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(3, 5, 4, 6, generator=generator) ** 9).clamp(-6e4, 6e4).to(dtype)
    values[0, 1] = values[0, 1].relu()
    values[1, 0, 0] = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 2.0**-126, -(2.0**-126)])
    values[1, 0, 1] = torch.tensor([1.0, 0.5, -0.5, 3e4, -3e4, 0.999])
    if faulty:
        values[2, 3, 1, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    values = values.to(memory_format=layout)
    found, flat = spread_of(values, 1), values.double().numpy().ravel()
    finite = flat[np.isfinite(flat)]
    assert (found.count, found.not_finite) == (len(flat), 3 * faulty)
    assert (found.zeros, found.negative) == ((finite == 0).sum(), (finite < 0).sum())
    assert (found.lowest, found.highest) == (finite.min(), finite.max())
    octaves = np.frexp(finite[finite != 0])[1] - LOWEST_EXPONENT
    expected = np.bincount(octaves.clip(0, OCTAVES - 1), minlength=OCTAVES)
    assert found.octaves_B.tolist() == expected.tolist()
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(finite.std(), rel=1e-9)
    assert found.lows_C is not None
    lows = values.float().amin((0, 2, 3))
    assert torch.equal(found.lows_C.nan_to_num(7), lows.nan_to_num(7))
