"""What a run costs, counted: multiply-accumulates and bytes of each step, per output position.

Seconds are predicted as MACs / rate + bytes / bandwidth + calls × overhead. The constants are those
of one ordinary machine; only ratios between engines matter, and `benchmarks/occlusion_vs_captum.py`
prints predictions beside measured times.
"""

from collections.abc import Iterable

import torch
from torch import fx, nn

from cnnviz.core.graph.geometry import Window
from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import Graph
from cnnviz.occlusion.engines.incremental.schedule import Schedule, Sizes, values_per_position
from cnnviz.occlusion.engines.incremental.steps import Kind, Step, macs_of
from cnnviz.occlusion.engines.winograd import WinogradConv2d

# Per CPU thread: dense convolution in float32, and copying through the caches.
_CPU_MACS = 45e9
_CPU_BYTES = 16e9
_CPU_CALL = 25e-6
# A GPU, whose batches are limited by memory and whose calls take about as long to launch.
_GPU_MACS = 20e12
_GPU_BYTES = 2e12
_GPU_CALL = 15e-6
# What it takes besides to find out where windows are cut and pasted.
_CUT = 150e-6
_FOUND = 10e-9  # each position that is cut
_CUTTING = (Kind.SLIDE, Kind.JOIN, Kind.CONCAT)
# What minimal filtering leaves of the multiplications, and how much larger its weights are.
_FILTERED_MACS = 0.65
_FILTERED_WEIGHTS = 4.0
# oneDNN compiles a kernel for each shape it meets and keeps the last 1,024 (its documentation,
# "Primitive Cache"), other steps included; groups with more than half of that compile theirs again
# and again.
_KEPT_KERNELS = 512
_COMPILED = 0.2e-3


class Costs:
    """The counted costs of a network's steps.

    Attributes:
        weight: node to seconds per position of its windows, for maps.
        rest: seconds per image for what is no map.
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
        """Seconds that these steps cost whatever the number of positions; whole maps by default."""
        seconds = 0.0
        for step in steps:
            seconds += self._call + self._weight_bytes(step) / self._weights_per_second
            whole = sizes is None or sizes.get(step.node) == self._extents.get(step.node)
            if step.kind in _CUTTING and not whole:
                seconds += _CUT
        return seconds

    def _weight_bytes(self, step: Step) -> float:
        """Read once per batch, however small it is; minimal filtering has more of them."""
        module = self._module(step)
        if module is None:
            return 0.0
        more = _FILTERED_WEIGHTS if isinstance(module, WinogradConv2d) else 1.0
        return more * self._item * sum(p.numel() for p in module.parameters())

    def _seconds(self, step: Step) -> float:
        """Per output position of a map; in all where there is none."""
        macs = macs_of(step, self._graph)
        if isinstance(self._module(step), WinogradConv2d):
            macs *= _FILTERED_MACS
        return macs / self.macs_per_second + self._bytes(step) / self.bytes_per_second

    def _bytes(self, step: Step) -> float:
        """Read and written per output position."""
        if step.free:
            return 0.0
        height, width = self._extents.get(step.node, (1, 1))
        values = self._values[step.node]
        for node in step.info.inputs:
            values += self._values[node] / (1 if node in self._extents else height * width)
        return self._item * values

    def _cutting(self, step: Step) -> float:
        """What cutting the windows takes besides, per output position: its inputs copied."""
        if step.kind not in _CUTTING:
            return 0.0
        values = sum(self._values[node] for node in step.info.inputs if node in self._extents)
        copied = 2 * self._item * values / self.bytes_per_second + _FOUND
        window = step.info.geometry
        read = window.stride[0] * window.stride[1] if isinstance(window, Window) else 1
        return read * copied

    def image(self) -> float:
        """Predicted seconds of the whole network per image, without what a batch costs."""
        return self.rest + sum(
            weight * self._extents[node][0] * self._extents[node][1]
            for node, weight in self._whole.items()
        )

    def _baseline(self) -> float:
        """Predicted seconds of the unchanged image's way through the network, maps cached."""
        seconds = self.image() + self._overhead(self._steps)
        for step in self._steps:
            if step.cached and step.node in self._extents:
                height, width = self._extents[step.node]
                values = self._values[step.node] * height * width
                seconds += self._call + 2 * self._item * values / self.bytes_per_second
        return seconds

    def full(self, positions: int, batch_size: int) -> float:
        """Predicted seconds of the full engine, the unchanged image included."""
        batches = 1 + -(-positions // batch_size)
        return (1 + positions) * self.image() + batches * self._overhead(self._steps)

    def compiling(self, groups: int) -> float:
        """Predicted seconds for kernels that are not cached from one image to the next."""
        kernels = groups * self._kernels
        return kernels * _COMPILED if kernels > _KEPT_KERNELS else 0.0

    def calls(self, schedule: Schedule, sizes: Sizes, positions: int) -> float:
        """Predicted seconds that so many positions cost besides arithmetic and bytes."""
        return sum(
            -(-positions // segment.size) * self._overhead(segment.steps, sizes)
            for segment in schedule.segments
        )

    def incremental(self, groups: Iterable[tuple[int, Sizes, Schedule]]) -> float:
        """Predicted seconds of the incremental engine, the unchanged image included.

        Args:
            groups: of each its number of positions, the sizes of its windows, and its schedule.
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
