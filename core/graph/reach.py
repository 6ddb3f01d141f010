"""What a mask can reach: for each node of the network, the rows and columns that may change.

A mask that covers input rows a … b changes only the output rows [⌈(a+p−(k−1)d)/s⌉, ⌊(b+p)/s⌋] of a
sliding window, and the hull of the changes of its inputs for a merge; a node that mixes all
positions changes everywhere. Rows and columns are computed separately, for many masks at once.
Shapes: I intervals (the distinct row spans, or column spans, of a set of masks).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx

from cnnviz.core.graph.geometry import Image, Ints, Merge, Pointwise, Window, copied_from
from cnnviz.core.graph.trace import Graph


@dataclass(frozen=True, eq=False)
class Spans:
    """First and last changed row (or column) of a map; last < first where nothing changes."""

    first_I: Ints  # inside the map; 0 where nothing changes
    last_I: Ints  # inside the map; -1 where nothing changes
    extent: int  # rows (columns) of the map

    @property
    def sizes(self) -> Ints:
        """Number of changed rows (columns)."""
        return self.last_I - self.first_I + 1


def _spans(first_I: Ints, last_I: Ints, extent: int) -> Spans:
    """Spans clipped to the map, with empty intervals in their normal form."""
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
    reached: dict[fx.Node, Spans] = {}
    for node, size in extents(graph).items():
        info, extent = graph.info[node], size[axis]
        inputs = [reached[m] for m in info.inputs if m in reached]
        match info.geometry:
            case Image():
                reached[node] = _spans(first_I, last_I, extent)
            case Pointwise() if inputs[0].extent == extent:
                reached[node] = inputs[0]
            case Merge():
                reached[node] = _hull(inputs)
            case Window(transposed=False) as window:
                reached[node] = _through(window, axis, inputs[0], extent)
            case _:
                zeros = np.zeros_like(first_I)
                reached[node] = Spans(zeros, zeros + (extent - 1), extent)
    return reached


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


def _through(window: Window, axis: int, inputs: Spans, extent: int) -> Spans:
    first, last = inputs.first_I, inputs.last_I
    if window.padding_mode != "zeros":
        first, last = _with_copies(window, axis, inputs)
    low, high = window.reaches(axis, first, last)
    changed = inputs.last_I >= inputs.first_I
    return _spans(np.where(changed, low, 0), np.where(changed, high, -1), extent)


def _with_copies(window: Window, axis: int, inputs: Spans) -> tuple[Ints, Ints]:
    """The hull of the changed rows and of their copies in the padding, in input coordinates."""
    before, after = window.padding[axis]
    padded = np.arange(-max(before, 0), inputs.extent + max(after, 0))
    origin = copied_from(padded, inputs.extent, window.padding_mode)
    inside = (origin >= inputs.first_I[:, None]) & (origin <= inputs.last_I[:, None])
    first = np.where(inside.any(1), padded[inside.argmax(1)], 0)
    last = np.where(inside.any(1), padded[::-1][inside[:, ::-1].argmax(1)], -1)
    return first, last
