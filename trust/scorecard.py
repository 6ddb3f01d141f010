"""How trustworthy one class's map of one image is: the numbers, and the verdict that they give.

The numbers depend on the map, the network, the image and the class alone, not on how the map was
made: a map from a file gets the verdict that it got when it was drawn. Does removing what the map
marks harm the class more than chance does (`trust.removal`)? Do other methods mark the same region,
and not its mirror images, and do they mark another one for other classes? Is there an effect at
all, and does the network predict the class?
Shapes: H W rows and columns.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from torch import Tensor

from cnnviz.core.maps import positive_part
from cnnviz.core.output.judged import AgainstChance, Scorecard, Verdict
from cnnviz.trust.removal import BLUR, MEAN, Curve, Order, gain

# All from benchmarks/trust.py --fit: logistic regression, cross-validated, on every second of the
# 182 photographs with boxes (SqueezeNet 1.1) and on CIFAR-10 (bundled network, ResNet-20). Peak
# spread, the re-randomised network and the size of the effect added nothing to these five.
WEIGHTS = {"gain": 0.56, "agreement": 0.95, "mirrored": 11.2, "lead": 7.6, "contrast": 3.71}
OFFSET = -3.06
# Beyond these, more is not better; a lead is no merit: good maps that miss have one, too.
RANGES = {"gain": (-1.0, 1.5), "mirrored": (-0.05, 0.1), "lead": (-0.2, 0.0)}
BELIEVED, CHANCE = 0.78, 0.35
MIN_EFFECT, CLEAR_EFFECT = 1.0, 2.5  # drops of the log-odds: of 44 misses 16 were below 2.5
MIN_SHARE = 0.05  # of the probability
MIN_STANDING = 0.1  # probability of a class that is not predicted
UNSURE = 0.5  # probability of a predicted class
THIN = 1.5  # less above a limit is a thin margin, which the verdict names
# Nine of ten maps that hit the object are above; a component below is given as a reason.
USUAL = {"agreement": 0.65, "mirrored": 0.05, "contrast": 0.4}
MOST_PARENTS = 2
WITNESSES = 4


@dataclass(frozen=True, eq=False)
class Evidence:
    """Independent checks of the same class and image.

    Attributes:
        witnesses: maps (H, W) of the class by methods of their own, by name.
        own: what occlusion reports for the class (H, W).
        other_classes: what occlusion reports for other classes.
        effect: the largest drop of the class's score that occluding any region causes; log-odds.
        effect_share: the largest share of its probability; None for a regression.
        probability: of the class; None for a regression.
        predicted: whether the network predicts it.
        certain_HW: whether the sign is the same with other masks and fills; None if not known.
    """

    witnesses: Mapping[str, Tensor]
    own: Tensor
    other_classes: Sequence[Tensor]
    effect: float
    effect_share: float | None = None
    probability: float | None = None
    predicted: bool = True
    certain_HW: Tensor | None = None


Witnesses = Evidence  # the former name


def scorecard(
    map_HW: Tensor,
    curves: Sequence[Curve],
    lead: float,
    random_gains: Sequence[float],
    evidence: Evidence,
) -> Scorecard:
    """Computes the numbers and the verdict of a map, positive where there is evidence."""
    certain_HW = evidence.certain_HW
    areas = {(curve.fill, curve.order): curve.area for curve in curves}
    witnesses, others = evidence.witnesses, evidence.other_classes
    cosines = {name: cosine(map_HW, other) for name, other in witnesses.items()}
    contrast = None
    if others:
        mean = float(np.mean([cosine(map_HW, other) for other in others]))
        contrast = cosine(map_HW, evidence.own) - mean
    card = Scorecard(
        verdict=Verdict.CHANCE,
        reasons=(),
        trust=0.0,
        gain=gain(curves),
        against_chance=AgainstChance(
            random_maps=tuple(random_gains), interval=chance(random_gains)
        ),
        insertion=areas[BLUR, Order.LEAST],
        deletion=areas[MEAN, Order.MOST],
        witnesses=cosines,
        agreement=without_parents(list(cosines.values())),
        mirrored=without_parents([mirrored(map_HW, other) for other in witnesses.values()]),
        lead=lead,
        contrast=contrast,
        effect=evidence.effect,
        effect_share=evidence.effect_share,
        certain=None if certain_HW is None else float(certain_HW.double().mean()),
        curves=tuple(curves),
        certain_HW=certain_HW,
    )
    total = OFFSET + sum(WEIGHTS[name] * value for name, value in components(card).items())
    card = replace(card, trust=1 / (1 + math.exp(-total)))
    verdict, reasons = judge(card, bool((map_HW > 0).any()), evidence)
    return replace(card, verdict=verdict, reasons=reasons)


def cosine(first_HW: Tensor, second_HW: Tensor) -> float:
    """The cosine of the positive parts of two maps; 0 if either is positive nowhere."""
    first, second = (positive_part(m).flatten().double() for m in (first_HW, second_HW))
    lengths = float(first.norm() * second.norm())
    return min(float(first @ second) / lengths, 1.0) if lengths > 0 else 0.0


def mirrored(map_HW: Tensor, other_HW: Tensor) -> float:
    """How much more a map resembles another one than its mirror images and rotations do.

    They have its values, its contrast and its smoothness, in the wrong place.
    """
    turned = [map_HW] if map_HW.shape[0] != map_HW.shape[1] else [map_HW, map_HW.T]
    images = [image.flip(axes) for image in turned for axes in ((), (0,), (1,), (0, 1))][1:]
    mean = float(np.mean([cosine(image, other_HW) for image in images]))
    return cosine(map_HW, other_HW) - mean


def without_parents(values: Sequence[float]) -> float:
    """The second lowest of four values, the lowest of fewer; 0 for none.

    A map may have been made from up to two of the witnesses, which would vouch for it. Leaving out
    the two highest values gives never more than leaving out these two, whichever they are.
    """
    ordered = sorted(values)
    return ordered[max(0, len(ordered) - MOST_PARENTS - 1)] if ordered else 0.0


def components(card: Scorecard) -> dict[str, float]:
    """The numbers that `trust` weighs, by name; gain and lead are over chance's reach."""
    reach = card.against_chance.interval[1]
    values = {
        "gain": card.gain / max(reach, torch.finfo(torch.float64).tiny),
        "agreement": card.agreement,
        "mirrored": card.mirrored,
        "lead": card.lead / max(reach, torch.finfo(torch.float64).tiny),
        "contrast": USUAL["contrast"] if card.contrast is None else card.contrast,
    }
    for name, (low, high) in RANGES.items():
        values[name] = min(max(values[name], low), high)
    return values


