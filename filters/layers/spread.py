"""How values spread: counts by magnitude in octaves, sums and extremes of a stream.

Octaves are powers of two; they need no range beforehand, and add up exactly over parts of the
stream. Shapes: C channels, B octaves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.device import exact, plus
from cnnviz.filters.layers.results import Octaves, SpreadRecord

LOWEST_EXPONENT = -48
"""The first octave holds 2^-49 to 2^-48, and smaller values other than zero."""
OCTAVES = 80
_EXPONENTS = 256
_CACHED = 2**17
"""Values that are counted at a time."""
COUNTS = ("count", "zeros", "negative", "not_finite")


@dataclass
class Spread:
    """Counts, sums and extremes of a stream of values; parts of the stream add up exactly.

    Values that are NaN or infinite count in `count` and `not_finite` only. `sums_22` are those of
    the values and of their squares (`plus`). Entry i of `octaves_B`
    counts magnitudes from 2^(LOWEST_EXPONENT + i - 1) up to twice that; the ends include what is
    beyond. `lows_C` and `highs_C` are the extremes of each channel; None if the channels are
    unknown, or `mixed`: parts with different numbers of channels (a layer that runs repeatedly).
    """

    count: int = 0
    zeros: int = 0
    negative: int = 0
    not_finite: int = 0
    sums_22: Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.float64))
    lowest: float = math.inf
    highest: float = -math.inf
    octaves_B: Tensor = field(default_factory=lambda: torch.zeros(OCTAVES, dtype=torch.int64))
    lows_C: Tensor | None = None
    highs_C: Tensor | None = None
    mixed: bool = False

    @property
    def mean(self) -> float:
        """Mean of the finite values; 0 if there are none."""
        return float(self.sums_22[:, 0].sum()) / max(1, self.count - self.not_finite)

    @property
    def deviation(self) -> float:
        """Standard deviation of the finite values."""
        finite = max(1, self.count - self.not_finite)
        squares = float(self.sums_22[:, 1].sum())
        return float(max(0.0, squares / finite - self.mean**2) ** 0.5)

    @property
    def dead(self) -> list[int] | None:
        """Channels that had one and the same value throughout.

        None if channels are unknown, or have a single value each.
        """
        if self.lows_C is None or self.highs_C is None or self.count <= len(self.lows_C):
            return None
        return (self.lows_C == self.highs_C).nonzero().flatten().tolist()

    def add(self, other: "Spread") -> None:
        """Adds another part of the same stream."""
        self.octaves_B = self.octaves_B + other.octaves_B
        self.sums_22 = plus(self.sums_22, other.sums_22)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        lows = [part.lows_C for part in (self, other) if part.lows_C is not None]
        highs = [part.highs_C for part in (self, other) if part.highs_C is not None]
        self.mixed |= other.mixed or len({len(lows_C) for lows_C in lows}) > 1
        known = lows and not self.mixed
        self.lows_C = torch.stack(lows).amin(0) if known else None
        self.highs_C = torch.stack(highs).amax(0) if known else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for a journal; no extremes of channels if they are unknown."""
        unknown = torch.zeros(0)
        return {
            "counts": np.array([*(getattr(self, name) for name in COUNTS), self.mixed], np.int64),
            "sums": self.sums_22.numpy(),
            "ends": np.array([self.lowest, self.highest]),
            "octaves": self.octaves_B.numpy(),
            "lows": (unknown if self.lows_C is None else self.lows_C).numpy(),
            "highs": (unknown if self.highs_C is None else self.highs_C).numpy(),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Spread":
        """The inverse of `arrays`; a ValueError if no values have such numbers."""
        *counts, mixed = arrays["counts"].tolist()
        known, finite = len(arrays["lows"]) > 0, bool(np.isfinite(arrays["sums"]).all())
        shapes = arrays["sums"].shape == (2, 2) and arrays["octaves"].shape == (OCTAVES,)
        if not (shapes and finite and min(counts) >= 0 and (arrays["octaves"] >= 0).all()):
            raise ValueError("its statistics are not of any values")
        return cls(
            **dict(zip(COUNTS, counts, strict=True)),
            sums_22=torch.tensor(arrays["sums"]),
            lowest=float(arrays["ends"][0]),
            highest=float(arrays["ends"][1]),
            octaves_B=torch.tensor(arrays["octaves"]),
            lows_C=torch.tensor(arrays["lows"]) if known else None,
            highs_C=torch.tensor(arrays["highs"]) if known else None,
            mixed=bool(mixed),
        )

    def record(self) -> SpreadRecord:
        """Summarises the values."""
        taken = self.octaves_B.nonzero().flatten().tolist()
        first, last = (taken[0], taken[-1] + 1) if taken else (0, 0)
        dead = self.dead
        return SpreadRecord(
            values=self.count,
            zeros=self.zeros / max(1, self.count),
            negative=self.negative / max(1, self.count),
            not_finite=self.not_finite,
            mean=self.mean,
            deviation=self.deviation,
            lowest=None if math.isinf(self.lowest) else self.lowest,
            highest=None if math.isinf(self.highest) else self.highest,
            channels=None if self.lows_C is None else len(self.lows_C),
            dead_channels=None if dead is None else tuple(dead),
            octaves=Octaves(
                LOWEST_EXPONENT + first - 1, tuple(self.octaves_B[first:last].tolist())
            ),
        )


def spread_of(values: Tensor, channel_axis: int | None = None) -> Spread:
    """The spread of one tensor, by channel if `channel_axis` is given."""
    values = values.detach().float()
    if values.device.type == "mps":  # it has no float64
        values = values.cpu()
    lows = highs = None
    flat = _as_it_lies(values)
    if channel_axis is not None:
        others = [axis for axis in range(values.dim()) if axis != channel_axis]
        lows, highs = values.amin(others).cpu(), values.amax(others).cpu()
    ends = (lows, highs) if lows is not None and highs is not None else (flat, flat)
    if not all(bool(end.isfinite().all()) for end in ends):
        flat = flat[flat.isfinite()]
        ends = (flat, flat)
    zeros, negative, octaves_B, sums_2 = _counts(flat)
    return Spread(
        count=values.numel(),
        zeros=zeros,
        negative=negative,
        not_finite=values.numel() - flat.numel(),
        sums_22=exact(sums_2),
        lowest=float(ends[0].min()) if flat.numel() else math.inf,
        highest=float(ends[1].max()) if flat.numel() else -math.inf,
        octaves_B=octaves_B,
        lows_C=lows,
        highs_C=highs,
    )


def _as_it_lies(values: Tensor) -> Tensor:
    """The values in one row, in the order in which they are stored, which needs no copy."""
    axes = sorted(range(values.dim()), key=values.stride, reverse=True)
    return values.permute(axes).reshape(-1)


def _counts(flat: Tensor) -> tuple[int, int, Tensor, Tensor]:
    """Zeros, negative values, magnitudes by octave, and the sums of finite values and squares.

    Sign and exponent are the first nine bits of a value. What is computed on the way stays in the
    CPU's caches.
    """
    counts_X = flat.new_zeros(2 * _EXPONENTS, dtype=torch.int64)
    sums_2 = flat.new_zeros(2, dtype=torch.float64)
    zeros = flat.new_zeros((), dtype=torch.int64)
    for part in torch.split(flat, _CACHED if flat.device.type == "cpu" else max(1, flat.numel())):
        first_bits = (part.view(torch.int32) >> 23) & (2 * _EXPONENTS - 1)
        counts_X += torch.bincount(first_bits.long(), minlength=2 * _EXPONENTS)
        zeros += (part == 0).sum()
        double = part.double()
        sums_2 += torch.stack([double.sum(), double.dot(double)])
    signs_2X = counts_X.cpu().view(2, _EXPONENTS)
    negative, tiny = int(signs_2X[1, 1:].sum()), int(signs_2X[:, 0].sum()) - int(zeros)
    if tiny:  # below 2^-126, where the exponent is that of zero
        negative += int(((flat < 0) & (flat > -torch.finfo(torch.float32).tiny)).sum())
    signs_2X[:, 0] = 0
    octaves_B = torch.zeros(OCTAVES, dtype=torch.int64)
    places = (torch.arange(_EXPONENTS) - 126 - LOWEST_EXPONENT).clamp(0, OCTAVES - 1)
    octaves_B.index_add_(0, places, signs_2X.sum(0))
    octaves_B[0] += tiny
    return int(zeros), negative, octaves_B, sums_2.cpu()
