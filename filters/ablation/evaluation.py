"""What a change of a network did to its predictions for the same labelled images.

Everything is counted from two sets of predictions, before and after: accuracy with Wilson's
interval, McNemar's paired test, the change per class, the confusions that grew, the images whose
prediction flipped. Shapes: M images, K classes of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.output.record import Change, Count, Positive, Record, Says, Share
from cnnviz.core.statistics import exact_mcnemar, wilson

TOP = 5
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for M labelled images."""

    predicted: Ints  # (M,) the most probable class
    probability: Floats  # (M,) the probability of that class
    true_probability: Floats  # (M,) the probability of the labelled class
    rank: Ints  # (M,) number of classes more probable than the labelled one


@dataclass(frozen=True)
class OneAccuracy(Record):
    """How many predictions are right."""

    top1: Annotated[Share, Says("images whose most probable class is the labelled one")]
    top5: Annotated[Share | None, Says("null for five classes or fewer")]
    correct: Annotated[Count, Says("images right at top 1")]
    count: Annotated[Positive, Says("images")]
    interval: Annotated[tuple[Share, ...], Says("Wilson's, 95 %", minItems=2, maxItems=2)]
    mean_over_classes: Annotated[Share, Says("mean of the classes' accuracies")]
    label_probability: Annotated[Share, Says("mean probability of the labelled class")]


@dataclass(frozen=True)
class McNemar(Record):
    """McNemar's exact test of the two runs."""

    lost: Annotated[Count, Says("images right before and wrong after")]
    gained: Annotated[Count, Says("images wrong before and right after")]
    p_value: Share


@dataclass(frozen=True, kw_only=True)
class ClassChange(Record):
    """The change of one class, or value."""

    class_: str
    index: Count
    count: Annotated[Positive, Says("images of the class")]
    before: Annotated[float, Says("images right before, or the measure")]
    after: float
    change: Annotated[float, Says("of the class's accuracy, or of the measure")]
    probability_change: Annotated[
        Change | None, Says("mean change of the class's probability on its images")
    ]


@dataclass(frozen=True)
class Confusion(Record):
    """Images of one class predicted as another."""

    label: str
    predicted: str
    before: Count
    after: Count


@dataclass(frozen=True)
class Flips(Record):
    """Predictions that changed."""

    count: Count
    right_to_wrong: Count
    wrong_to_right: Count
    wrong_to_wrong: Count


def accuracy(predictions: Predictions, labels: Ints, classes: int) -> OneAccuracy:
    """Counts right predictions; `labels` (M,) are the model's class indices, M at least 1."""
    right = predictions.predicted == labels
    correct, count = int(right.sum()), len(labels)
    sizes = np.bincount(labels, minlength=classes)
    right_K = np.bincount(labels[right], minlength=classes)
    return OneAccuracy(
        top1=correct / count,
        top5=float(((predictions.rank < TOP) | right).mean()) if classes > TOP else None,
        correct=correct,
        count=count,
        interval=wilson(correct, count),
        mean_over_classes=float((right_K[sizes > 0] / sizes[sizes > 0]).mean()),
        label_probability=float(predictions.true_probability.mean()),
    )


def mcnemar(lost: int, gained: int) -> McNemar:
    """McNemar's exact test from the counts of images that changed either way."""
    return McNemar(lost, gained, exact_mcnemar(lost, gained))


def paired(before: Predictions, after: Predictions, labels: Ints) -> McNemar:
    """McNemar's exact test on which images were right before and after."""
    was, is_now = before.predicted == labels, after.predicted == labels
    return mcnemar(int((was & ~is_now).sum()), int((~was & is_now).sum()))


def per_class(
    before: Predictions, after: Predictions, labels: Ints, names: Sequence[str]
) -> tuple[ClassChange, ...]:
    """The change of each class that has images; `names` are all classes of the model."""
    size = len(names)
    moved = after.true_probability - before.true_probability
    count = np.bincount(labels, minlength=size)
    was = np.bincount(labels[before.predicted == labels], minlength=size)
    is_now = np.bincount(labels[after.predicted == labels], minlength=size)
    shift = np.bincount(labels, weights=moved, minlength=size) / np.maximum(count, 1)
    return tuple(
        ClassChange(
            class_=names[c],
            index=c,
            count=int(count[c]),
            before=int(was[c]),
            after=int(is_now[c]),
            change=int(is_now[c] - was[c]) / int(count[c]),
            probability_change=float(shift[c]),
        )
        for c in np.flatnonzero(count).tolist()
    )


def grown_confusions(
    before: Predictions, after: Predictions, labels: Ints, names: Sequence[str]
) -> tuple[Confusion, ...]:
    """Pairs of classes that are confused more often than before, most grown first."""

    def confused(predictions: Predictions) -> dict[tuple[int, int], int]:
        wrong = predictions.predicted != labels
        pairs = np.stack([labels[wrong], predictions.predicted[wrong]], axis=1)
        distinct, counts = np.unique(pairs, axis=0, return_counts=True)
        return {(a, b): n for (a, b), n in zip(distinct.tolist(), counts.tolist(), strict=True)}

    was, is_now = confused(before), confused(after)
    growth = {pair: count - was.get(pair, 0) for pair, count in is_now.items()}
    pairs = sorted((p for p in growth if growth[p] > 0), key=lambda pair: (-growth[pair], pair))
    return tuple(
        Confusion(names[pair[0]], names[pair[1]], was.get(pair, 0), is_now[pair]) for pair in pairs
    )


def confusion_matrix(predicted: Ints, labels: Ints, classes: Sequence[int]) -> Ints:
    """(len(classes), len(classes)) counts, label by prediction, of images within `classes`."""
    size = len(classes)
    place = np.full(max([*classes, *labels.tolist(), *predicted.tolist()]) + 1, -1)
    place[list(classes)] = np.arange(size)
    rows, columns = place[labels], place[predicted]
    inside = (rows >= 0) & (columns >= 0)
    return np.bincount(rows[inside] * size + columns[inside], minlength=size**2).reshape(size, size)


def flips(before: Predictions, after: Predictions, labels: Ints) -> Flips:
    """Counts the images whose most probable class changed."""
    was, is_now = before.predicted == labels, after.predicted == labels
    flipped = before.predicted != after.predicted
    return Flips(
        count=int(flipped.sum()),
        right_to_wrong=int((flipped & was).sum()),
        wrong_to_right=int((flipped & is_now).sum()),
        wrong_to_wrong=int((flipped & ~was & ~is_now).sum()),
    )
