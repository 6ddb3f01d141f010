"""What the units of a layer see along one axis, and how one operation changes that.

The unclipped account (size, jump, start) counts padding as if it were pixels; the clipped one
(first, last) knows for each unit the pixels that it really reads.

Legend: U units, T taps of a window, I input positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.graph.geometry import Window

Index = NDArray[np.int64]
NOTHING = np.iinfo(np.int64).max
"""`first` of a unit that reads padding alone; its `last` is -1."""
# Wide enough for something to be left of the other axis when both are scaled down.
_OTHER_AXIS = 32


@dataclass(frozen=True, eq=False)
class AxisField:
    """What the units of a layer see along one axis.

    Attributes:
        size: pixels that a unit sees, padding counted as if it were pixels; inf behind global
            operations. Where units differ (uneven adaptive pooling, upsampling), the largest.
        jump: pixels from a unit's field to the next one's; inf if there is only one by nature.
        start: first pixel of unit 0, negative where padding reaches out; -inf if size is inf.
        first: (U,) the first pixel that each unit really reads; NOTHING if it reads none.
        last: (U,) the last one, included; -1 if it reads none.
    """

    size: float
    jump: float
    start: float
    first: Index
    last: Index


def pixels(count: int) -> AxisField:
    """The image itself: each pixel sees itself."""
    each = np.arange(count, dtype=np.int64)
    return AxisField(1, 1, 0, each, each)


def union(inputs: Sequence[AxisField]) -> AxisField:
    """What several maps of one size see together, each unit's pixels as one interval."""
    if len(inputs) == 1:
        return inputs[0]
    start = min(field.start for field in inputs)
    end = max(field.start + field.size for field in inputs)
    infinite = any(math.isinf(field.size) for field in inputs)
    return AxisField(
        size=math.inf if infinite else end - start,
        jump=_shared_jump(inputs),
        start=-math.inf if infinite else start,
        first=np.minimum.reduce([field.first for field in inputs]),
        last=np.maximum.reduce([field.last for field in inputs]),
    )


def _shared_jump(inputs: Sequence[AxisField]) -> float:
    finite = [field.jump for field in inputs if not math.isinf(field.jump)]
    return max(finite, default=math.inf)


def everything(inputs: Sequence[AxisField], count: int | None) -> AxisField:
    """All that the inputs see, for each of `count` units."""
    count = count or 1
    first = min(int(field.first.min()) for field in inputs)
    last = max(int(field.last.max()) for field in inputs)
    kept = [field for field in inputs if len(field.first) == count > 1]
    jump = _shared_jump(kept)
    return AxisField(math.inf, jump, -math.inf, np.full(count, first), np.full(count, last))


def through_window(field: AxisField, window: Window, axis: int, count: int) -> AxisField:
    """What `count` units see through a sliding window, plain or transposed."""
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    before = window.padding[axis][0]
    units_U1, taps_T = np.arange(count)[:, None], np.arange(kernel) * dilation
    if not window.transposed:
        reads_UT = _padded(units_U1 * stride - before + taps_T, field, window.padding_mode)
        first, last = _hull(field, reads_UT)
        size = field.size + _steps((kernel - 1) * dilation, field)
        start = field.start - _steps(before, field)
        return AxisField(size, field.jump * stride, start, first, last)
    over_UT = units_U1 + before - taps_T
    sources_UT = np.where(over_UT % stride == 0, over_UT // stride, -1)
    first, last = _hull(field, sources_UT)
    # Which taps meet an input repeats every `stride` units, so the first few show all cases.
    offsets_UT = np.arange(stride)[:, None] + before - taps_T
    cases = [row[row % stride == 0] // stride for row in offsets_UT]
    spread = max((int(case.max() - case.min()) for case in cases if case.size), default=0)
    begin = int(cases[0].min()) if cases[0].size else 0
    size, start = field.size + _steps(spread, field), field.start + _steps(begin, field)
    return AxisField(size, field.jump / stride, start, first, last)


def _steps(units: int, field: AxisField) -> float:
    """So many units' way in pixels; none is no way, even where a step has no end."""
    return units * field.jump if units else 0.0


def _padded(positions_UT: Index, field: AxisField, mode: str) -> Index:
    """Input positions that padding copies to, where it copies; zeros stay outside."""
    count = len(field.first)
    if mode == "circular":
        return positions_UT % count
    if mode == "replicate":
        return positions_UT.clip(0, count - 1)
    if mode == "reflect":
        return np.minimum(abs(positions_UT), 2 * (count - 1) - abs(positions_UT))
    return positions_UT


def _hull(field: AxisField, reads_UT: Index) -> tuple[Index, Index]:
    """First and last pixel of what each unit reads; positions outside the map are padding."""
    count = len(field.first)
    inside_UT = (reads_UT >= 0) & (reads_UT < count)
    safe_UT = np.where(inside_UT, reads_UT, 0)
    first = np.where(inside_UT, field.first[safe_UT], NOTHING).min(axis=1)
    last = np.where(inside_UT, field.last[safe_UT], -1).max(axis=1)
    return first, last


def through_resampling(
    field: AxisField, resample: Callable[[Tensor], Tensor], axis: int
) -> AxisField:
    """Tries out which inputs each output reads, by resampling one impulse at a time."""
    count = len(field.first)
    impulses = torch.eye(count).unsqueeze(1).unsqueeze(3 - axis)
    impulses = impulses.repeat_interleave(_OTHER_AXIS, 3 - axis)
    answers = resample(impulses)[:, 0].movedim(1 + axis, 1).flatten(2).abs().amax(2)
    reads_UI = answers.T.numpy() > 0
    if len(reads_UI) == 1 and reads_UI.all():
        return everything([field], 1)
    positions_UI = np.where(reads_UI, np.arange(count), -1)
    first, last = _hull(field, positions_UI)
    spans = list(_spans(reads_UI))
    spread = max((end - begin for begin, end in spans), default=0)
    begin = spans[0][0] if spans else 0
    return AxisField(
        size=field.size + _steps(spread, field),
        jump=field.jump * count / len(reads_UI),
        start=field.start + _steps(begin, field),
        first=first,
        last=last,
    )


def _spans(reads_UI: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    for row in reads_UI:
        hits = np.flatnonzero(row)
        if hits.size:
            yield int(hits[0]), int(hits[-1])
