"""Groups positions that run together: windows of one size, as small as their masks allow.

A batch needs windows of one size at every layer, so its cost is that of its largest mask. Masks at
the edge reach less, and how far an inner mask reaches depends on its alignment with the grid of
each stride. Row spans are therefore clustered by their joint cost, and so are column spans; a
group is the positions of one row cluster and one column cluster. Merging clusters makes windows
larger; separate clusters make more, smaller batches; the cheaper of the two is taken.
Shapes: I distinct spans on one axis, M maps of the network, P positions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx

from cnnviz.core.graph.geometry import Ints, Window
from cnnviz.core.graph.reach import Spans, reach
from cnnviz.core.graph.trace import Graph
from cnnviz.occlusion.engines.incremental.windows import Box

Floats = npt.NDArray[np.float64]
_LEVELS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)


@dataclass(frozen=True, eq=False)
class AxisReach:
    """What the distinct row (or column) spans of a set of masks reach."""

    number_P: Ints  # the index of each position's span
    spans: dict[fx.Node, Spans]  # node to the spans reached on its map
    alike_I: Ints  # spans with equal values have windows with equal relative positions


@dataclass(frozen=True, eq=False)
class Group:
    """Positions that run together, ordered so that few pastes are needed."""

    positions_N: Ints  # indices into the set of masks
    sizes: dict[fx.Node, tuple[int, int]]  # node to the (height, width) of its windows
    # the boxes of a batch of them, by its first position and size, kept for the next image
    boxes: dict[tuple[int, int], dict[fx.Node, Box]] = field(default_factory=dict)


def reach_of_boxes(graph: Graph, boxes_P4: Ints) -> tuple[AxisReach, AxisReach]:
    """Computes the reach on both axes of masks at rows y0 … y1 - 1, columns x0 … x1 - 1."""
    both = []
    for axis in (0, 1):
        pairs = boxes_P4[:, [axis, axis + 2]]
        distinct, number_P = np.unique(pairs, axis=0, return_inverse=True)
        spans = reach(graph, axis, distinct[:, 0], distinct[:, 1] - 1)
        both.append(AxisReach(number_P.reshape(-1), spans, _alike(graph, axis, spans)))
    return both[0], both[1]


def _alike(graph: Graph, axis: int, spans: dict[fx.Node, Spans]) -> Ints:
    offsets: list[Ints] = []
    for node, reached in spans.items():
        info = graph.info[node]
        stride = info.geometry.stride[axis] if isinstance(info.geometry, Window) else 1
        offsets += [
            stride * reached.first_I - spans[below].first_I
            for below in info.inputs
            if below in spans and spans[below] is not reached
        ]
    if not offsets:
        return np.zeros(len(next(iter(spans.values())).first_I), dtype=np.int64)
    return np.unique(np.stack(offsets), axis=1, return_inverse=True)[1].reshape(-1)


def largest_windows(rows: AxisReach, columns: AxisReach) -> dict[fx.Node, tuple[int, int]]:
    """Window sizes that hold the reach of any of the masks, on each map."""
    return {
        node: (int(rows.spans[node].sizes.max()), int(columns.spans[node].sizes.max()))
        for node in rows.spans
    }


def make_groups(
    rows: AxisReach,
    columns: AxisReach,
    weight: Mapping[fx.Node, float],
    calls: Callable[[int, int], float],
    largest: int,
) -> list[Group]:
    """Finds the groups with the lowest predicted time, the largest windows first.

    In that order later groups fit into the memory that earlier ones have released.

    Args:
        rows: reach of the row spans.
        columns: reach of the column spans.
        weight: seconds per position of each map's windows.
        calls: numbers of groups and of batches to their seconds, excluding those of `weight`.
        largest: positions of one batch.
    """
    nodes = list(weight)
    weight_M = np.array([weight[node] for node in nodes])
    sizes = [np.stack([axis.spans[n].sizes for n in nodes], 1) for axis in (rows, columns)]
    counts = [
        np.bincount(axis.number_P, minlength=len(sizes[a]))
        for a, axis in enumerate((rows, columns))
    ]
    means = [np.average(sizes[a], axis=0, weights=counts[a]) for a in (0, 1)]
    trees = [_merges(sizes[a], counts[a], weight_M * means[1 - a]) for a in (0, 1)]
    best: tuple[float, list[Ints]] | None = None
    for row_labels in _levels(trees[0]):
        for column_labels in _levels(trees[1]):
            labels = [row_labels, column_labels]
            seconds = _predicted(labels, (rows, columns), sizes, weight_M, calls, largest)
            if best is None or seconds < best[0]:
                best = (seconds, labels)
    assert best is not None  # noqa: S101 (there is always at least one cluster)
    return _grouped(best[1], (rows, columns))


def _merges(sizes_IM: Ints, counts_I: Ints, weight_M: Floats) -> list[Ints]:
    """Cluster labels of the spans, from all separate to all in one, cheapest merges first."""
    kinds, labels = np.unique(sizes_IM, axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    counts = np.bincount(labels, weights=counts_I)
    members: list[tuple[Ints, float]] = [(kinds[i], counts[i]) for i in range(len(kinds))]
    levels = [labels]
    while len(members) > 1:
        sizes = np.stack([m[0] for m in members])
        number = np.array([m[1] for m in members])
        alone = number * (sizes @ weight_M)
        together = np.maximum(sizes[:, None], sizes[None]) @ weight_M
        added = (number[:, None] + number[None]) * together - alone[:, None] - alone[None]
        added[np.tril_indices(len(members))] = np.inf
        i, j = np.unravel_index(int(added.argmin()), added.shape)
        members[i] = (np.maximum(sizes[i], sizes[j]), number[i] + number[j])
        del members[int(j)]
        merged = np.where(levels[-1] == j, i, levels[-1])
        levels.append(merged - (merged > j))
    return levels


def _levels(tree: list[Ints]) -> list[Ints]:
    return [tree[-count] for count in _LEVELS if count <= len(tree)]


def _predicted(
    labels: Sequence[Ints],
    axes: tuple[AxisReach, AxisReach],
    sizes: Sequence[Ints],
    weight_M: Floats,
    calls: Callable[[int, int], float],
    largest: int,
) -> float:
    cluster = [labels[a][axes[a].number_P] for a in (0, 1)]
    tall, wide = (int(labels[a].max()) + 1 for a in (0, 1))
    count = np.bincount(cluster[0] * wide + cluster[1], minlength=tall * wide).reshape(tall, wide)
    maxima = [
        np.stack([sizes[a][labels[a] == k].max(0) for k in range(int(labels[a].max()) + 1)])
        for a in (0, 1)
    ]
    per_position = (maxima[0] * weight_M) @ maxima[1].T
    batches = int(np.ceil(count / largest).sum())
    return float((count * per_position).sum()) + calls(int((count > 0).sum()), batches)


def _grouped(labels: Sequence[Ints], axes: tuple[AxisReach, AxisReach]) -> list[Group]:
    rows, columns = axes
    row_sizes = _largest(labels[0], rows)
    column_sizes = _largest(labels[1], columns)
    groups = []
    wide = int(labels[1].max()) + 1
    cluster_P = labels[0][rows.number_P] * wide + labels[1][columns.number_P]
    for cluster in np.unique(cluster_P):
        positions = np.flatnonzero(cluster_P == cluster)
        keys = (
            columns.alike_I[columns.number_P[positions]],
            rows.alike_I[rows.number_P[positions]],
        )
        tall, broad = divmod(int(cluster), wide)
        sizes = {
            node: (int(row_sizes[node][tall]), int(column_sizes[node][broad]))
            for node in rows.spans
        }
        groups.append(Group(positions[np.lexsort(keys)], sizes))
    return sorted(groups, key=lambda g: sum(h * w for h, w in g.sizes.values()), reverse=True)


def _largest(labels: Ints, axis: AxisReach) -> dict[fx.Node, Ints]:
    count = int(labels.max()) + 1
    largest = {}
    for node, spans in axis.spans.items():
        sizes = np.zeros(count, dtype=np.int64)
        np.maximum.at(sizes, labels, spans.sizes)
        largest[node] = sizes
    return largest
