"""From the scores of every position to a map per class and mask, and what it is compared with.

The value of a position is how much occluding it hurts: positive means that the patch is evidence
for the class. The value of a pixel is the mean over the masks that cover it (Zeiler and Fergus
2014, section 4.2, average over the occluder's positions in the same way).

A map is compared with the gradient's: occlusion asks what the network does without a region, the
gradient in which direction its score changes there. Either misleads at times, and seldom both in
the same region; their mean is measured in docs/truth.md.

Where the object is known, a map is judged by the pointing game (Zhang et al. 2016, "Top-down Neural
Attention by Excitation Backprop"; here without their 15-pixel tolerance): is its peak on the
object? And by the share of its positive evidence that lies on the object.
Shapes: P positions, K classes, H W rows and columns of the working image.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cnnviz.core.maps import agreement, peak, positive_part, rank_correlation
from cnnviz.core.models.boxes import BoxReading
from cnnviz.core.models.heads import SOFTMAX, Head, Kind
from cnnviz.core.output.judged import Judged
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.measurement import Gradient, Measurement
from cnnviz.occlusion.options import Border, Score, Upsample
from cnnviz.occlusion.results import Agreement, Flip, Flips, OcclusionResult, Panel

STRONG, WEAK = 0.5, 0.25  # of the peak: where one map sees evidence, and the other does not


def class_scores(logits_PK: Tensor, score: Score, head: Head = SOFTMAX) -> Tensor:
    """Converts logits (…, K) to log-odds, logits, probabilities or losses −log p; float64.

    A regression has one score only: its values.
    """
    if score is Score.PROBABILITY:
        return head.readings(logits_PK)
    if score is Score.LOG_ODDS:
        return head.log_odds(logits_PK)
    if score is Score.LOGIT:
        return head.own_logits(logits_PK)
    return -head.log_probabilities(logits_PK.double())


def target_scores(logits_PK: Tensor, target: int, score: Score, head: Head = SOFTMAX) -> Tensor:
    """Computes the scores of one class at each position, (P,) float64, in parts to save memory."""
    parts = torch.split(logits_PK, 1024)
    return torch.cat([class_scores(part_PK, score, head)[:, target] for part_PK in parts])


def position_values(
    base_logits_K: Tensor, logits_PK: Tensor, target: int, score: Score, head: Head = SOFTMAX
) -> Tensor:
    """Computes how much occluding each position hurts class `target`, (P,) float64.

    Original − occluded; for the loss, occluded − original.
    """
    base = class_scores(base_logits_K, score, head)[target]
    covered_P = target_scores(logits_PK, target, score, head)
    return covered_P - base if score is Score.LOSS else base - covered_P


def _box_sums(values_P: Tensor, boxes_P4: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W): for each pixel the sum of the values of the boxes it lies in.

    Each box adds its value to four corners of a difference image, whose running sums along both
    axes are the sums (Crow 1984, summed-area tables, reversed): P + H·W steps, not P·h·w.
    """
    height, width = size
    y0, x0, y1, x1 = boxes_P4.unbind(1)
    corners = torch.zeros(height + 1, width + 1, dtype=torch.float64, device=values_P.device)
    for rows, columns, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        corners.index_put_((rows, columns), sign * values_P, accumulate=True)
    return corners.cumsum(0).cumsum(1)[:height, :width]


def _weights(centers: Tensor, length: int, upsample: Upsample) -> Tensor:
    """(length, len(centers)): what each mask centre gives to each pixel along one axis."""
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    right = torch.searchsorted(centers, pixels).clamp(max=len(centers) - 1)
    left = (right - 1).clamp(min=0)
    gap = (centers[right] - centers[left]).clamp(min=1e-9)
    share = ((pixels - centers[left]) / gap).clamp(0, 1)
    share = torch.where(right == left, 0.0, share)
    if upsample is Upsample.NEAREST:
        share = share.round()
    weights = torch.zeros(length, len(centers), dtype=torch.float64)
    taps = {0: 1 - share, 1: share}
    if upsample is Upsample.BICUBIC:
        taps = {offset: _cubic(share - offset) for offset in (-1, 0, 1, 2)}
    for offset, part in taps.items():
        places = (left + offset).clamp(0, len(centers) - 1)
        weights[torch.arange(length), places] += part
    return weights


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel at a distance of up to two centres."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


