"""Operations that move, pick, pad or run along axes: where rows and columns end up.

Each rule takes the operation as it ran and says whether rows and columns stay places of their own
(then the operation is local) and at which axes of the result they are.
"""

from typing import Any

from torch import Tensor

from cnnviz.core.graph.call import MIXED, Axes, Call, Verdict
from cnnviz.core.graph.geometry import Mix, Pointwise, Window


def on_last_axes(call: Call, count: int) -> Verdict:
    """Layer norm and linear work on the last axes: local as long as rows and columns are others."""
    axes = call.map_axes
    if axes is None or max(axes) >= call.map.dim() - count:
        return MIXED
    return Pointwise(), axes


def along_axes(call: Call, dims: int | tuple[int, ...] | list[int] | None) -> Verdict:
    """An operation along some axes (softmax, sum): local unless rows or columns are among them."""
    axes, rank = call.map_axes, call.map.dim()
    if axes is None or dims is None:
        return MIXED
    taken = {d % rank for d in ([dims] if isinstance(dims, int) else dims)}
    if taken & set(axes) or 0 in taken or not isinstance(call.value, Tensor):
        return MIXED
    if call.value.dim() == rank:
        return Pointwise(), axes
    row, column = (a - sum(d < a for d in taken) for a in axes)
    return Pointwise(), (row, column)


def reduction(call: Call) -> Verdict:
    """Mean, sum, maximum over axes; the mean over rows and columns is told apart."""
    axes, dims = call.map_axes, call.get(1, "dim")
    if axes is not None and call.name == "mean" and dims is not None and not isinstance(dims, int):
        rank = call.map.dim()
        if {d % rank for d in dims} == set(axes) and axes == (2, 3) and rank == 4:
            return Mix(mean=True), axes if call.value.dim() == rank else None
    return along_axes(call, dims)


def split(call: Call) -> Verdict:
    """Cutting along one axis, into several tensors."""
    dim = call.get(2, "dim", 0) % call.map.dim()
    axes = call.map_axes
    return (Pointwise(), axes) if axes is not None and dim and dim not in axes else MIXED


def permute(call: Call) -> Verdict:
    """New order of all axes."""
    order = call.get(1, "dims")
    if isinstance(order, int):
        order = call.args[1:]
    return _reordered(call, [d % call.map.dim() for d in order])


def transpose(call: Call) -> Verdict:
    """Two axes exchanged."""
    order = list(range(call.map.dim()))
    first, second = call.get(1, "dim0"), call.get(2, "dim1")
    order[first], order[second] = order[second], order[first]
    return _reordered(call, order)


def _reordered(call: Call, order: list[int]) -> Verdict:
    axes = call.map_axes
    if axes is None or order[0] != 0:
        return MIXED
    return Pointwise(), (order.index(axes[0]), order.index(axes[1]))


def reshape(call: Call) -> Verdict:
    """Local if the batch, the rows and the columns each stay an axis of their own."""
    axes = call.map_axes
    if axes is None or not isinstance(call.value, Tensor):
        return MIXED
    kept = _axes_kept(tuple(call.map.shape), tuple(call.value.shape))
    if kept.get(0) != 0 or axes[0] not in kept or axes[1] not in kept:
        return MIXED
    return Pointwise(), (kept[axes[0]], kept[axes[1]])


def _axes_kept(before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, int]:
    """Which axes of a shape a reshape leaves alone: old position to new."""
    kept: dict[int, int] = {}
    i = j = 0
    while i < len(before) and j < len(after):
        if (before[i] == 1) != (after[j] == 1):
            i, j = i + (before[i] == 1), j + (after[j] == 1)
            continue
        start_i, start_j = i, j
        size_i, size_j = before[i], after[j]
        while size_i != size_j:
            if size_i < size_j:
                i += 1
                size_i *= before[i]
            else:
                j += 1
                size_j *= after[j]
        if i == start_i and j == start_j:
            kept[i] = j
        i, j = i + 1, j + 1
    return kept


def unsqueeze(call: Call) -> Verdict:
    """A new axis of size 1."""
    dim = call.get(1, "dim") % (call.map.dim() + 1)
    axes = call.map_axes
    if axes is None or dim == 0:
        return MIXED
    row, column = (a + (dim <= a) for a in axes)
    return Pointwise(), (row, column)


def getitem(call: Call) -> Verdict:
    """Picking from a split, slicing channels, or strided slicing of rows and columns."""
    axes, index = call.map_axes, call.args[1]
    if axes is None:
        return MIXED
    if not isinstance(call.args[0], Tensor):
        return Pointwise(), axes
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(i, int | slice) and i is not None and i is not ... for i in items):
        return MIXED
    if ... in items:
        at = items.index(...)
        missing = call.map.dim() - sum(i is not None and i is not ... for i in items)
        items[at : at + 1] = [slice(None)] * missing
    return _sliced(call.map, axes, items)


def _sliced(tensor: Tensor, axes: Axes, items: list[Any]) -> Verdict:
    old = new = 0
    where: dict[int, int] = {}
    cuts = {a: (0, 1, tensor.shape[a]) for a in axes}
    for item in items:
        if item is None:
            new += 1
            continue
        if isinstance(item, slice):
            where[old] = new
            new += 1
            full = (0, tensor.shape[old], 1) == item.indices(tensor.shape[old])
            if old == 0 and not full:
                return MIXED
            if old in cuts:
                start, stop, step = item.indices(tensor.shape[old])
                cuts[old] = (start, step, len(range(start, stop, step)))
        elif old in cuts or old == 0:
            return MIXED
        old += 1
    for a in axes:
        where.setdefault(a, a - old + new)
    if items and items[0] is None:
        return MIXED
    row, column = where[axes[0]], where[axes[1]]
    if all(cuts[a] == (0, 1, tensor.shape[a]) for a in axes):
        return Pointwise(), (row, column)
    starts = tuple(cuts[a][0] for a in axes)
    steps = (cuts[axes[0]][1], cuts[axes[1]][1])
    ends = [(cuts[a][2] - 1) * cuts[a][1] + 1 + cuts[a][0] - tensor.shape[a] for a in axes]
    sides = ((-starts[0], ends[0]), (-starts[1], ends[1]))
    return Window((1, 1), steps, sides), (row, column)


def pad(call: Call) -> Verdict:
    """Padding at the ends of some axes; of channels alone it is local."""
    axes = call.map_axes
    widths, mode = list(call.get(1, "pad")), call.get(2, "mode", "constant")
    rank = call.map.dim()
    sides = {rank - 1 - i // 2: (widths[i], widths[i + 1]) for i in range(0, len(widths), 2)}
    if axes is None or sides.get(0, (0, 0)) != (0, 0):
        return MIXED
    rows, columns = (sides.get(a, (0, 0)) for a in axes)
    if (rows, columns) == ((0, 0), (0, 0)):
        return Pointwise(), axes
    others = any(sides[a] != (0, 0) for a in sides if a not in axes)
    if others or axes != (2, 3) or rank != 4:
        return Mix(), axes
    modes = {"constant": "zeros"}
    return Window((1, 1), padding=(rows, columns), padding_mode=modes.get(mode, mode)), axes
