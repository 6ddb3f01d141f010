import pytest
import torch
from scipy.stats import spearmanr

from cnnviz.core.maps import agreement, peak, positive_part, rank_correlation


def test_the_agreement_is_the_geometric_mean_of_positive_parts() -> None:
    first = torch.tensor([[4.0, 2.0], [-8.0, 1.0]])
    second = torch.tensor([[0.1, 0.2], [0.2, -0.4]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 0.0]])
    torch.testing.assert_close(agreement(first, second), expected)
    torch.testing.assert_close(agreement(second * 7, first / 3), expected)


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
