"""The verdict and its numbers, on cards made by hand: a test for each rule of the verdict."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cnnviz.core.output.record import to_json
from cnnviz.trust import Evidence, Scorecard, Verdict
from cnnviz.trust.options import MinVerdict
from cnnviz.trust.removal import BLUR, GAIN_SHARES, MEAN, Curve, Order, gain
from cnnviz.trust.results import is_below
from cnnviz.trust.scorecard import (
    OFFSET,
    RANGES,
    WEIGHTS,
    certain,
    chance,
    components,
    cosine,
    mirrored,
    scorecard,
    without_parents,
)


def curves(most: float, least: float) -> list[Curve]:
    """From 2 by way of a constant to -2, in log-odds; the gain is 0.9 (least − most)."""
    shares = (0.0, *GAIN_SHARES, 1.0)
    return [
        Curve(fill, order, shares, (1.0, 0.5, 0.5, 0.5, 0.0), (2.0, *[score] * 3, -2.0))
        for fill in (MEAN, BLUR)
        for order, score in ((Order.MOST, most), (Order.LEAST, least))
    ]


def hill(row: int, column: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 20)


HERE = {name: hill(5, 6) for name in ("occlusion", "windows alone", "Grad-CAM", "gradient x input")}


def card(
    gained: tuple[float, float] = (-2.0, 2.0),
    random: tuple[float, ...] = (0.5, -0.5, 0.5, -0.5),
    map_HW: Tensor | None = None,
    lead: float = 1.0,
    **evidence: Any,
) -> Scorecard:
    """That of a hill that everything speaks for, but for what is given."""
    found: dict[str, Any] = {
        "witnesses": HERE,
        "own": hill(5, 6),
        "other_classes": [hill(15, 15)],
        "effect": 5.0,
        "effect_share": 0.9,
        "probability": 0.8,
    }
    map_HW = hill(5, 6) if map_HW is None else map_HW
    return scorecard(map_HW, curves(*gained), lead, random, Evidence(**(found | evidence)))


def test_a_map_that_everything_speaks_for_is_believed_and_the_line_says_why() -> None:
    found = card()
    assert found.gain == pytest.approx(3.6)
    assert found.verdict is Verdict.BELIEVE
    assert found.agreement == pytest.approx(1)
    assert found.line == "believe: gain 3.60, chance up to 2.15; agreement with other methods 1.00"


def test_trust_is_the_logistic_function_of_five_numbers() -> None:
    found = card(random=(0.8, -0.8, 0.8, -0.8), lead=-0.1)
    values = components(found)
    assert list(values) == list(WEIGHTS)
    total = OFFSET + sum(WEIGHTS[name] * values[name] for name in WEIGHTS)
    assert found.trust == pytest.approx(1 / (1 + math.exp(-total)))
    assert to_json(found)["trust"] == pytest.approx(found.trust, abs=1e-6)
    assert values["gain"] == pytest.approx(found.gain / found.against_chance.interval[1])
    assert values["lead"] == pytest.approx(-0.1 / found.against_chance.interval[1])
    assert values["contrast"] == pytest.approx(found.contrast)
    for name, (low, high) in RANGES.items():
        assert low <= values[name] <= high
    assert values["mirrored"] == RANGES["mirrored"][1] < found.mirrored


def test_the_gain_that_decides_is_the_one_that_is_printed() -> None:
    within = card(random=(2.0, -2.0, 2.0, -2.0))
    reach = within.against_chance.interval[1]
    assert 0 < within.gain < reach
    assert within.verdict is Verdict.FRAGILE
    assert f"its gain 3.60 is within chance, up to {reach:.2f}" in within.reasons
    beyond = card(random=(0.5, -0.5, 0.5, -0.5))
    assert beyond.gain > beyond.against_chance.interval[1]
    assert beyond.verdict is Verdict.BELIEVE


@pytest.mark.parametrize(
    ("evidence", "verdict", "reason"),
    [
        ({"effect": 0.9}, Verdict.WEAK, "no region lowers the log-odds by more than 0.9"),
        ({"effect": 2.4}, Verdict.FRAGILE, "no region lowers the log-odds by more than 2.4"),
        ({"effect_share": 0.0003}, Verdict.FRAGILE, "no region takes more than 0.03 %"),
        ({"predicted": False, "probability": 0.09}, Verdict.FRAGILE, "not predicted, p = 0.09"),
        (
            {"predicted": False, "probability": 0.11},
            Verdict.BELIEVE,
            "believe: thin margin (the class is not predicted, p = 0.11); gain",
        ),
        (
            {"predicted": True, "probability": 0.02},
            Verdict.BELIEVE,
            "thin margin (the class is predicted with p = 0.02 only)",
        ),
        (
            {"random": (0.7, -0.7) * 2},
            Verdict.BELIEVE,
            "thin margin (its gain is only 20 % above chance); gain 3.60",
        ),
        (
            {"effect": 3.0, "effect_share": 0.06},
            Verdict.BELIEVE,
            "thin margin (no region lowers the log-odds by more than 3, no region takes more",
        ),
        (
            {"witnesses": {"occlusion": hill(5, 6), "windows alone": hill(5, 6)}},
            Verdict.FRAGILE,
            "only 2 of 4 methods to compare it with",
        ),
        (
            {"witnesses": dict.fromkeys(HERE, hill(15, 6)), "own": hill(15, 6)},
            Verdict.CHANCE,
            "low agreement with other methods (0.0",
        ),
        ({"map_HW": torch.zeros(20, 20)}, Verdict.WEAK, "the map has no positive evidence"),
        ({"map_HW": -hill(5, 6)}, Verdict.WEAK, "the map has no positive evidence"),
        ({"gained": (2.0, -2.0)}, Verdict.CHANCE, "harms the class no more than the rest"),
    ],
)
def test_each_rule_of_the_verdict(evidence: dict, verdict: Verdict, reason: str) -> None:
    found = card(**evidence)
    assert found.verdict is verdict
    assert reason in found.line


def test_too_weak_to_judge_comes_before_everything_else() -> None:
    assert card(gained=(2.0, -2.0), effect=0.5).verdict is Verdict.WEAK


def test_a_regression_has_no_floor_of_log_odds_and_no_standing() -> None:
    found = card(effect=0.001, effect_share=None, probability=None)
    assert found.verdict is Verdict.BELIEVE


def test_a_map_that_fits_all_classes_is_not_believed() -> None:
    found = card(other_classes=[hill(5, 6), hill(5, 6)])
    assert found.contrast == pytest.approx(0)
    assert found.verdict is not Verdict.BELIEVE
    assert "it fits other classes as well" in found.reasons
    alone = card(other_classes=[])
    assert alone.contrast is None
    assert alone.line == "fragile: no other class to compare it with"


def test_a_blob_in_the_centre_is_as_like_as_its_mirror_images() -> None:
    middle = torch.exp(-((torch.arange(20.0) - 9.5) ** 2) / 20)
    blob = middle[:, None] * middle[None]
    assert mirrored(blob, hill(9, 10)) == pytest.approx(0, abs=1e-6)
    found = card(map_HW=blob, witnesses=dict.fromkeys(HERE, hill(9, 10)), own=hill(9, 10))
    assert found.agreement > 0.9
    assert found.mirrored == pytest.approx(0, abs=1e-6)
    assert found.trust < card().trust
    within = card(
        random=(2.0, -2.0, 2.0, -2.0),
        map_HW=blob,
        witnesses=dict.fromkeys(HERE, hill(9, 10)),
        own=hill(9, 10),
    )
    assert "its mirror images fit as well" in within.reasons
    assert mirrored(hill(5, 6), hill(5, 6)) > 0.5
    assert mirrored(hill(5, 6), hill(14, 6)) < 0
    wide = hill(5, 6)[:, :16]  # not square: no rotations by a quarter
    assert mirrored(wide, wide) > 0.5


def test_a_map_that_a_mirror_image_surpasses_loses_trust_and_a_lead_is_no_merit() -> None:
    behind = card(lead=-5.0, random=(2.0, -2.0, 2.0, -2.0))
    assert "its mirror images fit as well" in behind.reasons
    assert components(behind)["lead"] == RANGES["lead"][0]
    assert behind.trust < card(random=(2.0, -2.0, 2.0, -2.0)).trust
    assert card(lead=0.0).trust == card(lead=5.0).trust


def test_parents_cannot_vouch_for_a_map() -> None:
    """The second lowest of all is never more than the best of those that are no parents."""
    assert without_parents([0.9, 0.2, 0.8, 0.4]) == 0.4
    assert without_parents([0.9, 0.2, 0.4]) == 0.2
    assert without_parents([0.9, 0.2]) == 0.2
    assert without_parents([]) == 0
    generator = torch.Generator().manual_seed(0)
    for values in torch.rand(200, 4, generator=generator).tolist():
        assert without_parents(values) <= max(values[:2])  # parents: always the last two
    agreement = (hill(5, 6) + hill(5, 7)) / 2
    parents = {"occlusion": hill(5, 6), "Grad-CAM": hill(5, 7)}
    others = {"windows alone": hill(15, 15), "gradient x input": hill(15, 14)}
    found = card(map_HW=agreement, witnesses=parents | others)
    assert found.agreement < 0.05
    assert found.verdict is not Verdict.BELIEVE


def test_the_cosine_is_of_positive_parts() -> None:
    first = torch.tensor([[3.0, -5.0], [4.0, 0.0]])
    assert cosine(first, torch.tensor([[1.0, 9.0], [0.0, -2.0]])) == pytest.approx(
        3 / (5 * 82**0.5)
    )
    assert cosine(first, -torch.ones(2, 2)) == 0
    assert cosine(first, 7 * first) == pytest.approx(1)


def test_the_gain_is_that_of_shares_that_random_maps_have() -> None:
    more = [
        Curve(
            c.fill,
            c.order,
            (0.0, 0.1, 0.3, 0.5, 0.9, 1.0),
            (0.0,) * 6,
            (*c.scores[:2], 99.0, *c.scores[2:]),
        )
        for c in curves(-2.0, 2.0)
    ]
    assert gain(more) == pytest.approx(gain(curves(-2.0, 2.0)))


def test_signs_are_certain_where_all_have_the_same() -> None:
    first = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    second = torch.tensor([[3.0, -2.0, 0.0, -1.0]])
    found = certain([first, second])
    assert found is not None
    assert found.tolist() == [[True, True, True, False]]
    assert certain([first]) is None


def test_chance_is_students_interval_about_zero() -> None:
    low, high = chance((0.1, 0.2, -0.3, 0.0, 0.1, -0.1, -0.2, 0.3, 0.0, -0.1))
    spread = ((0.01 + 0.04 + 0.09 + 0.01) / 5) ** 0.5
    assert high == pytest.approx(2.5706 * spread, rel=1e-4)  # Student's t, 5 degrees of freedom
    assert low == -high


def test_verdicts_have_an_order() -> None:
    assert [is_below(v, MinVerdict.BELIEVE) for v in Verdict] == [True, True, True, False]
    assert [is_below(v, MinVerdict.FRAGILE) for v in Verdict] == [True, True, False, False]
