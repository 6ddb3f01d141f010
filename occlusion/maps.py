"""From the scores of every position to a value for every pixel.

The value of a position is how much covering it hurts: positive means that the patch is evidence for
the class. The value of a pixel is the mean over the masks that cover it (Zeiler and Fergus 2014,
section 4.2, average over the occluder's places in the same way).
Shapes: P positions, K classes, H W rows and columns.
"""

import torch
from torch import Tensor

from cnnviz.core.models.heads import SOFTMAX, Head
from cnnviz.occlusion.options import Score, Upsample
from cnnviz.occlusion.masks import Grid


def class_scores(logits_PK: Tensor, score: Score, head: Head = SOFTMAX) -> Tensor:
    """Logits (…, K) as probabilities, as they are, or as losses −log p; float64.

    Of a regression's values there is one score alone: themselves.
    """
    if score is Score.PROBABILITY:
        return head.readings(logits_PK)
    if score is Score.LOGIT:
        return head.own_logits(logits_PK)
    return -head.log_probabilities(logits_PK.double())


def target_scores(logits_PK: Tensor, target: int, score: Score, head: Head = SOFTMAX) -> Tensor:
    """The scores of one class at each position, (P,) float64; little memory for many positions."""
    parts = torch.split(logits_PK, 1024)
    return torch.cat([class_scores(part_PK, score, head)[:, target] for part_PK in parts])


def position_values(
    base_logits_K: Tensor, logits_PK: Tensor, target: int, score: Score, head: Head = SOFTMAX
) -> Tensor:
    """How much covering each position hurts class `target`, (P,) float64.

    Original − occluded for probability, logit and value, occluded − original for the loss.
    """
    base = class_scores(base_logits_K, score, head)[target]
    covered_P = target_scores(logits_PK, target, score, head)
    return covered_P - base if score is Score.LOSS else base - covered_P


def _box_sums(values_P: Tensor, boxes_P4: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W): for each pixel the sum of the values of the boxes it lies in.

    Each box adds its value to four corners of a difference image, whose running sums along both
    axes are the answer (Crow 1984, summed-area tables, turned round): P + H·W steps, not P·h·w.
    """
    height, width = size
    y0, x0, y1, x1 = boxes_P4.unbind(1)
    corners = torch.zeros(height + 1, width + 1, dtype=torch.float64, device=values_P.device)
    for rows, columns, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        corners.index_put_((rows, columns), sign * values_P, accumulate=True)
    return corners.cumsum(0).cumsum(1)[:height, :width]


def _weights(centers: Tensor, length: int, *, nearest: bool) -> Tensor:
    """(length, len(centers)): what each mask centre gives to each pixel along one axis."""
    pixels = torch.arange(length, dtype=torch.float64) + 0.5
    right = torch.searchsorted(centers, pixels).clamp(max=len(centers) - 1)
    left = (right - 1).clamp(min=0)
    gap = (centers[right] - centers[left]).clamp(min=1e-9)
    share = ((pixels - centers[left]) / gap).clamp(0, 1)
    share = torch.where(right == left, 1.0, share.round() if nearest else share)
    weights = torch.zeros(length, len(centers), dtype=torch.float64)
    weights[torch.arange(length), left] += 1 - share
    weights[torch.arange(length), right] += share
    return weights


def pixel_map(
    values_P: Tensor, grid: Grid, size: tuple[int, int], upsample: Upsample = Upsample.COVERAGE
) -> Tensor:
    """Spreads position values over the image.

    `coverage` gives a pixel the mean over the masks that cover it, and 0 where none does; `density`
    their sum divided by the largest number of masks that cover any pixel, so that the rim, which
    few masks reach, is not judged by one of them alone;
    `bilinear` and `nearest` interpolate between the centres of the (visible parts of the) masks,
    and go on with the outermost values beyond them.

    Args:
        values_P: one value a position, float64.
        grid: where the positions are.
        size: (rows, columns) of the working image.
        upsample: see above.

    Returns:
        (H, W) float32, on the device of the values.
    """
    if upsample in (Upsample.COVERAGE, Upsample.DENSITY):
        boxes_P4 = grid.boxes_P4.to(values_P.device)
        counts = _box_sums(torch.ones_like(values_P), boxes_P4, size).round()
        sums = _box_sums(values_P, boxes_P4, size)
        if upsample is Upsample.DENSITY:
            return (sums / counts.max()).float()
        return torch.where(counts > 0, sums / counts.clamp(min=1), 0.0).float()
    nearest = upsample is Upsample.NEAREST
    rows, columns = grid.shape
    boxes = grid.boxes_P4.reshape(rows, columns, 4).double()
    y_weights = _weights((boxes[:, 0, 0] + boxes[:, 0, 2]) / 2, size[0], nearest=nearest)
    x_weights = _weights((boxes[0, :, 1] + boxes[0, :, 3]) / 2, size[1], nearest=nearest)
    values = values_P.reshape(rows, columns)
    device = values_P.device
    return (y_weights.to(device) @ values @ x_weights.to(device).T).float()
