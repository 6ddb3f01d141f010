import math

import numpy as np
import pytest

from cnnviz.core.statistics import wilson
from cnnviz.filters.ablation import evaluation
from cnnviz.filters.ablation.evaluation import Predictions

NAMES = "abcdefg"


def random_predictions(generator: np.random.Generator, images: int, classes: int) -> Predictions:
    scores = generator.random((images, classes))
    scores /= scores.sum(axis=1, keepdims=True)
    labels = generator.integers(classes, size=images)
    true = scores[np.arange(images), labels]
    return Predictions(
        scores.argmax(axis=1), scores.max(axis=1), true, (scores > true[:, None]).sum(axis=1)
    )


@pytest.fixture
def run():
    generator = np.random.default_rng(0)
    labels = generator.integers(5, size=200)  # classes 5 and 6 have no images
    before, after = (random_predictions(generator, 200, 7) for _ in range(2))
    return before, after, labels


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (813, 1000), (1, 3)])
def test_interval_is_wilsons_closed_form(correct, count):
    z = 1.959963984540054
    share = correct / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    spread /= 1 + z * z / count
    low, high = wilson(correct, count)
    assert low == pytest.approx(max(0, centre - spread), abs=1e-12)
    assert high == pytest.approx(min(1, centre + spread), abs=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 5), (12, 3), (0, 7), (40, 22)])
def test_mcnemar_is_the_doubled_binomial_tail(lost, gained):
    total = lost + gained
    tail = sum(math.comb(total, k) for k in range(min(lost, gained) + 1)) / 2**total
    assert evaluation.mcnemar(lost, gained).p_value == pytest.approx(min(1, 2 * tail))


def test_accuracy_counts_top1_and_top5(run):
    before, _, labels = run
    right = sum(int(p == y) for p, y in zip(before.predicted, labels, strict=True))
    found = evaluation.accuracy(before, labels, 7)
    assert (found.correct, found.count) == (right, 200)
    assert found.top1 == right / 200
    assert found.interval[0] < found.top1 < found.interval[1]
    expected = np.mean([rank < 5 or p == y for rank, p, y in
                        zip(before.rank, before.predicted, labels, strict=True)])  # fmt: skip
    assert found.top5 == pytest.approx(expected)


def test_top5_is_not_claimed_for_five_classes(run):
    before, _, labels = run
    assert evaluation.accuracy(before, labels, 5).top5 is None


def test_paired_counts_each_image_once(run):
    before, after, labels = run
    lost = gained = 0
    for was, now, label in zip(before.predicted, after.predicted, labels, strict=True):
        lost += was == label != now
        gained += now == label != was
    found = evaluation.paired(before, after, labels)
    assert (found.lost, found.gained) == (lost, gained)


def test_class_changes_add_up_and_empty_classes_stay_out_of_the_mean(run):
    before, after, labels = run
    changes = evaluation.per_class(before, after, labels, NAMES)
    assert [change.class_ for change in changes] == list(NAMES[:5])
    for change in changes:
        own = labels == change.index
        assert change.count == own.sum()
        assert change.before == (before.predicted[own] == change.index).sum()
        assert change.after == (after.predicted[own] == change.index).sum()
        moved = after.true_probability[own] - before.true_probability[own]
        assert change.probability_change == pytest.approx(moved.mean())
    for predictions, right in ((before, "before"), (after, "after")):
        shares = [getattr(change, right) / change.count for change in changes]
        found = evaluation.accuracy(predictions, labels, 7)
        assert found.mean_over_classes == pytest.approx(np.mean(shares))


def test_grown_confusions_equal_the_positive_part_of_the_matrix_difference(run):
    before, after, labels = run
    grown = evaluation.grown_confusions(before, after, labels, NAMES)
    matrices = [evaluation.confusion_matrix(p.predicted, labels, range(7)) for p in (before, after)]
    difference = matrices[1] - matrices[0]
    np.fill_diagonal(difference, 0)
    assert {(c.label, c.predicted): c.after - c.before for c in grown} == {
        (NAMES[i], NAMES[j]): difference[i, j]
        for i, j in zip(*np.nonzero(difference > 0), strict=True)
    }
    growth = [c.after - c.before for c in grown]
    assert growth == sorted(growth, reverse=True)


def test_flips_are_the_changed_predictions_right_or_wrong(run):
    before, after, labels = run
    expected = [i for i in range(200) if before.predicted[i] != after.predicted[i]]
    flips = evaluation.flips(before, after, labels)
    assert flips.count == len(expected)
    right = sum(before.predicted[i] == labels[i] for i in expected)
    again = sum(after.predicted[i] == labels[i] for i in expected)
    assert (flips.right_to_wrong, flips.wrong_to_right) == (right, again)
    assert flips.wrong_to_wrong == flips.count - right - again
    assert evaluation.flips(before, before, labels).count == 0
