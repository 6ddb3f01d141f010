"""How many positions go through which steps at a time.

Small windows want many positions together: each call and each reading of weights then serves more
of them. Large maps want few, so that they stay in the processor's caches. A network whose windows
grow to whole maps early (squeeze-and-excitation) has both, so a batch goes through it in segments
of steps, each with a number of its own.
Shapes: N positions of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import fx

from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import Graph
from cnnviz.occlusion.engines.incremental.steps import Kind, Step

# About what stays in a processor's last cache; 9 to 20 MiB were alike.
_CPU_MAP = 14 * 2**20
_CPU_MEMORY = 256 * 2**20
# More positions in a batch gain nothing on a CPU; on a GPU the number is a guess.
_CPU_POSITIONS, _GPU_POSITIONS = 96, 256
# A cut holds about as much again as the windows it is made from.
_CUT_COPIES = 2.0

Sizes = Mapping[fx.Node, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Segment:
    """Steps that run one after another with the same number of positions.

    Attributes:
        steps: in order.
        size: positions at a time.
    """

    steps: list[Step]
    size: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """How a group of positions goes through the network.

    Attributes:
        size: positions of a batch.
        segments: of the whole network, in order.
    """

    size: int
    segments: list[Segment]


def values_per_position(graph: Graph) -> dict[fx.Node, float]:
    """Numbers that each node puts out per position of its map; all of them where it has no map."""
    sizes = extents(graph)
    values = {}
    for node, info in graph.info.items():
        count = float(torch.Size(info.shape).numel()) if info.shape is not None else 0.0
        height, width = sizes.get(node, (1, 1))
        values[node] = count / max(1, height * width)
    return values


class Scheduler:
    """Finds a `Schedule` for windows of any sizes.

    Attributes:
        steps: of the whole network.
        borders: numbers of the steps before which a batch can be split.
    """

    def __init__(
        self,
        graph: Graph,
        steps: list[Step],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None = None,
    ) -> None:
        """With `batch_size` everything runs with so many positions at a time."""
        self.steps, self._device, self._batch_size = steps, device, batch_size
        self._bytes = {n: v * dtype.itemsize for n, v in values_per_position(graph).items()}
        self.borders = _borders(graph, steps)

    def schedule(self, sizes: Sizes) -> Schedule:
        """For windows of these (rows, columns) on each map."""
        if self._batch_size is not None:
            return Schedule(self._batch_size, [Segment(self.steps, self._batch_size)])
        outputs, waiting, peaks = self._footprint(sizes)
        edges = self._edges(outputs, waiting)
        segments = []
        for start, stop in pairwise(edges):
            size = self._fitting(max(peaks[start:stop]), self._budget())
            if self._device.type == "cpu":
                size = min(size, self._fitting(max(outputs[start:stop]), _CPU_MAP))
            segments.append(Segment(self.steps[start:stop], size))
        return Schedule(max(segment.size for segment in segments), segments)

    def _footprint(self, sizes: Sizes) -> tuple[list[float], list[float], list[float]]:
        """Bytes per position: what each step puts out, what waits before it, the most it takes."""
        live: dict[fx.Node, float] = {}
        outputs, waiting, peaks = [], [], []
        for step in self.steps:
            waiting.append(sum(live.values()))
            height, width = sizes.get(step.node, (1, 1))
            own = 0.0 if step.kind is Kind.FIXED else self._bytes[step.node] * height * width
            live[step.node] = own
            outputs.append(own)
            peaks.append(sum(live.values()) + _CUT_COPIES * own)
            for dead in step.done:
                live.pop(dead, None)
        return outputs, waiting, peaks

    def _edges(self, outputs: list[float], waiting: list[float]) -> list[int]:
        """Where segments begin, and the end.

        Between two segments all positions of a batch wait for one another, so that must be little:
        no more than a map may take. What counts at a step is the smaller of the largest map up to
        there and the largest from there on, so that a short dip between two large maps is no
        segment of its own.
        """
        borders = [b for b in self.borders if waiting[b] * _CPU_POSITIONS <= _CPU_MAP]
        before = accumulate(outputs, max)
        behind = list(accumulate(reversed(outputs), max))[::-1]
        mass = [min(pair) for pair in zip(before, behind, strict=True)]
        edges, level = [0], None
        for start, stop in pairwise([*borders, len(outputs)]):
            here = self._level(max(mass[start:stop]))
            if level is not None and here != level:
                edges.append(start)
            level = here
        return [*edges, len(outputs)]

    def _level(self, size: float) -> int:
        """How often the largest number of positions is halved for a map of this size."""
        if self._device.type != "cpu":
            return 0
        level = 0
        while (_CPU_POSITIONS >> level) > max(1.0, _CPU_MAP / max(size, 1.0)):
            level += 1
        return level

    def _fitting(self, each: float, budget: float) -> int:
        most = _CPU_POSITIONS if self._device.type == "cpu" else _GPU_POSITIONS
        return max(1, min(most, int(budget / max(each, 1.0))))

    def _budget(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.mem_get_info(self._device)[0]) / 4
        return float(_CPU_MEMORY)


def _borders(graph: Graph, steps: list[Step]) -> list[int]:
    """Steps before which a batch can be split: all that waits there has one entry per position."""
    live: set[fx.Node] = set()
    borders = []
    for number, step in enumerate(steps):
        if all(_splits(graph, node) for node in live):
            borders.append(number)
        if not step.constant:
            live.add(step.node)
        live -= set(step.done)
    return borders


def _splits(graph: Graph, node: fx.Node) -> bool:
    info = graph.info[node]
    return info.axes is not None and info.shape is not None and 0 not in info.axes