def pixel_map(
    values_P: Tensor, grid: Grid, size: tuple[int, int], upsample: Upsample = Upsample.COVERAGE
) -> Tensor:
    """Spreads position values (P,) over the image (H, W), float32, on the device of the values.

    `coverage` gives a pixel the mean over the masks that cover it, and 0 where none does; `density`
    their sum divided by the largest number of masks that cover any pixel, so that the rim, which
    few masks reach, does not depend on a single one of them;
    `bicubic` (Keys 1981, cubic convolution, a = -1/2), `bilinear` and `nearest` interpolate between
    the centres of the (visible parts of the) masks, and continue with the outermost values beyond.
    """
    if upsample in (Upsample.COVERAGE, Upsample.DENSITY):
        boxes_P4 = grid.boxes_P4.to(values_P.device)
        counts = _box_sums(torch.ones_like(values_P), boxes_P4, size).round()
        sums = _box_sums(values_P, boxes_P4, size)
        if upsample is Upsample.DENSITY:
            return (sums / counts.max()).float()
        return torch.where(counts > 0, sums / counts.clamp(min=1), 0.0).float()
    rows, columns = grid.shape
    nearest = upsample is Upsample.NEAREST
    if nearest and grid.border is Border.CENTER and grid.shape == size:
        return values_P.reshape(size).float()
    boxes = grid.boxes_P4.reshape(rows, columns, 4).double()
    y_weights = _weights((boxes[:, 0, 0] + boxes[:, 0, 2]) / 2, size[0], upsample)
    x_weights = _weights((boxes[0, :, 1] + boxes[0, :, 3]) / 2, size[1], upsample)
    values = values_P.reshape(rows, columns)
    device = values_P.device
    return (y_weights.to(device) @ values @ x_weights.to(device).T).float()


def make_panels(
    measured: Measurement, targets: Sequence[int], score: Score, upsample: Upsample
) -> tuple[Panel, ...]:
    """Makes a panel for each class and mask, classes outermost."""
    parts = torch.split(measured.logits_PK, [len(grid.boxes_P4) for grid in measured.grids])
    return tuple(
        _panel(measured, grid, part_PK, target, score, upsample)
        for target in targets
        for grid, part_PK in zip(measured.grids, parts, strict=True)
    )


def _panel(
    measured: Measurement,
    grid: Grid,
    logits_PK: Tensor,
    target: int,
    score: Score,
    upsample: Upsample,
) -> Panel:
    head, base_logits_K = measured.head, measured.base_logits_K
    values_P = position_values(base_logits_K, logits_PK, target, score, head)
    probabilities_P = target_scores(logits_PK, target, Score.PROBABILITY, head)
    reading = float(class_scores(base_logits_K, Score.PROBABILITY, head)[target])
    row, column = peak(values_P.view(grid.shape))
    largest = row * grid.shape[1] + column
    map_HW = pixel_map(values_P, grid, measured.size, upsample)
    reliance = None
    if head.has_shares:
        tiny = torch.finfo(torch.float64).tiny
        reliance = (reading - float(probabilities_P.min())) / max(reading, tiny)
    return Panel(
        **class_fields(measured, target, reading),
        mask=grid.mask,
        stride=grid.stride,
        positions=len(values_P),
        max_drop=float(values_P[largest]),
        max_drop_box=tuple(grid.boxes_P4[largest].tolist()),
        mean_drop=float(values_P.mean()),
        occluded=float(probabilities_P[largest]),
        reliance=reliance,
        flips=_flips(measured, logits_PK, target),
        agreement=_agreement(map_HW, measured.gradient, target),
        grid=grid,
        probabilities_P=probabilities_P,
        values_P=values_P,
        map_HW=map_HW,
        winners_P=_winners(measured, logits_PK, target),
    )


