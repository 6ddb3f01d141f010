"""Grouping evidence: as many groups as there are kinds."""

import numpy as np
import pytest

from cnnviz.audit.experiment import _decisive
from cnnviz.audit.groups import SMALLEST, classes, group
from cnnviz.audit.paste import Verdict
from cnnviz.audit.residual import Added, Residual
from cnnviz.audit.results import Reliance
from cnnviz.audit.rows import Rows, columns, packed


def entry(place: int, predicted: int, features: np.ndarray, **changes: object) -> dict:
    return {
        "image": f"{place}.png", "place": place, "label": None, "predicted": predicted,
        "probability": 0.5, "max_drop": 1.0, "mean_drop": 0.1, "box": [0, 0, 2, 2],
        "reliance": 0.5, "flips": 0.1, "covered": predicted, "grid": [2, 3],
        "map": packed(np.arange(6.0)), "features": packed(features),
    } | changes  # fmt: skip


def rows_of(predicted: list[int], features_ND: np.ndarray) -> Rows:
    listed = zip(predicted, features_ND, strict=True)
    return columns(entry(n, k, x) for n, (k, x) in enumerate(listed))


def kinds(count: int, of_each: int, spread: float = 0.05) -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = np.eye(16)[:count]
    return np.repeat(centres, of_each, 0) + spread * draw.standard_normal((count * of_each, 16))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_kinds_of_evidence_are_told_apart_and_counted(count: int) -> None:
    found = group(kinds(count, 12).astype(np.float32), np.arange(12 * count), 0)
    assert sorted(sorted(part // 12) for part in found) == [[k] * 12 for k in range(count)]


def test_no_group_of_a_class_is_too_small_to_be_judged() -> None:
    features = kinds(4, 5).astype(np.float32)
    assert [len(part) for part in group(features, np.arange(20), 0)] == [5] * 4
    assert [len(part) for part in group(features, np.arange(20), 0, among=10)] == [20]
    parts = group(kinds(4, 12).astype(np.float32), np.arange(48), 0, among=10)
    assert [len(part) for part in parts] == [12] * 4
    assert min(map(len, group(kinds(4, 12).astype(np.float32), np.arange(48), 0, among=99))) > 12


def test_evidence_of_one_kind_is_one_group() -> None:
    noise = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    assert len(group(noise, np.arange(200), 0)) == 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_features_are_one_group(value: float) -> None:
    (part,) = group(np.full((20, 8), value, np.float32), np.arange(20), 0)
    assert sorted(part) == list(range(20))


def test_the_amount_of_evidence_makes_no_group() -> None:
    amounts = np.repeat([1.0, 50.0], 20)[:, None] * np.ones((40, 4))
    assert len(group(amounts.astype(np.float32), np.arange(40), 0)) == 1


def test_the_most_typical_patch_comes_first() -> None:
    features = np.eye(8)[[0] * 9] + 0.0
    features[3] += 1.0
    (part,) = group(features.astype(np.float32), np.arange(9), 0)
    assert part[-1] == 3


def test_classes_with_few_images_are_judged_together() -> None:
    predicted = [2] * SMALLEST + [0] * (SMALLEST - 1) + [1]
    found = list(classes(rows_of(predicted, np.ones((len(predicted), 3))), 0))
    assert [entry.index for entry in found] == [2, None]
    assert sorted(found[1].members_N) == list(range(SMALLEST, 2 * SMALLEST))
    assert len(found[1].groups) == 1


def test_columns_are_in_the_order_of_the_data_and_say_what_is_not_known() -> None:
    lines = [entry(1, 4, np.zeros(2), inside=None, label=4), entry(0, 3, np.ones(2), hit=True)]
    rows = columns(lines)
    assert rows.images == ("0.png", "1.png")
    assert rows.predicted_N.tolist() == [3, 4]
    assert rows.known_N.tolist() == [False, True]
    assert rows.right_N.tolist() == [False, True]
    assert np.isnan(rows.inside_N).all()
    np.testing.assert_array_equal(rows.hit_N, [1.0, np.nan])
    assert rows.maps_NRC.shape == (2, 2, 3)
    np.testing.assert_array_equal(rows.features_ND, [[1, 1], [0, 0]])


def test_features_beyond_float16_stay_finite() -> None:
    rows = columns([entry(0, 0, np.array([1e9, -1e9]))])
    assert np.isfinite(rows.features_ND).all()


def test_the_decisive_test_is_corrected_for_the_number_of_tests_of_a_class() -> None:
    def pasted(p: float) -> Verdict:
        return Verdict(60, p_random=p, p_others=p, p_cover=p)

    def added(p: float) -> Added:
        return Added(0.5, 0.0, 0.5, 0.0, p, p)

    groups = [pasted(0.01), pasted(0.002)]
    of_means = Residual(9, added(0.3), added(0.2), added(0.001))
    assert _decisive(groups, Reliance(0.5, None, 0.5), of_means) == ("colour", pytest.approx(0.009))
    assert _decisive(groups, Reliance(0.5, None, 0.001), of_means) == (
        "reliance",
        pytest.approx(0.003),
    )
    assert _decisive(groups, Reliance(0.5, None, 0.9), Residual()) == (
        "pasted",
        pytest.approx(0.008),
    )
    assert _decisive([], Reliance(0.5, None, 0.9), Residual()) == ("reliance", 0.9)
    assert _decisive([pasted(0.9)], Reliance(0.5, None, 0.8), of_means) == (
        "colour",
        pytest.approx(0.009),
    )
    assert _decisive([], Reliance(0.5, None, None), Residual()) is None
