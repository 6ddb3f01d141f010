"""The state of a scan: each filter's strongest patches and statistics of its score, as arrays.

`ScoreStats` describes how a filter's score spreads over a data set without keeping the scores. All
but the sum are whole numbers or extremes, so they do not depend on order or batches. The sum has
twice the digits of float64, so its order is not visible in the mean. States of two sets of images
merge just as exactly.

The histogram has eight buckets per factor of two, read from the float32 bits (exponent and first
three bits of the mantissa), as relative-error sketches have (Masson, Rim, Lee 2019, "DDSketch"). A
quantile read from it is within 1/16 of the exact one. Magnitudes below 2^-16 count as zero. Those
above 2^20 share the last bucket, where the exact extremes bound the quantile.

Shapes: F filters, N images, B buckets, Q quantiles.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.device import exact, plus
from cnnviz.core.output.journal import Arrays, Progress
from cnnviz.filters.patches.top_k import EMPTY, TopK, unpack

_PER_OCTAVE_BITS = 3
_LOWEST, _HIGHEST = -16, 20
_SHIFT = 23 - _PER_OCTAVE_BITS
_OFFSET = (127 + _LOWEST) << _PER_OCTAVE_BITS
_HALF = (_HIGHEST - _LOWEST) << _PER_OCTAVE_BITS
_BUCKETS = 2 * _HALF + 1
RELATIVE_ERROR = 2.0 ** -(_PER_OCTAVE_BITS + 1)
"""Maximum error of a quantile, as a share of the quantile."""


def _bucket(scores: Tensor) -> Tensor:
    """Bucket (int64) of each finite float32 score: _HALF is zero, negative ones lie below."""
    steps = (scores.abs().view(torch.int32) >> _SHIFT).to(torch.int64) - _OFFSET
    magnitude = torch.where(steps < 0, 0, steps.clamp(max=_HALF - 1) + 1)
    return _HALF + torch.where(scores < 0, -magnitude, magnitude)


def _centres() -> Tensor:
    """(B,) float32, the middle of each bucket."""
    steps = torch.arange(_HALF, dtype=torch.int32) + _OFFSET
    low = (steps << _SHIFT).view(torch.float32)
    high = ((steps + 1) << _SHIFT).view(torch.float32)
    middle = (low + high) / 2
    return torch.cat([-middle.flip(0), torch.zeros(1), middle])


@dataclass(frozen=True)
class ScoreStats:
    """Statistics of each filter's score.

    Attributes:
        count: number of images.
        active: (F,) int64, images in which at least one unit was above zero.
        sum: (2, F) float64, of the scores, with the rest that rounding leaves (`plus`).
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
        """The statistics before the first image."""
        return cls(
            0,
            torch.zeros(filters, dtype=torch.int64, device=device),
            torch.zeros(2, filters, dtype=_sum_dtype(device), device=device),
            torch.full((filters,), torch.inf, device=device),
            torch.full((filters,), -torch.inf, device=device),
            torch.zeros(filters, _BUCKETS, dtype=torch.int32, device=device),
        )

    def with_scores(self, scores_NF: Tensor, peaks_NF: Tensor) -> "ScoreStats":
        """Adds images with these finite float32 scores; `peaks_NF` are the maps' largest units.

        The histogram, which is large, is changed in place.
        """
        buckets_FN = _bucket(scores_NF.T)
        added = torch.ones_like(buckets_FN, dtype=torch.int32)
        return ScoreStats(
            self.count + scores_NF.shape[0],
            self.active + (peaks_NF > 0).sum(0),
            plus(self.sum, exact(scores_NF.to(self.sum.dtype).sum(0))),
            torch.minimum(self.lowest, scores_NF.amin(0)),
            torch.maximum(self.highest, scores_NF.amax(0)),
            self.histogram.scatter_add_(1, buckets_FN, added),
        )

    def merged(self, other: "ScoreStats") -> "ScoreStats":
        """The statistics over both sets of images."""
        return ScoreStats(
            self.count + other.count,
            self.active + other.active,
            plus(self.sum, other.sum),
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
            self.histogram + other.histogram,
        )

    def mean(self) -> Tensor:
        """(F,) float32 on the CPU, the mean scores; rounding hides the order of summation."""
        return (self.sum.cpu().sum(0) / self.count).to(torch.float32)

    def quantiles(self, levels: tuple[float, ...]) -> Tensor:
        """(F, Q) float32, the quantiles of the scores at these levels (nearest rank)."""
        cumulative_FB = self.histogram.cpu().cumsum(1)
        ranks = torch.tensor(levels, dtype=torch.float64).mul(self.count).ceil().clamp(min=1)
        ranks_FQ = ranks.to(torch.int64).expand(len(cumulative_FB), -1).contiguous()
        values = _centres()[torch.searchsorted(cumulative_FB, ranks_FQ)]
        return values.clamp(self.lowest.cpu()[:, None], self.highest.cpu()[:, None])


def _sum_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's devices, which have no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


