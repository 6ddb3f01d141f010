"""What a stream of values looks like: counts by magnitude, extremes, channels that never change.

Magnitudes are counted in octaves (powers of two), which needs no range beforehand, holds values of
any size and adds up exactly over parts of the stream.

Shapes: C channels, B octaves.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LOWEST_EXPONENT = -48
"""The first octave holds 2^-49 … 2^-48 and everything below it but zero."""
OCTAVES = 80


@dataclass
class Spread:
    """What a stream of values looks like; adds up exactly over parts of the stream.

    Attributes:
        count: values seen.
        zeros: of those, exactly zero.
        negative: below zero.
        not_finite: NaN or infinite; counted nowhere else but in `count`.
        total: their sum.
        squares: the sum of their squares.
        lowest: of the finite ones; None before the first.
        highest: likewise.
        octaves_B: values other than zero by magnitude: entry i counts 2^(LOWEST_EXPONENT + i - 1)
            up to (not including) 2^(LOWEST_EXPONENT + i); the ends hold what lies beyond, too.
        lows_C: lowest value of each channel; None where channels cannot be told.
        highs_C: likewise the highest.
        mixed: parts had different numbers of channels (a layer that runs more than once), which
            cannot be told apart.
    """

    count: int = 0
    zeros: int = 0
    negative: int = 0
    not_finite: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float | None = None
    highest: float | None = None
    octaves_B: Tensor = field(default_factory=lambda: torch.zeros(OCTAVES, dtype=torch.int64))
    lows_C: Tensor | None = None
    highs_C: Tensor | None = None
    mixed: bool = False

    @property
    def mean(self) -> float:
        """Of the finite values; 0 if there are none."""
        return self.total / max(1, self.count - self.not_finite)

    @property
    def deviation(self) -> float:
        """Standard deviation of the finite values."""
        finite = max(1, self.count - self.not_finite)
        return float(max(0.0, self.squares / finite - self.mean**2) ** 0.5)

    @property
    def dead(self) -> list[int] | None:
        """Channels that had one and the same value throughout; None if channels are unknown."""
        if self.lows_C is None or self.highs_C is None:
            return None
        return (self.lows_C == self.highs_C).nonzero().flatten().tolist()

    def add(self, other: "Spread") -> None:
        """Takes in another part of the same stream."""
        self.octaves_B = self.octaves_B + other.octaves_B
        for name in ("count", "zeros", "negative", "not_finite", "total", "squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lowest = _pick(min, self.lowest, other.lowest)
        self.highest = _pick(max, self.highest, other.highest)
        counts = {len(lows_C) for lows_C in (self.lows_C, other.lows_C) if lows_C is not None}
        self.mixed |= other.mixed or len(counts) > 1
        if self.mixed:
            self.lows_C = self.highs_C = None
            return
        self.lows_C = _merge(torch.minimum, self.lows_C, other.lows_C)
        self.highs_C = _merge(torch.maximum, self.highs_C, other.highs_C)


def _pick(
    choose: Callable[[float, float], float], first: float | None, second: float | None
) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return choose(first, second)


def _merge(
    choose: Callable[[Tensor, Tensor], Tensor], first: Tensor | None, second: Tensor | None
) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return choose(first, second)


def spread_of(values: Tensor, channel_axis: int | None = None) -> Spread:
    """The spread of one tensor; `channel_axis` tells channels apart."""
    values = values.detach().float()
    if values.device.type == "mps":  # it has neither frexp nor float64
        values = values.cpu()
    flat = values.flatten()
    finite = flat.isfinite()
    not_finite = int((~finite).sum())
    if not_finite:
        flat = flat[finite]
    zeros = int((flat == 0).sum())
    exponents = torch.frexp(flat[flat != 0])[1].long() - LOWEST_EXPONENT
    octaves_B = torch.bincount(exponents.clamp(0, OCTAVES - 1), minlength=OCTAVES).cpu()
    lows = highs = None
    if channel_axis is not None:
        others = [axis for axis in range(values.dim()) if axis != channel_axis]
        lows, highs = values.amin(others).cpu(), values.amax(others).cpu()
    return Spread(
        count=values.numel(),
        zeros=zeros,
        negative=int((flat < 0).sum()),
        not_finite=not_finite,
        total=float(flat.sum(dtype=torch.float64)),
        squares=float(flat.double().square().sum()),
        lowest=float(flat.min()) if flat.numel() else None,
        highest=float(flat.max()) if flat.numel() else None,
        octaves_B=octaves_B,
        lows_C=lows,
        highs_C=highs,
    )
