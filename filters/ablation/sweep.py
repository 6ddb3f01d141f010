"""What each filter of a layer is worth alone, and how accuracy falls as filters go together.

A sweep ablates every filter by itself; `effects` reads off what it cost and which class it cost
most. `removal_orders` lists orders in which all filters of a layer may go, and `curves` turns the
counts of the cumulative runs into accuracy against the share removed. Both are judged on the images
they are run on: an order by sweep rank looks somewhat better there than it would elsewhere.
Shapes: V ablations, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cnnviz.filters.ablation.choices import RemovalOrder
from cnnviz.filters.ablation.evaluation import mcnemar
from cnnviz.filters.ablation.measures import Measured
from cnnviz.filters.ablation.tally import Counts
from cnnviz.filters.channels import Channels

if TYPE_CHECKING:
    from numpy.typing import NDArray

POINTS = 10
RANDOM_ORDERS = 5


@dataclass(frozen=True)
class FilterEffect:
    """What one filter's absence changed.

    Attributes:
        layer: its layer.
        filter: its output channel.
        change: of accuracy, -1 to 1, or of what else is measured.
        harm: the same, larger the worse.
        hurts: the class (model index) that lost most, ties by its probability; None where none did.
        hurts_change: of that class's accuracy, or what else is measured; 0 with none.
        answers: of right and wrong ones; None where there are none.
    """

    layer: str
    filter: int
    change: float
    harm: float
    hurts: int | None
    hurts_change: float
    answers: "AnswerEffect | None" = None


@dataclass(frozen=True)
class AnswerEffect:
    """What one filter's absence changed of answers that are right or wrong.

    Attributes:
        correct: images right without it.
        lost: images right with it and wrong without.
        gained: the other way.
        p_value: McNemar's, of this one comparison.
        probability_change: mean change of the labelled class's probability.
        hurts_probability: mean change of the probability of the class that lost most; 0 with none.
    """

    correct: int
    lost: int
    gained: int
    p_value: float
    probability_change: float
    hurts_probability: float


def effects(
    counts: Counts, filters: Sequence[tuple[str, int]], first: int
) -> tuple[FilterEffect, ...]:
    """The effect of each of `filters` (layer, channel), whose ablations stand from `first` on."""
    found = []
    for place, (layer, channel) in enumerate(filters, start=first):
        found.append(_effect(counts, place, layer, channel))
    return tuple(found)


def _effect(counts: Counts, place: int, layer: str, channel: int) -> FilterEffect:
    seen = np.flatnonzero(counts.images)
    sizes = counts.images[seen]
    total = int(sizes.sum())
    change = (counts.correct[place, seen] - counts.correct[0, seen]) / sizes
    moved = (counts.probability[place, seen] - counts.probability[0, seen]) / sizes
    worst = min(range(len(seen)), key=lambda row: (change[row], moved[row]))
    harmed = change[worst] < 0 or moved[worst] < 0
    lost, gained = int(counts.lost[place]), int(counts.gained[place])
    correct = int(counts.correct[place].sum())
    shift = float((counts.probability[place] - counts.probability[0]).sum()) / total
    overall = (correct - int(counts.correct[0].sum())) / total
    return FilterEffect(
        layer=layer,
        filter=channel,
        change=overall,
        harm=-overall,
        hurts=int(seen[worst]) if harmed else None,
        hurts_change=float(change[worst]) if harmed else 0.0,
        answers=AnswerEffect(
            correct=correct,
            lost=lost,
            gained=gained,
            p_value=mcnemar(lost, gained).p_value,
            probability_change=shift,
            hurts_probability=float(moved[worst]) if harmed else 0.0,
        ),
    )


def measured_effects(
    found: Measured, filters: Sequence[tuple[str, int]], first: int
) -> tuple[FilterEffect, ...]:
    """`effects` where answers are measured, not counted."""
    listed = []
    for place, (layer, channel) in enumerate(filters, start=first):
        change, (hurts, by) = found.change(place), found.hurt_most(place) or (None, 0.0)
        harm = -found.measure.sign * change
        listed.append(FilterEffect(layer, channel, change, harm, hurts, by))
    return tuple(listed)


def ranked(found: Sequence[FilterEffect]) -> tuple[FilterEffect, ...]:
    """Most harmful loss first: by accuracy, then by probability, then in order of the network."""

    def key(effect: FilterEffect) -> tuple[float, float]:
        return -effect.harm, effect.answers.probability_change if effect.answers else 0.0

    return tuple(sorted(found, key=key))


Orders = Mapping[RemovalOrder, Sequence[Sequence[int]]]
"""For each kind of order, one or more permutations of a layer's channels."""


def removal_orders(
    channels: int,
    found: Sequence[FilterEffect],
    norms: "NDArray[np.floating] | None",
    magnitudes: "NDArray[np.floating]",
    seed: int,
) -> dict[RemovalOrder, list[list[int]]]:
    """The orders in which a layer's channels are removed.

    Args:
        channels: how many the layer has.
        found: its sweep.
        norms: of its kernels; None for a layer without.
        magnitudes: mean absolute output of each channel.
        seed: of the random orders.
    """
    generator = np.random.default_rng(seed)
    by_harm = [effect.filter for effect in ranked(found)]
    orders = {
        RemovalOrder.RANDOM: [
            generator.permutation(channels).tolist() for _ in range(RANDOM_ORDERS)
        ],
        RemovalOrder.LEAST_HARM: [by_harm[::-1]],
        RemovalOrder.MOST_HARM: [by_harm],
        RemovalOrder.WEAKEST: [np.argsort(magnitudes, kind="stable").tolist()],
    }
    if norms is not None:
        orders[RemovalOrder.SMALLEST_NORM] = [np.argsort(norms, kind="stable").tolist()]
    return orders


def steps(channels: int) -> tuple[int, ...]:
    """Numbers of removed channels at which accuracy is measured: tenths, 0 and all included."""
    return tuple(sorted({round(channels * step / POINTS) for step in range(POINTS + 1)}))


def cumulative_ablations(layer: str, channels: int, orders: Orders) -> list[Channels]:
    """The ablations that `curves` needs: none, all, then each order's steps between."""
    inner = steps(channels)[1:-1]
    ablations: list[Channels] = [{}, {layer: tuple(range(channels))}]
    for permutations in orders.values():
        for permutation in permutations:
            ablations += [{layer: tuple(sorted(permutation[:count]))} for count in inner]
    return ablations


@dataclass(frozen=True)
class Curve:
    """Accuracy, or what else is measured, while a layer's filters go, in one kind of order.

    Attributes:
        layer: the layer.
        order: the order.
        removed: numbers of filters removed.
        accuracy: at each, the mean over the orders of this kind.
        low: the lowest of them; equal to `accuracy` for a kind with one order.
        high: the highest.
    """

    layer: str
    order: RemovalOrder
    removed: tuple[int, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curves(
    layer: str, channels: int, orders: Orders, shares: "NDArray[np.float64]"
) -> tuple[Curve, ...]:
    """Accuracy curves from the accuracies (V,) of `cumulative_ablations`."""
    removed = steps(channels)
    inner = len(removed) - 2
    place = 2
    found = []
    for order, permutations in orders.items():
        stop = place + inner * len(permutations)
        middle = shares[place:stop].reshape(len(permutations), inner)
        place = stop
        ends = [np.full((len(permutations), 1), shares[end]) for end in (0, 1)]
        rows = np.concatenate([ends[0], middle, ends[1]], axis=1)
        levels = (
            tuple(v.tolist()) for v in (rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0))
        )
        found.append(Curve(layer, order, removed, *levels))
    return tuple(found)
