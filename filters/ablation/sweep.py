"""What each filter of a layer is worth alone, and how accuracy falls as filters are removed.

A sweep ablates every filter alone; `effects` determines what it cost and which class it cost most.
`removal_orders` lists orders in which all filters of a layer may be removed, and `curves` turns the
counts of the cumulative runs into accuracy against the share removed. Both are evaluated on the
images that they were run on, where an order by sweep rank looks somewhat better than elsewhere.
Shapes: V ablations, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.output.record import HIDDEN, Change, Count, Record, Says, Share
from cnnviz.filters.ablation.evaluation import mcnemar
from cnnviz.filters.ablation.measures import Measured
from cnnviz.filters.ablation.options import RemovalOrder
from cnnviz.filters.ablation.tally import Counts
from cnnviz.filters.channels import Channels

POINTS = 10
RANDOM_ORDERS = 5


@dataclass(frozen=True, kw_only=True)
class FilterEffect(Record):
    """The effect of switching off one filter; null where answers are measured, not counted."""

    layer: str
    filter: Annotated[Count, Says("its output channel")]
    correct: Annotated[Count | None, Says("images right without it")] = None
    accuracy: Annotated[float, Says("without it, or the measure", only="csv")]
    change: Annotated[float, Says("of accuracy, or of the measure")]
    lost: Annotated[Count | None, Says("images right with it and wrong without")] = None
    gained: Annotated[Count | None, Says("images wrong with it and right without")] = None
    p_value: Annotated[Share | None, Says("McNemar's, of this one comparison")] = None
    probability_change: Annotated[
        Change | None, Says("mean change of the labelled class's probability")
    ] = None
    hurts: Annotated[str | None, Says("the class whose accuracy fell most")]
    hurts_change: Annotated[float, Says("change of that class; 0 with none")]
    hurts_probability_change: Annotated[
        Change | None, Says("mean change of that class's probability on its images; 0 with none")
    ] = None
    harm: Annotated[float, HIDDEN] = 0.0


def effects(
    outcome: Counts | Measured,
    filters: Sequence[tuple[str, int]],
    first: int,
    names: Sequence[str],
) -> tuple[FilterEffect, ...]:
    """The effect of each of `filters` (layer, channel), whose ablations start at `first`."""
    return tuple(
        _effect(outcome, place, layer, channel, names)
        if isinstance(outcome, Counts)
        else _measured_effect(outcome, place, layer, channel, names)
        for place, (layer, channel) in enumerate(filters, start=first)
    )


def _effect(
    counts: Counts, place: int, layer: str, channel: int, names: Sequence[str]
) -> FilterEffect:
    seen = np.flatnonzero(counts.images)
    sizes = counts.images[seen]
    total = int(sizes.sum())
    change = (counts.correct[place, seen] - counts.correct[0, seen]) / sizes
    moved = (counts.probability[place, seen] - counts.probability[0, seen]) / sizes
    worst = min(range(len(seen)), key=lambda row: (change[row], moved[row]))
    harmed = change[worst] < 0 or moved[worst] < 0
    lost, gained = int(counts.lost[place]), int(counts.gained[place])
    correct = int(counts.correct[place].sum())
    overall = (correct - int(counts.correct[0].sum())) / total
    return FilterEffect(
        layer=layer,
        filter=channel,
        correct=correct,
        accuracy=correct / total,
        change=overall,
        lost=lost,
        gained=gained,
        p_value=mcnemar(lost, gained).p_value,
        probability_change=float((counts.probability[place] - counts.probability[0]).sum()) / total,
        hurts=names[int(seen[worst])] if harmed else None,
        hurts_change=float(change[worst]) if harmed else 0.0,
        hurts_probability_change=float(moved[worst]) if harmed else 0.0,
        harm=-overall,
    )


def _measured_effect(
    measured: Measured, place: int, layer: str, channel: int, names: Sequence[str]
) -> FilterEffect:
    mean_V, worst = measured.mean_V, measured.hurt_most(place)
    change = float(mean_V[place] - mean_V[0])
    return FilterEffect(
        layer=layer,
        filter=channel,
        accuracy=measured.before + change,
        change=change,
        hurts=None if worst is None else names[worst[0]],
        hurts_change=0.0 if worst is None else worst[1],
        harm=-measured.measure.sign * change,
    )


def ranked(effects: Sequence[FilterEffect]) -> tuple[FilterEffect, ...]:
    """Sorts by harm, worst first: by accuracy, then probability, then order of the network."""
    return tuple(sorted(effects, key=lambda e: (-e.harm, e.probability_change or 0.0)))


Orders = Mapping[RemovalOrder, Sequence[Sequence[int]]]
"""For each kind of order, one or more permutations of a layer's channels."""


def removal_orders(
    channels: int,
    sweep: Sequence[FilterEffect],
    norms: NDArray[np.floating] | None,
    magnitudes: NDArray[np.floating],
    seed: int,
) -> dict[RemovalOrder, list[list[int]]]:
    """Returns the orders in which a layer's channels are removed.

    Args:
        channels: number of channels of the layer.
        sweep: the effects of its filters.
        norms: norms of its kernels; None for a layer without kernels.
        magnitudes: mean absolute output of each channel.
        seed: of the random orders.
    """
    generator = np.random.default_rng(seed)
    by_harm = [effect.filter for effect in ranked(sweep)]
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
    """Numbers of removed channels at which accuracy is measured: tenths, including 0 and all."""
    return tuple(sorted({round(channels * step / POINTS) for step in range(POINTS + 1)}))


def cumulative_ablations(layer: str, channels: int, orders: Orders) -> list[Channels]:
    """The ablations that `curves` needs: none, all, then the steps in between of each order."""
    inner = steps(channels)[1:-1]
    ablations: list[Channels] = [{}, {layer: tuple(range(channels))}]
    for permutations in orders.values():
        for permutation in permutations:
            ablations += [{layer: tuple(sorted(permutation[:count]))} for count in inner]
    return ablations


@dataclass(frozen=True)
class Curve(Record):
    """Accuracy, or the measure, while a layer's filters are removed, in one kind of order."""

    layer: str
    order: RemovalOrder
    removed: Annotated[tuple[Count, ...], Says("numbers of filters removed")]
    accuracy: Annotated[tuple[float, ...], Says("mean over the orders of this kind")]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]


@dataclass(frozen=True)
class CurvePoint(Record):
    """One point of a curve."""

    layer: str
    order: RemovalOrder
    removed: Count
    share: Share
    accuracy: float
    lowest: float
    highest: float


def points(curve: Curve) -> list[CurvePoint]:
    """The points of a curve."""
    levels = zip(curve.removed, curve.accuracy, curve.lowest, curve.highest, strict=True)
    return [
        CurvePoint(curve.layer, curve.order, count, count / curve.removed[-1], *level)
        for count, *level in levels
    ]


def curves(
    layer: str, channels: int, orders: Orders, shares: NDArray[np.float64]
) -> tuple[Curve, ...]:
    """Accuracy curves from the accuracies (V,) of `cumulative_ablations`."""
    removed = steps(channels)
    inner = len(removed) - 2
    place = 2
    results = []
    for order, permutations in orders.items():
        stop = place + inner * len(permutations)
        middle = shares[place:stop].reshape(len(permutations), inner)
        place = stop
        ends = [np.full((len(permutations), 1), shares[end]) for end in (0, 1)]
        rows = np.concatenate([ends[0], middle, ends[1]], axis=1)
        levels = (
            tuple(v.tolist()) for v in (rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0))
        )
        results.append(Curve(layer, order, removed, *levels))
    return tuple(results)
