"""One class seen through one mask: the map, and the numbers that sum it up.

Shapes: P positions of this mask, K classes, H W rows and columns.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.models.heads import Head, Kind
from cnnviz.occlusion.options import Score, Upsample
from cnnviz.occlusion.maps import class_scores, pixel_map, position_values, target_scores
from cnnviz.occlusion.masks import Grid


@dataclass(frozen=True, eq=False)
class Panel:
    """What covering the image piece by piece does to one class.

    Attributes:
        target: class index.
        grid: the mask and its positions.
        probability: of the class on the untouched image; of a regression the value.
        probabilities_P: the same at each position.
        values_P: how much covering each position hurts, in units of the score.
        map_HW: the same for each pixel.
        max_drop: the largest of `values_P`.
        max_drop_box: where it is (y0, x0, y1, x1).
        mean_drop: the mean of `values_P`.
        reliance: largest drop of the probability over the probability on the untouched image; near
            1 the class hangs on one patch, near 0 the evidence is redundant. None of a regression.
        winners_P: the most probable class at each position.
        flips: share of positions where that is not the predicted class; of a class on its own,
            where it crosses the threshold; None of a regression.
        flips_to: those other classes and their numbers of positions, most frequent first.
    """

    target: int
    grid: Grid
    probability: float
    probabilities_P: Tensor
    values_P: Tensor
    map_HW: Tensor
    max_drop: float
    max_drop_box: tuple[int, int, int, int]
    mean_drop: float
    reliance: float | None
    winners_P: Tensor
    flips: float | None
    flips_to: tuple[tuple[int, int], ...]


def make_panel(
    base_logits_K: Tensor,
    logits_PK: Tensor,
    grid: Grid,
    size: tuple[int, int],
    target: int,
    score: Score,
    upsample: Upsample,
    head: Head,
) -> Panel:
    """Derives one panel from the scores at one grid's positions."""
    values_P = position_values(base_logits_K, logits_PK, target, score, head)
    probabilities_P = target_scores(logits_PK, target, Score.PROBABILITY, head)
    probability = float(class_scores(base_logits_K, Score.PROBABILITY, head)[target])
    peak = int(values_P.argmax())
    y0, x0, y1, x1 = grid.boxes_P4[peak].tolist()
    winners_P = logits_PK.argmax(1)
    flips, flips_to = _flips(base_logits_K, logits_PK, target, head)
    largest_loss = probability - float(probabilities_P.min())
    tiny = torch.finfo(torch.float64).tiny
    return Panel(
        target=target,
        grid=grid,
        probability=probability,
        probabilities_P=probabilities_P,
        values_P=values_P,
        map_HW=pixel_map(values_P, grid, size, upsample),
        max_drop=float(values_P[peak]),
        max_drop_box=(y0, x0, y1, x1),
        mean_drop=float(values_P.mean()),
        reliance=largest_loss / max(probability, tiny) if head.has_classes else None,
        winners_P=winners_P,
        flips=flips,
        flips_to=flips_to,
    )


def _flips(
    base_logits_K: Tensor, logits_PK: Tensor, target: int, head: Head
) -> tuple[float | None, tuple[tuple[int, int], ...]]:
    """How often covering changes the answer, and to which classes."""
    if not head.has_classes:
        return None, ()
    if head.kind is Kind.SIGMOID:
        crossed_P = head.holds(logits_PK)[:, target] != head.holds(base_logits_K)[target]
        return float(crossed_P.double().mean()), ()
    predicted = int(base_logits_K.argmax())
    others = Counter(winner for winner in logits_PK.argmax(1).tolist() if winner != predicted)
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return others.total() / len(logits_PK), tuple(ranked)


def make_panels(
    base_logits_K: Tensor,
    logits_PK: Tensor,
    grids: Sequence[Grid],
    size: tuple[int, int],
    targets: Sequence[int],
    score: Score,
    upsample: Upsample,
    head: Head,
) -> tuple[Panel, ...]:
    """A panel for each target and mask, targets outermost; `logits_PK` holds grid after grid."""
    parts = torch.split(logits_PK, [len(grid.boxes_P4) for grid in grids])
    return tuple(
        make_panel(base_logits_K, part_PK, grid, size, target, score, upsample, head)
        for target in targets
        for grid, part_PK in zip(grids, parts, strict=True)
    )
