"""Windows cut from cached maps, and changed windows pasted over them.

A map is cached as a table of its positions, row-major, with the channels of a position contiguous
(channels-last memory), and two more rows for padding: zeros, and minus infinity. Cutting the
windows of a batch is then one `index_select` regardless of their positions, and pasting is one
strided copy for each run of windows with the same relative position.
Shapes: N windows, h w rows and columns of a window, H W of the map, C channels.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.device import send
from cnnviz.core.graph.geometry import Ints, copied_from

Axes = tuple[int, int]
Made = TypeVar("Made")


class Once:
    """Keeps what is derived from it, such as index tables on the device, for the next image."""

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returned the first time that this key was asked for."""
        made: dict[Hashable, Any] = self.__dict__.setdefault("_made", {})
        if key not in made:
            made[key] = make()
        kept: Made = made[key]
        return kept

    def table(
        self, key: Hashable, device: torch.device, make: Callable[[], np.ndarray[Any, Any]]
    ) -> Tensor:
        """An array that is copied to the device the first time."""
        return self.once(key, lambda: send(torch.from_numpy(make()), device))


@dataclass(frozen=True, eq=False)
class Box(Once):
    """The positions of a batch's windows on their map; all have one size and are inside the map."""

    height: int
    width: int
    top_N: Ints  # first row of each window
    left_N: Ints  # first column of each window
    extent: tuple[int, int]  # (H, W) of the map

    @property
    def whole(self) -> bool:
        """Whether each window is the whole map."""
        return (self.height, self.width) == self.extent

    @property
    def empty(self) -> bool:
        """Whether no mask of the batch changes the map."""
        return self.height == 0 or self.width == 0

    def part(self, positions: slice) -> "Box":
        """Selects the windows of some positions."""

        def make() -> "Box":
            tops, lefts = self.top_N[positions], self.left_N[positions]
            return Box(self.height, self.width, tops, lefts, self.extent)

        return self.once(("part", positions.start, positions.stop), make)

    def same(self, other: "Box") -> bool:
        """Whether both have equal positions on maps of equal size."""
        if self is other:
            return True
        return (
            (self.height, self.width, self.extent) == (other.height, other.width, other.extent)
            and np.array_equal(self.top_N, other.top_N)
            and np.array_equal(self.left_N, other.left_N)
        )


def to_rows(value: Tensor, axes: Axes) -> Tensor:
    """Moves rows and columns to axes 1 and 2 and flattens the rest: (N, h, w, C)."""
    moved = value if axes == (1, 2) else value.movedim(axes, (1, 2))
    return moved.reshape(*moved.shape[:3], -1)


