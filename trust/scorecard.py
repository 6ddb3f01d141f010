"""How far one class's map of one picture can be believed.

Four questions, none of which answers for the others: does removing what the map marks harm the
class more than chance does (`trust.removal`)? Does the map hang on what the network learned, and on
the class? Do other methods, other mask sizes and other fills tell the same? Do the parts add up?
Shapes: H W rows and columns, P positions.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.maps import peak, rank_correlation
from cnnviz.trust.options import Verdict
from cnnviz.trust.removal import BLUR, MEAN, Curve, Order, gain, on_random_shares

# Set on every second of 182 pictures with boxes, and held on the others: docs/truth.md.
BELIEVED, CHANCE = 0.7, 0.4
FULL_AGREEMENT = 0.7  # a rank correlation that counts as one
FAR_APART = 0.4  # of the diagonal: peaks that count as nowhere near each other
LEAST_STABLE = 0.3
MOST_RANDOMISED = 0.6


@dataclass(frozen=True, eq=False)
class Witnesses:
    """What was asked beside the map, of the same class and picture.

    Attributes:
        others: maps (H, W) by other methods.
        agreement: rank correlation with each; None where a map is constant.
        other_gains: symmetric relevance gain of each.
        variants: maps (H, W) by the same method otherwise: other sizes, other fills.
        randomised: the method's values at some places, and the same with the network's last layers
            random; None where the network or the map does not allow it.
        other_classes: the method's values (P,), and those of other classes; None likewise.
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


@dataclass(frozen=True, eq=False)
class Scorecard:
    """One map's.

    Attributes:
        curves: of removal, by both fills and in both orders.
        random_gains: symmetric relevance gains of maps that know nothing.
        gain_as_random: the map's own, measured as theirs.
        randomised: rank correlation with the map of the network with random last layers.
        other_class: mean rank correlation with maps of other classes.
        agreement: rank correlation with each other method.
        other_gains: symmetric relevance gain of each other method.
        stability: rank correlation with each variant.
        peak_spread: mean distance between the peaks of the map, its variants and the other
            methods, as a share of the picture's diagonal; None with one peak alone.
        certain_HW: whether all variants agree with the map on a pixel's sign; None without any.
        completeness: see `Witnesses`.
        verdict: in words.
        reasons: why it is no better; empty where it is believed.
    """

    curves: tuple[Curve, ...]
    random_gains: tuple[float, ...]
    gain_as_random: float
    randomised: float | None
    other_class: float | None
    agreement: Mapping[str, float | None]
    other_gains: Mapping[str, float]
    stability: Mapping[str, float | None]
    peak_spread: float | None
    certain_HW: Tensor | None
    completeness: float | None
    verdict: Verdict = Verdict.CHANCE
    reasons: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """The symmetric relevance gain, mean over the fills."""
        return gain(self.curves)

    @property
    def relative_gain(self) -> float:
        """The gain as a share of the largest that any method has here; 0 where none gains."""
        largest = max(self.gain, *self.other_gains.values(), 0.0)
        return max(0.0, self.gain / largest) if largest > 0 else 0.0

    @property
    def trust(self) -> float | None:
        """From 0 to 1: two parts relative gain, two parts agreement, one part nearness of peaks.

        None with no other method to hold the map against.
        """
        if not self.agreement:
            return None
        agreed = min(value or 0.0 for value in self.agreement.values()) / FULL_AGREEMENT
        near = 1 - (self.peak_spread or 0.0) / FAR_APART
        clipped = [min(max(part, 0.0), 1.0) for part in (self.relative_gain, agreed, near)]
        return float(np.average(clipped, weights=(2, 2, 1)))

    @property
    def chance(self) -> tuple[float, float]:
        """What 95 of 100 maps that know nothing gain."""
        return chance(self.random_gains)

    @property
    def insertion(self) -> float:
        """RISE's insertion: the picture put into its blur, the most important first."""
        return next(c.area for c in self.curves if (c.fill, c.order) == (BLUR, Order.LEAST))

    @property
    def deletion(self) -> float:
        """RISE's deletion: the mean put into the picture, the most important first."""
        return next(c.area for c in self.curves if (c.fill, c.order) == (MEAN, Order.MOST))

    @property
    def line(self) -> str:
        """The verdict and its reasons, for under a picture."""
        return verdict_line(self.verdict, self.reasons)