@dataclass(frozen=True)
class LayerState:
    """The strongest patches of one layer's filters so far, and statistics of all scores."""

    best: TopK
    stats: ScoreStats

    @classmethod
    def empty(cls, filters: int, top: int, device: torch.device | str) -> "LayerState":
        """The state before the first image."""
        return cls(TopK.empty(filters, top, device), ScoreStats.empty(filters, device))

    def merged(self, other: "LayerState") -> "LayerState":
        """The state of both sets of images, which must have none in common."""
        return LayerState(self.best.merged(other.best), self.stats.merged(other.stats))

    def arrays(self) -> dict[str, Tensor]:
        """All of it, by name."""
        stats = {field.name: getattr(self.stats, field.name) for field in fields(ScoreStats)}
        stats["count"] = torch.tensor(self.stats.count)
        return {"keys": self.best.keys, "units": self.best.units, **stats}

    def split(self, filters: Sequence[int]) -> list["LayerState"]:
        """Views of the states of consecutive filters, so many each."""
        arrays = self.arrays()
        count = arrays.pop("count")
        parts = {
            name: tensor.split_with_sizes(filters, _axis(name)) for name, tensor in arrays.items()
        }
        return [
            LayerState.of_arrays({"count": count, **dict(zip(parts, part, strict=True))})
            for part in zip(*parts.values(), strict=True)
        ]

    @classmethod
    def joined(cls, states: Sequence["LayerState"]) -> "LayerState":
        """The inverse of `split`; copies."""
        arrays = [state.arrays() for state in states]
        joined = {
            name: torch.cat([part[name] for part in arrays], _axis(name))
            for name in arrays[0]
            if name != "count"
        }
        return cls.of_arrays({"count": arrays[0]["count"], **joined})

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> "LayerState":
        """The inverse of `arrays`."""
        stats = {field.name: arrays[field.name] for field in fields(ScoreStats)}
        count = int(stats.pop("count"))
        return cls(TopK(arrays["keys"], arrays["units"]), ScoreStats(count, **stats))


def _axis(name: str) -> int:
    """The axis of filters in an array of that name."""
    return 1 if name == "sum" else 0


def to_arrays(layers: Iterable[LayerState]) -> Arrays:
    """The arrays of all layers, for the journal."""
    return {
        f"{number}.{name}": tensor.cpu().numpy()
        for number, layer in enumerate(layers)
        for name, tensor in layer.arrays().items()
    }


def of_arrays(arrays: Arrays, device: torch.device | str = "cpu") -> list[LayerState]:
    """The inverse of `to_arrays`."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        layers.setdefault(int(number), {})[name] = torch.from_numpy(np.asarray(array)).to(device)
    return [LayerState.of_arrays(layers[number]) for number in range(len(layers))]


def check(progress: Progress, units: Sequence[int] = (), per_image: int | None = None) -> None:
    """Raises a ValueError unless the statistics and patches are of the images that are done.

    Args:
        progress: what a journal holds.
        units: of each layer, the number of units of a map; unknown if empty.
        per_image: patches that a filter may have of an image; None if unknown.
    """
    images = range(progress.block.start, progress.done)
    failed = [place for place in progress.errors if place < progress.done]
    for number, layer in enumerate(of_arrays(progress.arrays)):
        if layer.stats.count != len(images) - len(failed):
            raise ValueError(f"it counts {layer.stats.count} of {len(images)} images")
        _check_statistics(layer.stats)
        keys_FK, units_FK = layer.best.keys, layer.best.units
        scores_FK, tickets_FK = unpack(keys_FK)
        there_FK = keys_FK != EMPTY
        kept = min(keys_FK.shape[1], layer.stats.count)
        highest = units[number] if units else torch.inf
        fits = [
            (there_FK.sum(1) >= kept) & (units_FK.amax(1) < highest),
            ((keys_FK.diff(dim=1) < 0) | ~there_FK[:, 1:]).all(1),
            (scores_FK.isfinite() == there_FK).all(1) & ((units_FK >= 0) == there_FK).all(1),
        ]
        if per_image is not None:
            used = tickets_FK[there_FK] // per_image
            inside = (used >= images.start) & (used < images.stop)
            fits.append(inside & ~torch.isin(used, torch.tensor(failed, dtype=torch.int64)))
            ordered = torch.where(there_FK, tickets_FK, -1 - torch.arange(keys_FK.shape[1]))
            fits.append((ordered.sort(1).values.diff(dim=1) > 0).all(1))
        if not all(bool(part.all()) for part in fits):
            raise ValueError("its patches are not of its images")


def _check_statistics(stats: ScoreStats) -> None:
    """Raises a ValueError unless the statistics can be those of so many finite scores."""
    (total, rest), count, filled_FB = stats.sum, stats.count, stats.histogram > 0
    fits = [
        (stats.active >= 0) & (stats.active <= count),
        stats.histogram.amin(1) >= 0,
        stats.histogram.sum(1) == count,
    ]
    if count:
        low, high = stats.lowest.double() * count, stats.highest.double() * count
        slack = 1e-4 * torch.maximum(low.abs(), high.abs())
        last = _BUCKETS - 1 - filled_FB.flip(1).int().argmax(1)
        fits += [
            (total >= low - slack) & (total <= high + slack) & total.isfinite(),
            (rest.abs() <= total.abs() * torch.finfo(total.dtype).eps),
            (_bucket(stats.lowest) == filled_FB.int().argmax(1)) & stats.lowest.isfinite(),
            (_bucket(stats.highest) == last) & stats.highest.isfinite(),
        ]
    if not all(bool(part.all()) for part in fits):
        raise ValueError("its statistics are not of its images")


def merge(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of all images from those of their blocks."""
    joined, *rest = map(of_arrays, parts)
    for layers in rest:
        joined = [a.merged(b) for a, b in zip(joined, layers, strict=True)]
    return to_arrays(joined)
