"""How trustworthy one class's map of one image is.

Four questions, none of which answers the others: does removing what the map marks harm the class
more than chance does (`trust.removal`)? Does the map depend on what the network learned, and on the
class? Do other methods, other mask sizes and other fills agree? Do the parts add up?
Shapes: H W rows and columns, P positions.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from torch import Tensor

from cnnviz.core.maps import peak, rank_correlation
from cnnviz.core.output.summary import AgainstChance, Scorecard, Verdict
from cnnviz.trust.removal import BLUR, MEAN, Curve, Order, gain, on_random_shares

# Set on every second of 182 images with boxes, and checked on the others: docs/truth.md.
BELIEVED, CHANCE = 0.7, 0.4
FULL_AGREEMENT = 0.7  # a rank correlation that counts as one
FAR_APART = 0.4  # of the diagonal: peaks that count as nowhere near each other
MIN_STABLE = 0.3
MAX_RANDOMISED = 0.6


@dataclass(frozen=True, eq=False)
class Evidence:
    """Independent checks of the same class and image.

    Attributes:
        others: maps (H, W) by other methods.
        agreement: rank correlation with each; None where a map is constant.
        other_gains: symmetric relevance gain of each.
        variants: maps (H, W) by the same method with other sizes or fills.
        randomised: the method's values at some positions, and the same with the network's last
            layers random; None where the network or the map does not allow it.
        other_classes: the method's values (P,), and those of other classes; or None.
        completeness: what non-overlapping masks take away in sum over what covering everything
            takes; None where that is nothing, or not known.
    """

    others: Mapping[str, Tensor]
    agreement: Mapping[str, float | None]
    other_gains: Mapping[str, float]
    variants: Mapping[str, Tensor]
    randomised: tuple[Tensor, Tensor] | None = None
    other_classes: tuple[Tensor, Sequence[Tensor]] | None = None
    completeness: float | None = None


Witnesses = Evidence  # the former name


def scorecard(
    map_HW: Tensor, curves: Sequence[Curve], random_gains: Sequence[float], evidence: Evidence
) -> Scorecard:
    """Combines the answers.

    Args:
        map_HW: positive is evidence for the class.
        curves: of its removal.
        random_gains: of random maps, for the same image and class.
        evidence: the other checks.
    """
    map_gain = gain(curves)
    largest = max(map_gain, *evidence.other_gains.values(), 0.0)
    relative_gain = max(0.0, map_gain / largest) if largest > 0 else 0.0
    variants = evidence.variants
    spread = peak_spread([map_HW, *variants.values(), *evidence.others.values()])
    certain_HW = certain(map_HW, list(variants.values()))
    areas = {(curve.fill, curve.order): curve.area for curve in curves}
    card = Scorecard(
        verdict=Verdict.CHANCE,
        reasons=(),
        trust=_trust(relative_gain, evidence.agreement, spread),
        gain=map_gain,
        relative_gain=relative_gain,
        other_gains=evidence.other_gains,
        gain_by_fill={
            fill: gain([curve for curve in curves if curve.fill == fill])
            for fill in dict.fromkeys(curve.fill for curve in curves)
        },
        against_chance=AgainstChance(
            gain=gain(on_random_shares(curves)),
            random_maps=tuple(random_gains),
            interval=chance(random_gains),
        ),
        insertion=areas[BLUR, Order.LEAST],
        deletion=areas[MEAN, Order.MOST],
        agreement=evidence.agreement,
        peak_spread=spread,
        stability={name: rank_correlation(map_HW, other) for name, other in variants.items()},
        certain=None if certain_HW is None else float(certain_HW.double().mean()),
        randomised=None if evidence.randomised is None else rank_correlation(*evidence.randomised),
        other_class=_mean_correlation(evidence.other_classes),
        completeness=evidence.completeness,
        curves=tuple(curves),
        certain_HW=certain_HW,
    )
    verdict, reasons = judge(card)
    return replace(card, verdict=verdict, reasons=reasons)


def _trust(
    relative_gain: float, agreement: Mapping[str, float | None], spread: float | None
) -> float | None:
    """From 0 to 1: two parts relative gain, two parts agreement, one part nearness of peaks.

    None without another method to compare the map with.
    """
    if not agreement:
        return None
    agreed = min(value or 0.0 for value in agreement.values()) / FULL_AGREEMENT
    near = 1 - (spread or 0.0) / FAR_APART
    clipped = [min(max(part, 0.0), 1.0) for part in (relative_gain, agreed, near)]
    return float(np.average(clipped, weights=(2, 2, 1)))


def chance(random_gains: Sequence[float]) -> tuple[float, float]:
    """The interval of 95 % of random maps.

    Each comes with its opposite, so that the middle is zero and half of them are free (Student's t
    for so few).
    """
    free = len(random_gains) // 2
    spread = math.sqrt(float(np.mean(np.square(random_gains))))
    reach = float(scipy.stats.t.ppf(0.975, free)) * spread
    return -reach, reach


def judge(card: Scorecard) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and why it is not better."""
    reasons = tuple(_reasons(card))
    if card.gain <= 0:
        return Verdict.CHANCE, ("removing what it marks harms the class no more than the rest",)
    if card.trust is None:
        return Verdict.FRAGILE, ("no Grad-CAM to compare it with", *reasons)
    if card.trust < CHANCE:
        return Verdict.CHANCE, reasons
    limited = any(
        value is not None and value < MIN_STABLE for value in card.stability.values()
    ) or (card.randomised is not None and card.randomised > MAX_RANDOMISED)
    if card.trust < BELIEVED or limited:
        return Verdict.FRAGILE, reasons
    return Verdict.BELIEVE, ()


def _reasons(card: Scorecard) -> Iterator[str]:
    """Each check below its level, in a few words."""
    if card.relative_gain < BELIEVED:
        best = max(card.other_gains, key=lambda name: card.other_gains[name], default="nothing")
        yield f"{best} marks more of what matters"
    for name, value in card.agreement.items():
        if value is None:
            yield f"{name} cannot be compared: one of the two maps is constant"
        elif value < BELIEVED * FULL_AGREEMENT:
            yield f"{name} disagrees"
    if card.peak_spread is not None and card.peak_spread > (1 - BELIEVED) * FAR_APART:
        yield "its peak moves"
    for name, value in card.stability.items():
        if value is None or value < MIN_STABLE:
            yield f"changes with {name}"
    if card.randomised is not None and card.randomised > MAX_RANDOMISED:
        yield "stays with the last layers random"


def peak_spread(maps: Sequence[Tensor]) -> float | None:
    """Mean distance between the peaks of maps (H, W), as a share of the diagonal; None of one."""
    if len(maps) < 2:
        return None
    peaks = [peak(map_HW) for map_HW in maps]
    distances = [math.dist(first, second) for first, second in itertools.combinations(peaks, 2)]
    return float(np.mean(distances)) / math.hypot(*maps[0].shape)


def certain(map_HW: Tensor, variants: Sequence[Tensor]) -> Tensor | None:
    """(H, W) whether the sign is the same in all; None without variants."""
    if not variants:
        return None
    signs = torch.stack([other.sign() for other in (map_HW, *variants)])
    return (signs == signs[0]).all(0)


def _mean_correlation(pair: tuple[Tensor, Sequence[Tensor]] | None) -> float | None:
    if pair is None:
        return None
    values = [rank_correlation(pair[0], other) for other in pair[1]]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
