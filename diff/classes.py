"""Which classes changed more than the others, and by what.

Two networks never look at exactly the same places, and two trainings of one differ in every class.
What is not explained by that stands out: a class is held against the other classes of the same two
networks, sign by sign. Each sign is a function of a mean over the class's images of some values, so
one resampling tells how far all of them scatter by chance.
Shapes: N images of all classes, M of one, V values of a sign, B resamples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.statistics import against_others, suspicions
from cnnviz.diff.images import Images
from cnnviz.diff.sides import Answers, Floats

SMALLEST = 5
"""Images of a class, below which it is not judged."""
RESAMPLES = 200
ALONE = 0.05
"""P-value of no change at all, above which a class has not changed, whatever the others did."""
TINY = 0.02
"""Radians: differences of the arc sine of the root below this are none, however sure."""


@dataclass(frozen=True, eq=False)
class Sign:
    """What can be seen to change.

    Attributes:
        name: for tables.
        values_NV: of each image; NaN where they are not known.
        share: makes of their means (…, V) a share (…,).
        signed: whether the values change their sign when the networks change places.
    """

    name: str
    values_NV: NDArray[np.floating]
    share: Callable[[NDArray[np.floating]], Floats]
    signed: bool


@dataclass(frozen=True)
class Change:
    """One sign in one class.

    Attributes:
        value: its share.
        others: median of the other classes; None where there are none.
        p: p-value of being no larger than theirs; None where that cannot be told.
    """

    value: float
    others: float | None
    p: float | None


@dataclass(frozen=True, eq=False)
class ClassChange:
    """One class.

    Attributes:
        name: of it.
        members: rows of its images.
        signs: by name; those that are known.
        certainty: 1 − q (Benjamini-Hochberg over classes) of the smallest p-value, times their
            number; None where nothing could be judged.
    """

    name: str
    members: NDArray[np.int64]
    signs: dict[str, Change]
    certainty: float | None = None


def _single(means: NDArray[np.floating]) -> Floats:
    found: Floats = np.abs(means[..., 0]).astype(np.float64)
    return found


def _variation(means: NDArray[np.floating]) -> Floats:
    """Total variation: the share of the evidence that lies elsewhere in the mean."""
    found: Floats = 0.5 * np.abs(means).sum(-1).astype(np.float64)
    return found


def signs_of(images: Images) -> list[Sign]:
    """What these images can show."""
    found: list[Sign] = []
    if images.agreement_N is not None and images.moved_NP is not None:
        unlike = (1 - images.agreement_N[:, None]) / 2
        found.append(Sign("maps unlike", unlike, _single, signed=False))
        found.append(Sign("evidence moved", images.moved_NP, _variation, signed=True))
    columns = {
        "reliance changed": images.reliance_N,
        "inside changed": images.inside_N,
        "accuracy changed": images.right_N2[:, 1] - images.right_N2[:, 0],
    }
    found += [
        Sign(name, values[:, None], _single, signed=True)
        for name, values in columns.items()
        if not np.isnan(values).all()
    ]
    if images.kept_N is not None:
        found.append(Sign("neighbours lost", 1 - images.kept_N[:, None], _single, signed=False))
    return found


def compare_classes(answers: Answers, images: Images, seed: int) -> tuple[ClassChange, ...]:
    """Every class, by label or, where there are no labels, by the first network's prediction.

    Args:
        answers: of the first network.
        images: of both.
        seed: of the resampling.
    """
    labelled = any(answers.labels)
    names = answers.labels if labelled else answers.predicted
    members: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name:
            members.setdefault(name, []).append(row)
    rows = {name: np.array(own, np.int64) for name, own in sorted(members.items())}
    changes: dict[str, dict[str, Change]] = {name: {} for name in rows}
    for sign in signs_of(images):
        draw = np.random.default_rng(seed)
        measured = {name: _measured(sign, own, draw) for name, own in rows.items()}
        for name, found in _held_against(measured).items():
            changes[name][sign.name] = found
    combined = [_combined(found.values()) for found in changes.values()]
    return tuple(
        ClassChange(name, rows[name], found, certainty)
        for (name, found), certainty in zip(changes.items(), suspicions(combined), strict=True)
    )


def _combined(changes: Iterable[Change]) -> float | None:
    """The smallest p-value times their number (Bonferroni)."""
    known = [change.p for change in changes if change.p is not None]
    return min(1.0, len(known) * min(known)) if known else None


@dataclass(frozen=True)
class _Measured:
    """A sign in a class: as it is, without what chance gives, its scatter, p-value of no change."""

    value: float
    beyond: float
    scatter: float
    p: float
    judged: bool


def _measured(sign: Sign, rows: NDArray[np.int64], draw: np.random.Generator) -> _Measured | None:
    """None where nothing is known of the class."""
    values_MV = sign.values_NV[rows]
    values_MV = values_MV[~np.isnan(values_MV).any(1)].astype(np.float64)
    count = len(values_MV)
    if not count:
        return None
    value = float(sign.share(values_MV.mean(0)))
    weights_BM = draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    heights_B = np.arcsin(np.sqrt(sign.share(weights_BM @ values_MV).clip(0, 1)))
    by_chance, p = 0.0, 0.0
    if sign.signed:  # were the networks alike, each image could as well have them the other way
        swaps_BM = draw.choice((-1.0, 1.0), (RESAMPLES, count)) / count
        swapped_B = sign.share(swaps_BM @ values_MV)
        by_chance = float(swapped_B.mean())
        p = float((1 + (swapped_B >= value - 1e-12).sum()) / (1 + RESAMPLES))
    beyond = max(0.0, value - by_chance)
    return _Measured(value, beyond, float(heights_B.std()), p, count >= SMALLEST)


def _held_against(measured: dict[str, _Measured | None]) -> dict[str, Change]:
    """Each class against the others."""
    known = {name: own for name, own in measured.items() if own is not None}
    found: dict[str, Change] = {}
    for name, own in known.items():
        others = [other for key, other in known.items() if key != name]
        judged = [other.beyond for other in others if other.judged]
        p = against_others(own.beyond, judged, max(own.scatter, TINY)) if own.judged else None
        middle = float(np.median([other.value for other in others])) if others else None
        found[name] = Change(own.value, middle, 1.0 if p is not None and own.p > ALONE else p)
    return found
