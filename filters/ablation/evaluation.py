"""What a change to a network did to its answers on the same labelled images.

Everything is counted from two lists of predictions, before and after: accuracy with Wilson's
interval, McNemar's paired test, the change per class, the confusions that grew, the images whose
prediction flipped. Shapes: M images, K classes of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnviz.core.statistics import exact_mcnemar, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOP = 5


@dataclass(frozen=True)
class Predictions:
    """A model's answers to M labelled images.

    Attributes:
        predicted: (M,) int64, the most probable class.
        probability: (M,) float64, of that class.
        true_probability: (M,) float64, of the labelled class.
        rank: (M,) int64, how many classes are more probable than the labelled one.
    """

    predicted: "NDArray[np.int64]"
    probability: "NDArray[np.float64]"
    true_probability: "NDArray[np.float64]"
    rank: "NDArray[np.int64]"


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, with what it rests on.

    Attributes:
        top1: share of images whose most probable class is the labelled one, 0 to 1.
        top5: share with the labelled class among the five most probable; None where the model has
            no more than five classes.
        correct: images right at top 1.
        count: images.
        interval: Wilson's 95 % interval of `top1`.
    """

    top1: float
    top5: float | None
    correct: int
    count: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Paired:
    """McNemar's test of two accuracies on the same images.

    Attributes:
        lost: images right before and wrong after.
        gained: images wrong before and right after.
        p_value: two-sided exact probability of so uneven a split, were neither more likely.
    """

    lost: int
    gained: int
    p_value: float


@dataclass(frozen=True)
class ClassChange:
    """One class before and after.

    Attributes:
        index: the model's class index.
        count: images of the class; with none, the class is in no mean.
        before: of these, right before.
        after: of these, right after.
        probability_change: mean change of the class's probability on its own images; 0 with none.
    """

    index: int
    count: int
    before: int
    after: int
    probability_change: float

    @property
    def change(self) -> float:
        """Change of the class's accuracy, -1 to 1; 0 where it has no images."""
        return (self.after - self.before) / self.count if self.count else 0.0


@dataclass(frozen=True)
class Confusion:
    """Images of one class taken for another."""

    label: int
    predicted: int
    before: int
    after: int


def mcnemar(lost: int, gained: int) -> Paired:
    """The exact test of McNemar (1947, Psychometrika 12, 153-157) from the discordant counts."""
    return Paired(lost, gained, exact_mcnemar(lost, gained))


def accuracy(predictions: Predictions, labels: "NDArray[np.int64]", classes: int) -> Accuracy:
    """Counts right answers; `labels` (M,) are the model's class indices, M at least 1."""
    right = predictions.predicted == labels
    correct, count = int(right.sum()), len(labels)
    top5 = float(((predictions.rank < TOP) | right).mean()) if classes > TOP else None
    return Accuracy(correct / count, top5, correct, count, wilson(correct, count))


def paired(before: Predictions, after: Predictions, labels: "NDArray[np.int64]") -> Paired:
    """McNemar's test on what two passes over the same images got right."""
    was, is_now = before.predicted == labels, after.predicted == labels
    return mcnemar(int((was & ~is_now).sum()), int((~was & is_now).sum()))


def per_class(
    before: Predictions, after: Predictions, labels: "NDArray[np.int64]", classes: Sequence[int]
) -> tuple[ClassChange, ...]:
    """The change of each of `classes`, in their order."""
    size = max([*classes, *labels.tolist()], default=-1) + 1
    moved = after.true_probability - before.true_probability
    count = np.bincount(labels, minlength=size)
    was = np.bincount(labels[before.predicted == labels], minlength=size)
    is_now = np.bincount(labels[after.predicted == labels], minlength=size)
    shift = np.bincount(labels, weights=moved, minlength=size) / np.maximum(count, 1)
    return tuple(
        ClassChange(c, int(count[c]), int(was[c]), int(is_now[c]), float(shift[c])) for c in classes
    )


def mean_class_accuracy(changes: Sequence[ClassChange]) -> tuple[float, float]:
    """Mean over the classes that have images of their accuracy, before and after."""
    seen = [change for change in changes if change.count]
    before = sum(change.before / change.count for change in seen) / len(seen)
    return before, sum(change.after / change.count for change in seen) / len(seen)


def grown_confusions(
    before: Predictions, after: Predictions, labels: "NDArray[np.int64]"
) -> tuple[Confusion, ...]:
    """Pairs of classes that are confused more often than before, most grown first."""

    def counted(predictions: Predictions) -> dict[tuple[int, int], int]:
        wrong = predictions.predicted != labels
        pairs = np.stack([labels[wrong], predictions.predicted[wrong]], axis=1)
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        return {(a, b): n for (a, b), n in zip(found.tolist(), counts.tolist(), strict=True)}

    was, is_now = counted(before), counted(after)
    grown = [
        Confusion(label, predicted, was.get((label, predicted), 0), count)
        for (label, predicted), count in is_now.items()
        if count > was.get((label, predicted), 0)
    ]
    return tuple(sorted(grown, key=lambda c: (c.before - c.after, c.label, c.predicted)))


def confusion_matrix(
    predictions: Predictions, labels: "NDArray[np.int64]", classes: Sequence[int]
) -> "NDArray[np.int64]":
    """(len(classes), len(classes)) counts, label by prediction, of images within `classes`."""
    place = {index: row for row, index in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for label, predicted in zip(labels.tolist(), predictions.predicted.tolist(), strict=True):
        if label in place and predicted in place:
            matrix[place[label], place[predicted]] += 1
    return matrix


def flipped(before: Predictions, after: Predictions) -> "NDArray[np.int64]":
    """Places of the images whose most probable class changed, ascending."""
    return np.flatnonzero(before.predicted != after.predicted)