def verdict_line(verdict: str, reasons: Sequence[str]) -> str:
    """A verdict and its reasons in a line."""
    return f"{verdict}{': ' if reasons else ''}{'; '.join(reasons)}"


def chance(random_gains: Sequence[float]) -> tuple[float, float]:
    """The interval that 95 of 100 maps that know nothing fall in.

    Each comes with its opposite, so that the middle is zero and half of them are free (Student's t
    for so few).
    """
    from scipy.stats import t

    free = len(random_gains) // 2
    spread = math.sqrt(float(np.mean(np.square(random_gains))))
    reach = float(t.ppf(0.975, free)) * spread
    return -reach, reach


def scorecard(
    map_HW: Tensor,
    curves: Sequence[Curve],
    random_gains: Sequence[float],
    witnesses: Witnesses,
) -> Scorecard:
    """Puts the answers together.

    Args:
        map_HW: positive where a place speaks for the class.
        curves: of its removal.
        random_gains: of maps that know nothing of the same picture and class.
        witnesses: what else was asked.
    """
    variants = witnesses.variants
    found = Scorecard(
        curves=tuple(curves),
        random_gains=tuple(random_gains),
        gain_as_random=gain(on_random_shares(curves)),
        randomised=_of_pair(witnesses.randomised),
        other_class=_of_others(witnesses.other_classes),
        agreement=witnesses.agreement,
        other_gains=witnesses.other_gains,
        stability={name: rank_correlation(map_HW, other) for name, other in variants.items()},
        peak_spread=peak_spread([map_HW, *variants.values(), *witnesses.others.values()]),
        certain_HW=certain(map_HW, list(variants.values())),
        completeness=witnesses.completeness,
    )
    verdict, reasons = judge(found)
    return replace(found, verdict=verdict, reasons=reasons)


def judge(found: Scorecard) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and why it is no better."""
    reasons = tuple(_reasons(found))
    if found.gain <= 0:
        return Verdict.CHANCE, ("removing what it marks harms the class no more than the rest",)
    if found.trust is None:
        return Verdict.FRAGILE, ("no gradient to hold it against", *reasons)
    if found.trust < CHANCE:
        return Verdict.CHANCE, reasons
    limited = any(
        value is not None and value < LEAST_STABLE for value in found.stability.values()
    ) or (found.randomised is not None and found.randomised > MOST_RANDOMISED)
    if found.trust < BELIEVED or limited:
        return Verdict.FRAGILE, reasons
    return Verdict.BELIEVE, ()


def _reasons(found: Scorecard) -> Iterator[str]:
    """What is below its level, each in a few words."""
    if found.relative_gain < BELIEVED:
        best = max(found.other_gains, key=lambda name: found.other_gains[name], default="nothing")
        yield f"{best} marks more of what matters"
    for name, value in found.agreement.items():
        if value is None or value < BELIEVED * FULL_AGREEMENT:
            yield f"{name} disagrees"
    if found.peak_spread is not None and found.peak_spread > (1 - BELIEVED) * FAR_APART:
        yield "its peak moves"
    for name, value in found.stability.items():
        if value is None or value < LEAST_STABLE:
            yield f"changes with {name}"
    if found.randomised is not None and found.randomised > MOST_RANDOMISED:
        yield "stays with the last layers random"


def peak_spread(maps: Sequence[Tensor]) -> float | None:
    """Mean distance between the peaks of maps (H, W), as a share of the diagonal."""
    if len(maps) < 2:
        return None
    peaks = [peak(map_HW) for map_HW in maps]
    distances = [math.dist(first, second) for first, second in itertools.combinations(peaks, 2)]
    return float(np.mean(distances)) / math.hypot(*maps[0].shape)


def certain(map_HW: Tensor, variants: Sequence[Tensor]) -> Tensor | None:
    """(H, W) whether the sign is the same in all; None with no variants."""
    if not variants:
        return None
    signs = torch.stack([other.sign() for other in (map_HW, *variants)])
    return (signs == signs[0]).all(0)


def _of_pair(pair: tuple[Tensor, Tensor] | None) -> float | None:
    return None if pair is None else rank_correlation(*pair)


def _of_others(pair: tuple[Tensor, Sequence[Tensor]] | None) -> float | None:
    if pair is None:
        return None
    found = [rank_correlation(pair[0], other) for other in pair[1]]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else None
