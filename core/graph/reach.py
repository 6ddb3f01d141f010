"""What a mask can reach: for each node of the network, the rows and columns that may change.

A mask that covers input rows a … b changes only the output rows [⌈(a+p−(k−1)d)/s⌉, ⌊(b+p)/s⌋] of a
sliding window, and the hull of what its inputs change of a merge; a node that mixes all positions
changes everywhere. Rows and columns are handled apart, and many masks at once.
Shapes: I intervals (the different row spans, or column spans, of a set of masks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import fx

from cnnviz.core.graph.geometry import Image, Merge, Mix, Pointwise, Window
from cnnviz.core.graph.trace import Graph

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Spans:
    """First and last changed row (or column) of a map; last < first where nothing changes.

    Attributes:
        first_I: inside the map; 0 where nothing changes.
        last_I: inside the map; -1 where nothing changes.
        extent: how many rows (columns) the map has.
    """

    first_I: Ints
    last_I: Ints
    extent: int

    @property
    def sizes(self) -> Ints:
        """How many rows (columns) change."""
        return self.last_I - self.first_I + 1


def spans(first_I: Ints, last_I: Ints, extent: int) -> Spans:
    """Cut to the map, with empty intervals in their normal form."""
    first, last = np.maximum(first_I, 0), np.minimum(last_I, extent - 1)
    empty = last < first
    return Spans(np.where(empty, 0, first), np.where(empty, -1, last), extent)


def extents(graph: Graph) -> dict[fx.Node, tuple[int, int]]:
    """Rows and columns of every map in the network."""
    sizes: dict[fx.Node, tuple[int, int]] = {}
    for node, info in graph.info.items():
        if info.axes is None:
            continue
        if info.shape is None:  # a split: several maps of its input's size
            sizes[node] = sizes[info.inputs[0]]
        else:
            sizes[node] = (info.shape[info.axes[0]], info.shape[info.axes[1]])
    return sizes


def reach(graph: Graph, axis: int, first_I: Ints, last_I: Ints) -> dict[fx.Node, Spans]:
    """The spans of every map when the image changes in rows (axis 1: columns) first … last."""
    sizes = extents(graph)
    reached: dict[fx.Node, Spans] = {}
    for node, size in sizes.items():
        info, extent = graph.info[node], size[axis]
        below = [reached[m] for m in info.inputs if m in reached]
        match info.geometry:
            case Image():
                reached[node] = spans(first_I, last_I, extent)
            case Pointwise():
                reached[node] = below[0] if below[0].extent == extent else _all(below[0], extent)
            case Merge():
                reached[node] = _hull(below)
            case Window(transposed=False) as window:
                reached[node] = _through(window, axis, below[0], extent)
            case Mix() | Window() | _:
                reached[node] = _all(below[0], extent)
    return reached


def _all(like: Spans, extent: int) -> Spans:
    zeros = np.zeros_like(like.first_I)
    return Spans(zeros, zeros + (extent - 1), extent)


def _hull(parts: Sequence[Spans]) -> Spans:
    hull = parts[0]
    for part in parts[1:]:
        if part is hull:
            continue
        empty, hull_empty = part.last_I < part.first_I, hull.last_I < hull.first_I
        first = np.where(empty, hull.first_I, np.minimum(part.first_I, hull.first_I))
        first = np.where(hull_empty, part.first_I, first)
        last = np.where(hull_empty, part.last_I, np.maximum(part.last_I, hull.last_I))
        hull = Spans(first, last, hull.extent)
    return hull


def _through(window: Window, axis: int, below: Spans, extent: int) -> Spans:
    first, last = below.first_I, below.last_I
    if window.padding_mode != "zeros":
        first, last = _with_copies(window, axis, below)
    stride, before = window.stride[axis], window.padding[axis][0]
    far = (window.kernel[axis] - 1) * window.dilation[axis]
    low, high = -((-(first + before - far)) // stride), (last + before) // stride
    changed = below.last_I >= below.first_I
    return spans(np.where(changed, low, 0), np.where(changed, high, -1), extent)


def _with_copies(window: Window, axis: int, below: Spans) -> tuple[Ints, Ints]:
    """The hull of the changed rows and of their copies in the padding, in input coordinates."""
    before, after = window.padding[axis]
    padded = np.arange(-max(before, 0), below.extent + max(after, 0))
    origin = copied_from(padded, below.extent, window.padding_mode)
    inside = (origin >= below.first_I[:, None]) & (origin <= below.last_I[:, None])
    first = np.where(inside.any(1), padded[inside.argmax(1)], 0)
    last = np.where(inside.any(1), padded[::-1][inside[:, ::-1].argmax(1)], -1)
    return first, last


def copied_from(rows: Ints, extent: int, padding_mode: str) -> Ints:
    """Which row of the map each row of its padded version shows; -1 for padding with zeros."""
    if padding_mode == "reflect":
        folded = np.abs(rows)
        return np.where(folded >= extent, 2 * (extent - 1) - folded, folded)
    if padding_mode == "replicate":
        return np.clip(rows, 0, extent - 1)
    if padding_mode == "circular":
        return rows % extent
    return np.where((rows >= 0) & (rows < extent), rows, -1)
