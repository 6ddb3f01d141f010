"""How many positions go through which steps at a time, and what a run costs.

Small windows need many positions together: each call and each reading of weights then serves more
of them. Large maps need few, so that they stay in the CPU caches. A network whose windows grow to
whole maps early (squeeze-and-excitation) has both, so a batch goes through it in segments of steps,
each with its own number of positions.

Costs are counted: multiply-accumulates and bytes of each step, per output position. Seconds are
predicted as MACs / rate + bytes / bandwidth + calls × overhead. The constants are those of one
ordinary machine; only ratios between engines matter, and `benchmarks/occlusion_vs_captum.py` prints
predictions next to measured times.
Shapes: N positions of a batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import fx, nn

from cnnviz.core.graph.geometry import Window
from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import Graph
from cnnviz.occlusion.engines.incremental.steps import Kind, Step, macs_of
from cnnviz.occlusion.engines.winograd import WinogradConv2d

# Per CPU thread: float32 convolution, and copying through the caches.
_CPU_MACS = 45e9
_CPU_BYTES = 16e9
_CPU_CALL = 25e-6
# A GPU: batches are limited by memory; a call is a launch.
_GPU_MACS = 20e12
_GPU_BYTES = 2e12
_GPU_CALL = 15e-6
# Computing where windows are cut and pasted.
_CUT = 150e-6
_CUT_POSITION = 10e-9
_CUTTING = (Kind.SLIDE, Kind.JOIN, Kind.CONCAT)
# Winograd convolution: remaining share of multiplications, and size of its weights.
_FILTERED_MACS = 0.65
_FILTERED_WEIGHTS = 4.0
# oneDNN compiles a kernel for each shape and caches the last 1,024 (its documentation, "Primitive
# Cache"), other steps included; groups with more than half of that recompile for every image.
_KEPT_KERNELS = 512
_COMPILED = 0.2e-3
# About the size of a CPU's last-level cache; 9 to 20 MiB were equally fast.
_CPU_MAP = 14 * 2**20
_CPU_MEMORY = 256 * 2**20
# On a CPU, larger batches are not faster; on a GPU the number is a guess.
_CPU_POSITIONS, _GPU_POSITIONS = 96, 256
# Memory of a cut relative to the windows that it is made from.
_CUT_COPIES = 2.0

Sizes = Mapping[fx.Node, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive steps that run with the same number of positions, `size`, at a time."""

    steps: list[Step]
    size: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """The segments of the whole network, in order, and the positions of a batch."""

    size: int
    segments: list[Segment]


