"""What changed, against loops by hand, and against changes that were made on purpose."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from cnnviz.core.errors import UsageError
from cnnviz.core.statistics import mean_of, signed_rank
from cnnviz.diff.classes import compare_classes
from cnnviz.diff.experiment import diff
from cnnviz.diff.filters import compare_filters
from cnnviz.diff.images import compare_images, mcnemar, nearest
from cnnviz.diff.sides import Answers, Evidence, Layer, Side, aligned

CLASSES, EACH, SIDE = 8, 30, 6


def answers(predicted: list[str] | None = None, count: int = CLASSES * EACH) -> Answers:
    labels = tuple(f"class {n % CLASSES}" for n in range(count))
    names = tuple(f"{n:03}.png" for n in range(count))
    return Answers(names, labels, tuple(predicted or labels), np.full(count, 0.5))


def evidence(seed: int, noise: float = 1.0, count: int = CLASSES * EACH) -> Evidence:
    """Maps with a hill in the middle, and noise of their own."""
    axis = np.linspace(-1, 1, SIDE)
    hill = np.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2)).ravel()
    draw = np.random.default_rng(seed)
    maps = hill + noise * 0.3 * draw.standard_normal((count, SIDE * SIDE))
    reliance = draw.uniform(0.3, 0.6, count)
    nothing = np.full(count, np.nan)
    return Evidence(maps.astype(np.float32), (SIDE * SIDE,), reliance, nothing, ("same",) * count)


def side(name: str, seed: int, **changes: object) -> Side:
    return replace(Side(name, {"mask": 3}, answers(), evidence(seed)), **changes)


def moved_to_the_corner(own: Evidence, which: int) -> Evidence:
    maps = own.maps_NP.copy()
    members = np.arange(len(maps)) % CLASSES == which
    maps[members, :] *= 0.1
    maps[members, -1] = 3
    return replace(own, maps_NP=maps)


def test_agreement_is_scipys_of_each_image() -> None:
    a, b = side("a", 0), side("b", 1)
    parts = (20, 16)
    a, b = (replace(s, evidence=replace(s.evidence, parts=parts)) for s in (a, b))
    images = compare_images(a, b, 10)
    for row in (0, 7, 100):
        x, y = (own.evidence.maps_NP[row] for own in (a, b))
        wanted = [spearmanr(x[part], y[part]).statistic for part in (slice(20), slice(20, None))]
        assert images.agreement_N[row] == pytest.approx(np.mean(wanted))


def test_constant_maps_have_no_agreement() -> None:
    flat = replace(evidence(0), maps_NP=np.zeros((CLASSES * EACH, SIDE * SIDE), np.float32))
    images = compare_images(side("a", 0), side("b", 1, evidence=flat), 10)
    assert np.isnan(images.agreement_N).all()
    assert mean_of(images.agreement_N, 0) is None


def test_a_run_and_itself_agree() -> None:
    result = diff(side("a", 3), side("a", 3))
    assert result.agreement.mean == pytest.approx(1)
    assert not result.columns.flipped_N.any()
    assert result.changed == ()
    assert {own.certainty for own in result.classes} <= {0.0}


@pytest.mark.parametrize("seed", range(6))
def test_a_class_whose_evidence_moved_is_named_alone(seed: int) -> None:
    b = side("b", seed + 100)
    moved = replace(b, evidence=moved_to_the_corner(b.evidence, 5))
    assert diff(side("a", seed), moved).changed == ("class 5",)


def test_chance_names_hardly_any_class() -> None:
    named = [diff(side("a", seed), side("b", seed + 50)).changed for seed in range(30)]
    assert sum(map(bool, named)) <= 4  # 5 % of 30 are 1.5


def test_small_classes_are_not_judged_and_do_not_judge() -> None:
    count = 4 * CLASSES
    a, b = (
        Side(name, {}, answers(count=count), evidence(seed, count=count))
        for name, seed in (("a", 0), ("b", 1))
    )
    assert {own.certainty for own in diff(a, b).classes} == {None}


def test_worst_images_come_first() -> None:
    predicted = list(answers().labels)
    predicted[11] = "something else"
    result = diff(side("a", 0), side("b", 1, answers=answers(predicted)))
    assert result.worst_images[0].image == "011.png"
    rest = [change.agreement for change in result.worst_images[1:]]
    assert (np.diff(rest) >= 0).all()
    assert list(np.flatnonzero(result.columns.flipped_N)) == [11]


def test_accuracy_is_tested_by_mcnemar() -> None:
    right = np.array([[1, 1]] * 50 + [[1, 0]] * 12 + [[0, 1]] * 2 + [[np.nan, np.nan]] * 3)
    lost, gained, p = mcnemar(right)
    assert (lost, gained) == (12, 2)
    assert p == pytest.approx(2 * sum(_choose(14, k) for k in range(3)) / 2**14)
    assert mcnemar(right[:50])[2] == 1
    assert mcnemar(right[-3:]) is None


def _choose(n: int, k: int) -> int:
    import math

    return math.comb(n, k)


def test_evidence_that_moves_off_the_object_is_told() -> None:
    draw = np.random.default_rng(0)
    off = draw.normal(-0.1, 0.1, 60)
    assert signed_rank(off) < 1e-6
    assert signed_rank(draw.normal(0, 0.1, 60)) > 0.05
    assert signed_rank(np.zeros(5)) is None
    mean = mean_of(np.append(off, np.nan), 0)
    assert mean.count == 60
    assert mean.interval[0] < off.mean() < mean.interval[1] < 0


def test_neighbours_kept_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((40, 5)).astype(np.float32) for _ in range(2))
    sides = [Side(n, {}, answers(count=40), features_ND=f) for n, f in (("a", a), ("b", b))]
    result = diff(*sides)
    for row in range(40):
        lists = []
        for points in (a, b):
            distances = np.linalg.norm(points - points[row], axis=1)
            distances[row] = np.inf
            lists.append(set(np.argsort(distances)[:10].tolist()))
        assert result.columns.kept_N[row] == pytest.approx(len(lists[0] & lists[1]) / 10)
    assert nearest(a, 3).shape == (40, 3)
    assert diff(sides[0], replace(sides[0], name="again")).agreement.mean == 1


def kernels(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 27)).astype(np.float32)


def layer_of(weights: np.ndarray) -> Layer:
    norms = np.linalg.norm(weights, axis=1).astype(np.float64)
    return Layer(tuple(range(len(weights))), norms, norms < 1e-6, weights)


def test_filters_that_turned_died_or_changed_places() -> None:
    was = kernels(0)
    now = was.copy()
    now[[2, 3]] = was[[3, 2]]
    now[5] = 0
    now[7] = kernels(1)[7]
    a, b = (Side(n, {}, layers={"conv": layer_of(w)}) for n, w in (("a", was), ("b", now)))
    result = diff(a, b)
    (found,) = result.layers
    assert [f.filter for f in found.changes if f.died] == [5]
    assert not any(f.revived for f in found.changes)
    assert found.changes[2].nearest == 3
    assert found.changes[2].nearest_likeness == pytest.approx(1)
    assert found.changes[0].likeness == pytest.approx(1)
    assert found.changes[5].likeness is None
    cosine = was[7] @ now[7] / np.linalg.norm(was[7]) / np.linalg.norm(now[7])
    assert found.changes[7].likeness == pytest.approx(cosine)
    assert [f.filter for f in compare_filters(b, a)[0].changes if f.revived] == [5]


def test_top_lists_overlap_as_sets_do() -> None:
    lists = [frozenset("abcd"), frozenset("efgh"), frozenset()]
    other = [frozenset("abxy"), frozenset("abcd"), frozenset("q")]
    strength, dead = np.array([1.0, 1.0, 0.0]), np.array([False, False, True])
    a, b = (
        Side(n, {}, layers={"c": Layer((0, 1, 4), strength, dead, images=tuple(own))})
        for n, own in (("a", lists), ("b", other))
    )
    found = compare_filters(a, b)[0].changes
    assert [f.likeness for f in found] == [0.5, 0.0, None]
    assert found[0].nearest == 1
    assert found[0].nearest_likeness == 1


def test_labels_group_and_else_predictions_do() -> None:
    unlabelled = replace(answers(), labels=("",) * (CLASSES * EACH))
    a, b = side("a", 0, answers=unlabelled), side("b", 1, answers=unlabelled)
    images = compare_images(a, b, 10)
    assert len(compare_classes(unlabelled, images, 0)) == CLASSES
    assert np.isnan(images.right_N2).all()


def test_what_cannot_be_compared_is_named() -> None:
    a = side("a", 0)
    with pytest.raises(UsageError, match=r"a and b differ in mask \(3 and 4\), fill \(nothing and"):
        aligned(a, side("b", 1, question={"mask": 4, "fill": "mean"}))
    fewer = answers(count=10)
    small = side("b", 1, answers=fewer, evidence=evidence(1, count=10))
    with pytest.raises(UsageError, match=r"of other data: only a has '010.png' and 229 more"):
        aligned(a, small)
    relabelled = replace(answers(), labels=("dog",) * (CLASSES * EACH))
    with pytest.raises(UsageError, match=r"'000\.png' is labelled 'class 0' in one and 'dog'"):
        aligned(a, side("b", 1, answers=relabelled))
    other = replace(evidence(1), pixels=("other",) * (CLASSES * EACH))
    with pytest.raises(UsageError, match=r"received other pixels of '000.png'.*--size"):
        aligned(a, side("b", 1, evidence=other))


def test_images_that_failed_in_one_run_are_left_out_and_named() -> None:
    rows = np.array([n for n in range(CLASSES * EACH) if n not in (4, 9)])
    whole = side("b", 1)
    b = replace(whole.take(rows), failed=frozenset({"004.png", "009.png"}))
    a, b, lost = aligned(side("a", 0), b)
    assert lost == ("004.png", "009.png")
    assert a.answers.images == b.answers.images
    assert len(a.evidence.maps_NP) == CLASSES * EACH - 2
    shuffled = whole.take(np.random.default_rng(0).permutation(CLASSES * EACH))
    again = diff(side("a", 0), shuffled)
    assert again.agreement.mean == diff(side("a", 0), whole).agreement.mean
