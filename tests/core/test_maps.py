import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cnnviz.core.maps import agreement, peak, plateau, positive_part, rank_correlation


def test_the_agreement_is_the_mean_of_positive_parts_by_their_99_percent_quantile() -> None:
    first, second = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    parts = [np.maximum(values.double().numpy(), 0) for values in (first, second)]
    expected = sum(part / np.quantile(part, 0.99) for part in parts) / 2
    torch.testing.assert_close(agreement(first, second), torch.from_numpy(expected).float())
    torch.testing.assert_close(agreement(second * 7, first / 3), agreement(first, second))


def test_a_map_of_few_positive_pixels_is_normalised_by_its_maximum() -> None:
    few = torch.zeros(20, 20)
    few[3, 4] = 5
    both = agreement(few, torch.ones(20, 20))
    assert both[3, 4] == 1
    assert both[0, 0] == 0.5


@pytest.mark.parametrize("empty", [torch.zeros(2, 2), -torch.ones(2, 2)])
def test_no_evidence_agrees_with_nothing(empty: torch.Tensor) -> None:
    assert positive_part(empty).max() == 0
    assert agreement(empty, torch.ones(2, 2)).max() == 0


def test_the_peak_of_a_plateau_is_in_its_middle() -> None:
    values = torch.zeros(9, 9)
    values[2:7, 3:8] = 1
    assert peak(values) == (4, 5)
    values[8, 0] = 2
    assert peak(values) == (8, 0)


def test_of_two_plateaus_the_larger_one_is_the_peak() -> None:
    values = torch.zeros(9, 9)
    values[0:2, 0:2] = 1
    values[5:8, 4:7] = 1
    assert peak(values) == (6, 5)
    assert plateau(values).sum() == 9
    values[2:7, 2] = 0.95
    values[4, 3] = 0.95  # joins both
    assert plateau(values, 0.1).sum() == 4 + 5 + 1 + 9
    assert plateau(values, 0.01).sum() == 9


def test_maps_of_other_sizes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="pixels"):
        rank_correlation(torch.ones(9, 9), torch.ones(9, 8))


@pytest.mark.parametrize("levels", [3, 10_000])
def test_ranks_of_equal_values_are_scipys(levels: int) -> None:
    draw = torch.Generator().manual_seed(levels)
    first, second = torch.randint(levels, (2, 40, 30), generator=draw).float()
    second += first
    expected = spearmanr(first.ravel(), second.ravel()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
