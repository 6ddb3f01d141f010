"""The verdict and its numbers, on cards made by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz.core.output.record import to_json
from cnnviz.trust import Evidence, Scorecard, Verdict
from cnnviz.trust.options import MinVerdict
from cnnviz.trust.removal import BLUR, MEAN, Curve, Order
from cnnviz.trust.results import is_below
from cnnviz.trust.scorecard import certain, chance, peak_spread, scorecard


def curves(most: float, least: float) -> list[Curve]:
    """Straight lines from 1 by way of a reading at a half to 0."""
    shares = (0.0, 0.5, 1.0)
    return [
        Curve(fill, order, shares, (1.0, reading, 0.0))
        for fill in (MEAN, BLUR)
        for order, reading in ((Order.MOST, most), (Order.LEAST, least))
    ]


def hill(row: int, column: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 40) - 0.1


def card(
    gained: tuple[float, float] = (0.1, 0.9),
    others: dict[str, tuple[Tensor, float, float | None]] | None = None,
    **checks: Any,
) -> Scorecard:
    """A hill's; `others`: map, gain and agreement by name."""
    found = {"Grad-CAM": (hill(10, 10), 0.4, 0.8)} if others is None else others
    evidence = Evidence(
        others={name: entry[0] for name, entry in found.items()},
        other_gains={name: entry[1] for name, entry in found.items()},
        agreement={name: entry[2] for name, entry in found.items()},
        **({"variants": {}} | checks),
    )
    return scorecard(hill(10, 10), curves(*gained), (0.1, -0.1), evidence)


def test_a_map_that_all_agree_with_is_believed() -> None:
    found = card()
    assert found.gain == pytest.approx(0.4)
    assert found.relative_gain == pytest.approx(1)
    assert found.trust == pytest.approx(1)
    assert (found.verdict, found.reasons, found.line) == (Verdict.BELIEVE, (), "believe")


def test_the_number_is_two_parts_gain_two_parts_agreement_one_part_nearness() -> None:
    found = card(others={"Grad-CAM": (hill(10, 14), 0.8, 0.35)})
    far = 4 / (20 * 2**0.5)
    assert found.peak_spread == pytest.approx(far)
    assert found.trust == pytest.approx((2 * 0.5 + 2 * 0.5 + (1 - far / 0.4)) / 5)


def test_the_worst_agreement_counts() -> None:
    many = {"a": (hill(10, 10), 0.1, 0.9), "b": (hill(10, 10), 0.1, 0.07)}
    assert card(others=many).trust == pytest.approx((2 + 0.2 + 1) / 5)
    nothing = {"a": (hill(10, 10), 0.1, None)}
    assert card(others=nothing).trust == pytest.approx((2 + 0 + 1) / 5)


def test_what_harms_no_more_than_the_rest_is_no_better_than_chance() -> None:
    found = card((0.5, 0.5))
    assert found.verdict is Verdict.CHANCE
    assert "no more than the rest" in found.line
    low = card(others={"occlusion": (hill(0, 19), 2.0, 0.05)})
    assert low.verdict is Verdict.CHANCE
    assert set(low.reasons) == {
        "occlusion marks more of what matters",
        "occlusion disagrees",
        "its peak moves",
    }


@pytest.mark.parametrize(
    ("checks", "reason"),
    [
        ({"variants": {"blur fill": -hill(10, 10)}}, "changes with blur fill"),
        (
            {"randomised": (torch.arange(9.0), torch.arange(9.0) ** 2)},
            "stays with the last layers random",
        ),
    ],
)
def test_what_one_sanity_check_fails_is_fragile(checks: dict, reason: str) -> None:
    found = card(**checks)
    assert found.verdict is Verdict.FRAGILE
    assert reason in found.reasons


def test_without_another_method_it_is_fragile_at_best() -> None:
    found = card(others={})
    assert found.trust is None
    assert found.verdict is Verdict.FRAGILE
    assert to_json(found)["trust"] is None


def test_signs_are_certain_where_all_have_the_same() -> None:
    first = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    second = torch.tensor([[3.0, -2.0, 0.0, -1.0]])
    found = certain(first, [second])
    assert found is not None
    assert found.tolist() == [[True, True, True, False]]
    assert certain(first, []) is None


def test_the_spread_is_the_mean_distance_of_all_pairs() -> None:
    maps = [hill(0, 0), hill(0, 4), hill(3, 0)]
    diagonal = (2 * 20**2) ** 0.5
    assert peak_spread(maps) == pytest.approx((4 + 3 + 5) / 3 / diagonal)
    assert peak_spread(maps[:1]) is None


def test_chance_is_students_interval_about_zero() -> None:
    low, high = chance((0.1, 0.2, -0.3, 0.0, 0.1, -0.1, -0.2, 0.3, 0.0, -0.1))
    spread = ((0.01 + 0.04 + 0.09 + 0.01) / 5) ** 0.5
    assert high == pytest.approx(2.5706 * spread, rel=1e-4)  # Student's t, 5 degrees of freedom
    assert low == -high


def test_other_classes_are_averaged_where_they_have_a_correlation() -> None:
    own = torch.tensor([1.0, 2.0, 3.0])
    others = [torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, 3.0, 2.0]), torch.zeros(3)]
    assert card(other_classes=(own, others)).other_class == pytest.approx((-1 + 0.5) / 2)
    assert card(other_classes=(own, [torch.zeros(3)])).other_class is None


def test_verdicts_have_an_order() -> None:
    assert [is_below(v, MinVerdict.BELIEVE) for v in Verdict] == [True, True, False]
    assert [is_below(v, MinVerdict.FRAGILE) for v in Verdict] == [True, False, False]