def from_rows(rows_NhwC: Tensor, axes: Axes, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_rows` for a tensor whose other axes are as in `shape`."""
    rest = [size for axis, size in enumerate(shape) if axis not in (0, *axes)]
    value = rows_NhwC.reshape(*rows_NhwC.shape[:3], *rest)
    return value if axes == (1, 2) else value.movedim((1, 2), axes)


class CachedMap:
    """A map of the original image, ready to be cut.

    Attributes:
        table: (H·W + 2, C): positions row by row, a row of zeros, a row of minus infinity.
        extent: (H, W).
        axes: where rows and columns are in the network's layout.
        shape: of the map in the network's layout, batch of one.
    """

    def __init__(self, value: Tensor, axes: Axes) -> None:
        rows_1HWC = to_rows(value, axes)
        self.extent = (rows_1HWC.shape[1], rows_1HWC.shape[2])
        self.axes, self.shape = axes, tuple(value.shape)
        positions = self.extent[0] * self.extent[1]
        self.table = value.new_empty(positions + 2, rows_1HWC.shape[3])
        self.table[:positions] = rows_1HWC.reshape(positions, -1)
        self.table[positions] = 0
        self.table[positions + 1] = -torch.inf

    @cached_property
    def integral(self) -> Tensor:
        """Sums over the positions above and left of each corner: ((H + 1)·(W + 1), C), float64."""
        height, width = self.extent
        kind = torch.float32 if self.table.device.type == "mps" else torch.float64
        values = self.table[:-2].to(kind).view(height, width, -1)
        corners = values.new_zeros(height + 1, width + 1, values.shape[2])
        corners[1:, 1:] = values.cumsum(0).cumsum(1)
        return corners.view(-1, values.shape[2])

    def box_sums(self, box: Box) -> Tensor:
        """Sums the original map over each window, (N, C)."""

        def corners() -> Ints:
            width = self.extent[1] + 1
            top, left = box.top_N * width, box.left_N
            bottom, right = (box.top_N + box.height) * width, box.left_N + box.width
            return np.concatenate([top + left, bottom + right, top + right, bottom + left])

        index = box.table("corners", self.table.device, corners)
        parts = self.integral.index_select(0, index).view(4, len(box.top_N), -1)
        return parts[0] + parts[1] - parts[2] - parts[3]

    def cut(self, rows: Tensor, columns: Tensor, *, lowest: bool = False) -> Tensor:
        """Cuts windows at the rows (N, h) and columns (N, w) of `ReadWindow.indices`: (N, h, w, C).

        With `lowest`, padding is minus infinity instead of zero.
        """
        last = len(self.table) - (1 if lowest else 2)
        index = (rows[:, :, None] + columns[:, None, :]).clamp_(max=last)
        cut = self.table.index_select(0, index.view(-1))
        return cut.view(*index.shape, -1)

    def whole(self, count: int) -> Tensor:
        """The map in the network's layout, `count` times without copying."""
        rows_1HWC = self.table[:-2].view(1, *self.extent, -1)
        return from_rows(rows_1HWC, self.axes, self.shape).expand(count, *self.shape[1:])


@dataclass(frozen=True, eq=False)
class ReadWindow(Once):
    """The input positions that a batch of windows needs: rows first + i·step, i < count."""

    first: tuple[Ints, Ints]  # (top_N, left_N), possibly outside the map
    count: tuple[int, int]  # (rows, columns) read
    step: tuple[int, int] = (1, 1)  # (vertical, horizontal) distance between them

    @classmethod
    def at(cls, box: Box) -> "ReadWindow":
        """Exactly the positions of `box`."""
        return box.once("at", lambda: cls((box.top_N, box.left_N), (box.height, box.width)))

    def numbers(self, axis: int) -> Ints:
        """Row (column) indices, (N, count)."""
        steps = np.arange(self.count[axis]) * self.step[axis]
        return self.first[axis][:, None] + steps

    def indices(self, extent: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Arguments of `CachedMap.cut`; positions outside the map become padding."""

        def index(axis: int) -> Ints:
            numbers, scale = self.numbers(axis), (extent[1], 1)[axis]
            outside = (numbers < 0) | (numbers >= extent[axis])
            return np.where(outside, extent[0] * extent[1] + 1, numbers * scale)

        rows, columns = (self.table((a, extent), device, partial(index, a)) for a in (0, 1))
        return rows, columns

    def pastes(self, box: Box) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Where changed windows at `box` go: pairs of slices (of the cut, of the windows)."""
        rows = self.first[0] - box.top_N
        columns = self.first[1] - box.left_N
        edges = np.flatnonzero((np.diff(rows) != 0) | (np.diff(columns) != 0)) + 1
        starts = [0, *edges.tolist(), len(rows)]
        for start, stop in pairwise(starts):
            vertical = self._overlap(0, int(rows[start]), box.height)
            horizontal = self._overlap(1, int(columns[start]), box.width)
            if vertical is not None and horizontal is not None:
                batch = slice(start, stop)
                yield (batch, vertical[0], horizontal[0]), (batch, vertical[1], horizontal[1])

    def _overlap(self, axis: int, offset: int, size: int) -> tuple[slice, slice] | None:
        """Cut row i shows window row offset + i·step: the i that exist, and those window rows."""
        step = self.step[axis]
        first = max(0, -(offset // step))
        last = min(self.count[axis] - 1, (size - 1 - offset) // step)
        if last < first:
            return None
        source = offset + first * step
        return slice(first, last + 1), slice(source, source + (last - first) * step + 1, step)


def cut_and_paste(
    cached: CachedMap,
    read: ReadWindow,
    box: Box,
    changed_NhwC: Tensor | None,
    *,
    lowest: bool = False,
) -> Tensor:
    """Cuts windows from the original map and pastes the changed windows over it."""
    rows, columns = read.indices(cached.extent, cached.table.device)
    cut = cached.cut(rows, columns, lowest=lowest)
    if changed_NhwC is not None:
        for target, source in read.pastes(box):
            cut[target] = changed_NhwC[source]
    return cut


def cut_mapped(
    cached: CachedMap, read: ReadWindow, mode: str, box: Box, changed_NhwC: Tensor | None
) -> Tensor:
    """The same where padding copies from the map, by a padding mode of torch."""
    (height, width), changed = cached.extent, changed_NhwC is not None

    def places() -> Ints:
        rows, columns = (copied_from(read.numbers(a), cached.extent[a], mode) for a in (0, 1))
        positions = height * width
        base = np.where(rows < 0, positions, rows * width)[:, :, None]
        base = np.minimum(base + np.where(columns < 0, positions, columns)[:, None, :], positions)
        if not changed:
            return np.ravel(base)
        y, x = rows - box.top_N[:, None], columns - box.left_N[:, None]
        inside_y, inside_x = (y >= 0) & (y < box.height), (x >= 0) & (x < box.width)
        number = np.arange(len(rows))[:, None, None] * (box.height * box.width)
        place = number + (y * box.width)[:, :, None] + x[:, None, :] + len(cached.table)
        inside = inside_y[:, :, None] & inside_x[:, None, :]
        return np.ravel(np.where(inside, place, base))

    table = cached.table
    if table.device.type == "cpu":  # quickly made, and as large as the windows
        index = torch.from_numpy(places())
    else:
        index = read.table((mode, box, cached.extent, changed), table.device, places)
    if changed_NhwC is not None:
        table = torch.cat([table, changed_NhwC.reshape(-1, table.shape[1])])
    return table.index_select(0, index).view(len(box.top_N), *read.count, -1)


def paste_whole(cached: CachedMap, box: Box, changed_NhwC: Tensor) -> Tensor:
    """Whole original maps with the changed windows pasted over them, (N, H, W, C)."""
    height, width = cached.extent
    zeros = np.zeros(len(box.top_N), dtype=np.int64)
    read = ReadWindow((zeros, zeros), (height, width))
    table = cached.table[:-2].view(1, height, width, -1)
    maps = table.expand(len(zeros), -1, -1, -1).clone(memory_format=torch.contiguous_format)
    for target, source in read.pastes(box):
        maps[target] = changed_NhwC[source]
    return maps
