import pytest
import torch

from cnnviz.filters.layers.spread import Spread, spread_of


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
