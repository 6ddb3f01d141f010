"""Which classes changed more than the others, and in which measure.

Two networks never look at exactly the same places, and two trainings of one differ in every class.
So a class is compared with the other classes of the same two networks, sign by sign. Each sign is a
function of a mean over the class's images, so one resampling gives the scatter of all by chance.
Shapes: N images of all classes, M of one, V values of a sign, B resamples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.statistics import against_others, suspicions
from cnnviz.diff.results import ClassChange, Images, SignChange
from cnnviz.diff.sides import Answers, Floats

SMALLEST = 5
"""A class of fewer images is not judged."""
RESAMPLES = 200
ALONE = 0.05
"""P-value of no change at all; above it a class has not changed, regardless of the others."""
TINY = 0.02
"""Radians; smaller differences of the arc sine of the root are ignored."""


@dataclass(frozen=True, eq=False)
class Sign:
    """A measure that can change.

    Attributes:
        name: for tables.
        values_NV: values of each image; NaN where unknown.
        share: turns their means (…, V) into a share (…,).
        signed: whether the values change their sign when the networks swap.
    """

    name: str
    values_NV: NDArray[np.floating]
    share: Callable[[NDArray[np.floating]], Floats]
    signed: bool


def _single(means: NDArray[np.floating]) -> Floats:
    share: Floats = np.abs(means[..., 0]).astype(np.float64)
    return share


def _variation(means: NDArray[np.floating]) -> Floats:
    """Total variation: the share of the evidence that moved in the mean."""
    share: Floats = 0.5 * np.abs(means).sum(-1).astype(np.float64)
    return share


def signs_of(images: Images) -> list[Sign]:
    """The signs that are known of these images."""
    signs: list[Sign] = []
    if images.agreement_N is not None and images.moved_NP is not None:
        unlike = (1 - images.agreement_N[:, None]) / 2
        signs.append(Sign("maps unlike", unlike, _single, signed=False))
        signs.append(Sign("evidence moved", images.moved_NP, _variation, signed=True))
    columns = {
        "reliance changed": images.reliance_N,
        "inside changed": images.inside_N,
        "accuracy changed": images.right_N2[:, 1] - images.right_N2[:, 0],
    }
    signs += [
        Sign(name, values[:, None], _single, signed=True)
        for name, values in columns.items()
        if not np.isnan(values).all()
    ]
    if images.kept_N is not None:
        signs.append(Sign("neighbours lost", 1 - images.kept_N[:, None], _single, signed=False))
    return signs


def compare_classes(answers: Answers, images: Images, seed: int) -> list[ClassChange]:
    """Compares every class: by label or, without labels, by the first network's prediction."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(answers.labels if any(answers.labels) else answers.predicted):
        if name:
            members.setdefault(name, []).append(row)
    rows = {name: np.array(places, np.int64) for name, places in sorted(members.items())}
    changes: dict[str, dict[str, SignChange]] = {name: {} for name in rows}
    for sign in signs_of(images):
        draw = np.random.default_rng(seed)
        measured = {name: _measured(sign, rows_M, draw) for name, rows_M in rows.items()}
        for name, change in _against_others(measured).items():
            changes[name][sign.name] = change
    certainties = suspicions([_combined(signs.values()) for signs in changes.values()])
    return [
        ClassChange(
            class_=name,
            members=rows[name],
            images=len(rows[name]),
            flips=float(images.flipped_N[rows[name]].mean()),
            signs=signs,
            certainty=certainty,
        )
        for (name, signs), certainty in zip(changes.items(), certainties, strict=True)
    ]


def _combined(changes: Iterable[SignChange]) -> float | None:
    """The smallest p-value times their number (Bonferroni)."""
    known = [change.p for change in changes if change.p is not None]
    return min(1.0, len(known) * min(known)) if known else None


@dataclass(frozen=True)
class _Measured:
    """A sign in a class: its value, that beyond chance, its scatter, p-value of no change."""

    value: float
    beyond: float
    scatter: float
    p: float
    judged: bool


def _measured(sign: Sign, rows: NDArray[np.int64], draw: np.random.Generator) -> _Measured | None:
    """Measures a sign in a class; None where it is unknown."""
    values_MV = sign.values_NV[rows]
    values_MV = values_MV[~np.isnan(values_MV).any(1)].astype(np.float64)
    count = len(values_MV)
    if not count:
        return None
    value = float(sign.share(values_MV.mean(0)))
    weights_BM = draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    heights_B = np.arcsin(np.sqrt(sign.share(weights_BM @ values_MV).clip(0, 1)))
    by_chance, p = 0.0, 0.0
    if sign.signed:  # of equal networks, either could be the first on each image
        swaps_BM = draw.choice((-1.0, 1.0), (RESAMPLES, count)) / count
        swapped_B = sign.share(swaps_BM @ values_MV)
        by_chance = float(swapped_B.mean())
        p = float((1 + (swapped_B >= value - 1e-12).sum()) / (1 + RESAMPLES))
    beyond = max(0.0, value - by_chance)
    return _Measured(value, beyond, float(heights_B.std()), p, count >= SMALLEST)


def _against_others(measured: dict[str, _Measured | None]) -> dict[str, SignChange]:
    """Compares each class with the others."""
    known = {name: sign for name, sign in measured.items() if sign is not None}
    changes: dict[str, SignChange] = {}
    for name, sign in known.items():
        others = [other for key, other in known.items() if key != name]
        judged = [other.beyond for other in others if other.judged]
        p = against_others(sign.beyond, judged, max(sign.scatter, TINY)) if sign.judged else None
        middle = float(np.median([other.value for other in others])) if others else None
        if p is not None and sign.p > ALONE:
            p = 1.0
        changes[name] = SignChange(sign.value, middle, p)
    return changes