def chance(random_gains: Sequence[float]) -> tuple[float, float]:
    """The interval of 95 % of random maps.

    Each comes with its opposite, so that the middle is zero and half of them are free (Student's t
    for so few).
    """
    free = len(random_gains) // 2
    spread = math.sqrt(float(np.mean(np.square(random_gains))))
    reach = float(scipy.stats.t.ppf(0.975, free)) * spread
    return -reach, reach


def judge(card: Scorecard, positive: bool, evidence: Evidence) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and the reasons for it; `positive`: the map has positive evidence."""
    if not positive:
        return Verdict.WEAK, ("the map has no positive evidence",)
    if evidence.probability is not None and card.effect < MIN_EFFECT:
        return Verdict.WEAK, (f"no region lowers the log-odds by more than {card.effect:.2g}",)
    reasons = tuple(_reasons(card))
    if card.gain <= 0 or card.trust < CHANCE:
        return Verdict.CHANCE, reasons or (f"trust {card.trust:.2f}",)
    limits = tuple(_limits(card, evidence))
    if card.trust < BELIEVED or limits:
        return Verdict.FRAGILE, (*limits, *reasons) or (f"trust {card.trust:.2f}",)
    thin, p = list(_limits(card, evidence, THIN)), evidence.probability
    if evidence.predicted and p is not None and p < UNSURE:
        thin.append(f"the class is predicted with p = {p:.2g} only")
    return Verdict.BELIEVE, (
        *([f"thin margin ({', '.join(thin)})"] if thin else []),
        f"gain {card.gain:.2f}, chance up to {card.against_chance.interval[1]:.2f}",
        f"agreement with other methods {card.agreement:.2f}",
    )


def _limits(card: Scorecard, evidence: Evidence, margin: float = 1.0) -> Iterator[str]:
    """What alone keeps a map from being believed, or would if it were smaller by a margin."""
    reach, p = card.against_chance.interval[1], evidence.probability
    if card.gain <= reach:
        yield f"its gain {card.gain:.2f} is within chance, up to {reach:.2f}"
    elif card.gain <= margin * reach:
        yield f"its gain is only {100 * (card.gain / reach - 1):.0f} % above chance"
    if p is not None and not evidence.predicted and p < margin * MIN_STANDING:
        yield f"the class is not predicted, p = {p:.2g}"
    if p is not None and card.effect < margin * CLEAR_EFFECT:
        yield f"no region lowers the log-odds by more than {card.effect:.2g}"
    if card.effect_share is not None and card.effect_share < margin * MIN_SHARE:
        yield f"no region takes more than {100 * card.effect_share:.2g} % of the probability"
    if card.contrast is None:
        yield "no other class to compare it with"
    if len(card.witnesses) < WITNESSES:
        yield f"only {len(card.witnesses)} of {WITNESSES} methods to compare it with"


def _reasons(card: Scorecard) -> Iterator[str]:
    """Each component below its usual level, in a few words."""
    if card.gain <= 0:
        yield "removing what it marks harms the class no more than the rest"
    if card.agreement < USUAL["agreement"]:
        yield f"low agreement with other methods ({card.agreement:.2f})"
    if card.mirrored < USUAL["mirrored"] or card.lead < 0:
        yield "its mirror images fit as well"
    if card.contrast is not None and card.contrast < USUAL["contrast"]:
        yield "it fits other classes as well"


def certain(maps: Sequence[Tensor]) -> Tensor | None:
    """(H, W) whether the sign is the same in all maps; None of fewer than two."""
    if len(maps) < 2:
        return None
    signs = torch.stack([map_HW.sign() for map_HW in maps])
    return (signs == signs[0]).all(0)
