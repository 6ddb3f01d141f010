"""How a filter's score spreads over a whole data set, without keeping the scores.

Counts, sums, extremes and a histogram per filter; all but the sum are whole numbers or extremes,
so they do not depend on order or batches, and the float64 sum does so only in its last digits.

The histogram has eight buckets to each factor of two, read off the float32 bits (exponent and
first three bits of the mantissa), as relative-error sketches have (Masson, Rim, Lee 2019,
"DDSketch"). A quantile read from it is within 1/16 of the exact one. Magnitudes under 2^-16 count
as zero and those above 2^20 share the last bucket, where the exact extremes bound the answer.

Shapes: F filters, N images, B buckets, Q quantiles.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_PER_OCTAVE_BITS = 3
_LOWEST, _HIGHEST = -16, 20
_SHIFT = 23 - _PER_OCTAVE_BITS
_OFFSET = (127 + _LOWEST) << _PER_OCTAVE_BITS
_HALF = (_HIGHEST - _LOWEST) << _PER_OCTAVE_BITS
_BUCKETS = 2 * _HALF + 1
RELATIVE_ERROR = 2.0 ** -(_PER_OCTAVE_BITS + 1)
"""The bound on a quantile's error, as a share of the quantile."""


def _bucket(scores: Tensor) -> Tensor:
    """Bucket (int64) of each finite float32 score: _HALF is zero, negative ones lie below."""
    steps = (scores.abs().view(torch.int32) >> _SHIFT).to(torch.int64) - _OFFSET
    magnitude = torch.where(steps < 0, 0, steps.clamp(max=_HALF - 1) + 1)
    return _HALF + torch.where(scores < 0, -magnitude, magnitude)


def _centres() -> Tensor:
    """The middle of every bucket, (B,) float32."""
    steps = torch.arange(_HALF, dtype=torch.int32) + _OFFSET
    low = (steps << _SHIFT).view(torch.float32)
    high = ((steps + 1) << _SHIFT).view(torch.float32)
    middle = (low + high) / 2
    return torch.cat([-middle.flip(0), torch.zeros(1), middle])


@dataclass(frozen=True)
class ScoreStats:
    """What is known about each filter's score, and how often the filter fired at all.

    Attributes:
        count: images seen.
        active: (F,) int64, images in which at least one unit was above zero.
        sum: (F,) float64, of the scores.
        lowest: (F,) float32, +inf before the first image.
        highest: (F,) float32, -inf before the first image.
        histogram: (F, B) int32.
    """

    count: int
    active: Tensor
    sum: Tensor
    lowest: Tensor
    highest: Tensor
    histogram: Tensor

    @classmethod
    def empty(cls, filters: int, device: torch.device | str = "cpu") -> "ScoreStats":
        """Nothing seen yet."""
        return cls(
            0,
            torch.zeros(filters, dtype=torch.int64, device=device),
            torch.zeros(filters, dtype=_sum_dtype(device), device=device),
            torch.full((filters,), torch.inf, device=device),
            torch.full((filters,), -torch.inf, device=device),
            torch.zeros(filters, _BUCKETS, dtype=torch.int32, device=device),
        )

    def with_scores(self, scores_NF: Tensor, peaks_NF: Tensor) -> "ScoreStats":
        """The statistics with these images added.

        Args:
            scores_NF: finite float32.
            peaks_NF: each map's largest unit.
        """
        buckets_FN = _bucket(scores_NF.T)
        added = torch.ones_like(buckets_FN, dtype=torch.int32)
        return ScoreStats(
            self.count + scores_NF.shape[0],
            self.active + (peaks_NF > 0).sum(0),
            self.sum + scores_NF.to(self.sum.dtype).sum(0),
            torch.minimum(self.lowest, scores_NF.amin(0)),
            torch.maximum(self.highest, scores_NF.amax(0)),
            self.histogram.scatter_add(1, buckets_FN, added),
        )

    def merged(self, other: "ScoreStats") -> "ScoreStats":
        """The statistics over both sets of images."""
        return ScoreStats(
            self.count + other.count,
            self.active + other.active,
            self.sum + other.sum,
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
            self.histogram + other.histogram,
        )

    def mean(self) -> Tensor:
        """Mean score, (F,) float32 on the CPU; the rounding hides the order of summation."""
        return (self.sum.cpu() / self.count).to(torch.float32)

    def quantiles(self, levels: tuple[float, ...]) -> Tensor:
        """Scores below which these shares of the images lie (nearest rank), (F, Q) float32."""
        cumulative_FB = self.histogram.cpu().cumsum(1)
        ranks = torch.tensor(levels, dtype=torch.float64).mul(self.count).ceil().clamp(min=1)
        ranks_FQ = ranks.to(torch.int64).expand(len(cumulative_FB), -1).contiguous()
        values = _centres()[torch.searchsorted(cumulative_FB, ranks_FQ)]
        return values.clamp(self.lowest.cpu()[:, None], self.highest.cpu()[:, None])


def _sum_dtype(device: torch.device | str) -> torch.dtype:
    """float64, but for Apple's devices, which have none."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64