def _winners(measured: Measurement, logits_PK: Tensor, target: int) -> Tensor:
    """(P,) the most probable class; of a box what happens to it, by `BoxReading.outcomes`."""
    if isinstance(measured.reading, BoxReading):
        return measured.reading.changes(logits_PK)[0][:, target]
    return logits_PK.argmax(1)


def _flips(measured: Measurement, logits_PK: Tensor, target: int) -> Flips | None:
    head, base_logits_K = measured.head, measured.base_logits_K
    boxes = measured.reading
    if isinstance(boxes, BoxReading):
        codes_PB, appears_PC = boxes.changes(logits_PK)
        vanishes_P = (codes_PB[:, target] > 0) & (codes_PB[:, target] < 2 + len(boxes.appearing))
        named = measured.labels[2 * len(boxes) :]
        return _ranked(vanishes_P, appears_PC.sum(0).tolist(), named)
    if not head.has_classes:
        return None
    if head.kind is Kind.SIGMOID:
        crossed_P = head.holds(logits_PK)[:, target] != head.holds(base_logits_K)[target]
        return Flips(share=float(crossed_P.double().mean()), to=())
    predicted = int(base_logits_K.argmax())
    winners_P = logits_PK.argmax(1)
    counts = winners_P[winners_P != predicted].bincount(minlength=len(base_logits_K)).tolist()
    return _ranked(winners_P != predicted, counts, measured.labels)


def _ranked(changed_P: Tensor, counts: Sequence[int], labels: Sequence[str]) -> Flips:
    """The share of the positions, and how often each class takes over, the most frequent first."""
    ranked = sorted((-count, index) for index, count in enumerate(counts) if count)
    return Flips(
        share=float(changed_P.double().mean()),
        to=tuple(
            Flip(class_=labels[index], index=index, positions=-count) for count, index in ranked
        ),
    )


def _agreement(occlusion_HW: Tensor, gradient: Gradient | None, target: int) -> Agreement | None:
    if gradient is None or target not in gradient.maps:
        return None
    gradient_HW = gradient.maps[target]
    occluded, traced = positive_part(occlusion_HW), positive_part(gradient_HW)
    map_HW = agreement(occlusion_HW, gradient_HW)
    return Agreement(
        with_=gradient.name,
        rank_correlation=rank_correlation(occlusion_HW, gradient_HW),
        peak=peak(map_HW) if bool((map_HW > 0).any()) else None,
        map_HW=map_HW,
        gradient_HW=gradient_HW,
        only_occlusion_HW=(occluded > STRONG) & (traced < WEAK),
        only_gradient_HW=(traced > STRONG) & (occluded < WEAK),
    )


def judge(map_HW: Tensor, object_HW: Tensor) -> Judged:
    """Compares a map (H, W; positive is evidence) with the object's pixels (H, W) bool.

    A map without positive evidence has no peak and nothing inside: None, and NaN.
    """
    evidence = map_HW.double().clamp(min=0)
    total = float(evidence.sum())
    return Judged(
        pointing_game_hit=bool(object_HW[peak(map_HW)]) if total > 0 else None,
        inside=float(evidence[object_HW].sum()) / total if total > 0 else math.nan,
        object_share=float(object_HW.double().mean()),
    )


def judge_panels(result: OcclusionResult, object_HW: Tensor) -> OcclusionResult:
    """Judges the maps that are drawn, and the agreement maps."""
    panels = []
    for panel, map_HW in zip(result.targets, result.maps, strict=True):
        together = panel.agreement
        if together is not None:
            judged = judge(together.map_HW, object_HW)
            together = replace(
                together, pointing_game_hit=judged.pointing_game_hit, inside=judged.inside
            )
        panels.append(replace(panel, **vars(judge(map_HW, object_HW)), agreement=together))
    return replace(result, targets=tuple(panels))