def values_per_position(graph: Graph) -> dict[fx.Node, float]:
    """Number of values per position of each node's map; in total if the output is not a map."""
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
        steps: the steps of the whole network.
        borders: indices of the steps before which a batch can be split.
    """

    def __init__(
        self,
        graph: Graph,
        steps: list[Step],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None = None,
    ) -> None:
        """With `batch_size`, every step runs with that many positions at a time."""
        self.steps, self._device, self._batch_size = steps, device, batch_size
        self._bytes = {n: v * dtype.itemsize for n, v in values_per_position(graph).items()}
        self.borders = _borders(graph, steps)

    def schedule(self, sizes: Sizes) -> Schedule:
        """Returns the schedule for windows of these (rows, columns) on each map."""
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
        """Bytes per position for each step: its output, the values alive before it, its peak."""
        live: dict[fx.Node, float] = {}
        outputs, waiting, peaks = [], [], []
        for step in self.steps:
            waiting.append(sum(live.values()))
            height, width = sizes.get(step.node, (1, 1))
            size = 0.0 if step.kind is Kind.FIXED else self._bytes[step.node] * height * width
            live[step.node] = size
            outputs.append(size)
            peaks.append(sum(live.values()) + _CUT_COPIES * size)
            for dead in step.done:
                live.pop(dead, None)
        return outputs, waiting, peaks

    def _edges(self, outputs: list[float], waiting: list[float]) -> list[int]:
        """Where segments begin, and the end.

        Between two segments the values of all positions of a batch are kept, so they must be small:
        no more than a map may take. The size at a step is the smaller of the largest map up to it
        and the largest from it on, so that a short dip between two large maps does not become a
        separate segment.
        """
        borders = [b for b in self.borders if waiting[b] * _CPU_POSITIONS <= _CPU_MAP]
        before = accumulate(outputs, max)
        after = list(accumulate(reversed(outputs), max))[::-1]
        mass = [min(pair) for pair in zip(before, after, strict=True)]
        edges, level = [0], None
        for start, stop in pairwise([*borders, len(outputs)]):
            here = self._level(max(mass[start:stop]))
            if level is not None and here != level:
                edges.append(start)
            level = here
        return [*edges, len(outputs)]

    def _level(self, size: float) -> int:
        """How often the maximum number of positions is halved for a map of this size."""
        if self._device.type != "cpu":
            return 0
        level = 0
        while (_CPU_POSITIONS >> level) > max(1.0, _CPU_MAP / max(size, 1.0)):
            level += 1
        return level

    def _fitting(self, each: float, budget: float) -> int:
        maximum = _CPU_POSITIONS if self._device.type == "cpu" else _GPU_POSITIONS
        return max(1, min(maximum, int(budget / max(each, 1.0))))

    def _budget(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.mem_get_info(self._device)[0]) / 4
        return float(_CPU_MEMORY)


def _borders(graph: Graph, steps: list[Step]) -> list[int]:
    """Steps before which a batch can be split: every live value has one entry per position."""
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


class Costs:
    """The counted costs of a network's steps.

    Attributes:
        weight: node to seconds per position of its windows, for maps.
        rest: seconds per image of all other steps.
    """

    def __init__(
        self, graph: Graph, steps: list[Step], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._graph, self._steps = graph, steps
        threads = torch.get_num_threads()
        cpu = device.type == "cpu"
        half = 2.0 if dtype in (torch.bfloat16, torch.float16) else 1.0
        self.macs_per_second = (_CPU_MACS * threads if cpu else _GPU_MACS) * half
        self.bytes_per_second = _CPU_BYTES * threads if cpu else _GPU_BYTES
        self._item = torch.finfo(dtype).bits / 8
        self._call = _CPU_CALL if cpu else _GPU_CALL
        self._weights_per_second = _CPU_BYTES if cpu else _GPU_BYTES
        self._kernels = sum(step.sliding is not None for step in steps) if cpu else 0
        self._extents = extents(graph)
        self._values = values_per_position(graph)
        self.weight: dict[fx.Node, float] = {}
        self._whole: dict[fx.Node, float] = {}
        self.rest = 0.0
        for step in steps:
            if step.kind is Kind.FIXED:
                continue
            seconds = self._seconds(step)
            if step.node in self._extents:
                self._whole[step.node] = seconds
                self.weight[step.node] = seconds + self._cutting(step)
            else:
                self.rest += seconds

    def _module(self, step: Step) -> nn.Module | None:
        layer = step.info.layer
        return None if layer is None else self._graph.module.get_submodule(layer)

    def _overhead(self, steps: Iterable[Step], sizes: Sizes | None = None) -> float:
        """Seconds of these steps that do not depend on positions; of whole maps by default."""
        seconds = 0.0
        for step in steps:
            seconds += self._call + self._weight_bytes(step) / self._weights_per_second
            whole = sizes is None or sizes.get(step.node) == self._extents.get(step.node)
            if step.kind in _CUTTING and not whole:
                seconds += _CUT
        return seconds

    def _weight_bytes(self, step: Step) -> float:
        """Bytes of weights, read once per batch; Winograd convolution has more of them."""
        module = self._module(step)
        if module is None:
            return 0.0
        more = _FILTERED_WEIGHTS if isinstance(module, WinogradConv2d) else 1.0
        return more * self._item * sum(p.numel() for p in module.parameters())

    def _seconds(self, step: Step) -> float:
        """Seconds per output position of a map; in total if the output is not a map."""
        macs = macs_of(step, self._graph)
        if isinstance(self._module(step), WinogradConv2d):
            macs *= _FILTERED_MACS
        return macs / self.macs_per_second + self._bytes(step) / self.bytes_per_second

    def _bytes(self, step: Step) -> float:
        """Bytes read and written per output position."""
        if step.free:
            return 0.0
        height, width = self._extents.get(step.node, (1, 1))
        values = self._values[step.node]
        for node in step.info.inputs:
            values += self._values[node] / (1 if node in self._extents else height * width)
        return self._item * values

    def _cutting(self, step: Step) -> float:
        """Additional seconds per output position for cutting windows, a copy of the inputs."""
        if step.kind not in _CUTTING:
            return 0.0
        values = sum(self._values[node] for node in step.info.inputs if node in self._extents)
        copied = 2 * self._item * values / self.bytes_per_second + _CUT_POSITION
        window = step.info.geometry
        read = window.stride[0] * window.stride[1] if isinstance(window, Window) else 1
        return read * copied

    def image(self) -> float:
        """Predicted seconds of the whole network per image, without the costs per batch."""
        return self.rest + sum(
            weight * self._extents[node][0] * self._extents[node][1]
            for node, weight in self._whole.items()
        )

    def _baseline(self) -> float:
        """Predicted seconds of the original image's run, including caching its maps."""
        seconds = self.image() + self._overhead(self._steps)
        for step in self._steps:
            if step.cached and step.node in self._extents:
                height, width = self._extents[step.node]
                values = self._values[step.node] * height * width
                seconds += self._call + 2 * self._item * values / self.bytes_per_second
        return seconds

    def full(self, positions: int, batch_size: int) -> float:
        """Predicted seconds of the full engine, including the original image."""
        batches = 1 + -(-positions // batch_size)
        return (1 + positions) * self.image() + batches * self._overhead(self._steps)

    def compiling(self, groups: int) -> float:
        """Predicted seconds for compiling kernels that do not stay in oneDNN's cache."""
        kernels = groups * self._kernels
        return kernels * _COMPILED if kernels > _KEPT_KERNELS else 0.0

    def calls(self, schedule: Schedule, sizes: Sizes, positions: int) -> float:
        """Predicted seconds for `positions` in addition to arithmetic and bytes."""
        return sum(
            -(-positions // segment.size) * self._overhead(segment.steps, sizes)
            for segment in schedule.segments
        )

    def incremental(self, groups: Iterable[tuple[int, Sizes, Schedule]]) -> float:
        """Predicted seconds of the incremental engine, including the original image.

        Args:
            groups: number of positions, sizes of the windows, and schedule of each group.
        """
        groups = list(groups)
        seconds = self._baseline() + self.compiling(len(groups))
        for count, sizes, schedule in groups:
            seconds += count * self.rest
            for node, weight in self.weight.items():
                whole = sizes[node] == self._extents[node]
                each = self._whole[node] if whole else weight
                seconds += count * each * sizes[node][0] * sizes[node][1]
            seconds += self.calls(schedule, sizes, count)
        return seconds
