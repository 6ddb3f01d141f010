"""Which pixels a unit can see: size, jump and start of each layer, and the box of every unit.

Each axis is worked out by itself, forwards through the traced network. Two accounts are kept:

- the **unclipped** one, as if maps went on forever: with kernel k, dilation d, stride s and
  padding p, size grows by (k - 1) d jump, start moves by -p jump, and jump is multiplied by s
  (Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks");
- the **clipped** one, a table with the first and last pixel that each unit really reads, where
  padding, in whatever layer, is not a pixel. Boxes that are shown to people come from it.

Where branches meet, a unit sees the union (as an interval). Behind an operation that mixes all
positions (global pooling, squeeze-and-excitation gates, group norm, attention, flattening, and
whatever `core.graph` does not know) size is infinite and the table holds all that its inputs see.

Pairs are (vertical, horizontal).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cnnviz.core.graph.axis_field import (
    AxisField,
    everything,
    pixels,
    through_resampling,
    through_window,
    union,
)
from cnnviz.core.graph.geometry import Fixed, Image, Merge, Pointwise, Window
from cnnviz.core.graph.trace import Graph, NodeInfo, describe, trace

FloatPair = tuple[float, float]
_RESAMPLERS = (nn.Upsample, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_RESAMPLING_FUNCTIONS: dict[object, str] = {
    functional.interpolate: "size",
    functional.adaptive_avg_pool2d: "output_size",
    functional.adaptive_max_pool2d: "output_size",
}


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What the units of one layer see of the image.

    Attributes:
        rows: along the vertical axis.
        columns: along the horizontal axis.
        input_size: rows and columns of the image that it was worked out for.
    """

    rows: AxisField
    columns: AxisField
    input_size: tuple[int, int]

    @property
    def size(self) -> FloatPair:
        """Pixels seen by one unit, padding included; inf behind global operations."""
        return self.rows.size, self.columns.size

    @property
    def jump(self) -> FloatPair:
        """Pixels between the fields of neighbouring units."""
        return self.rows.jump, self.columns.jump

    @property
    def start(self) -> FloatPair:
        """First pixel of unit (0, 0), negative where padding reaches out of the image."""
        return self.rows.start, self.columns.start

    @property
    def units(self) -> tuple[int, int]:
        """Rows and columns of the layer's map; (1, 1) where it has no such axes."""
        return len(self.rows.first), len(self.columns.first)

    @property
    def is_global(self) -> bool:
        """Whether a unit sees everything by nature, on an image of any size."""
        return math.isinf(self.rows.size) or math.isinf(self.columns.size)

    @overload
    def box(
        self, row: int, col: int, clipped_to: None = None
    ) -> tuple[float, float, float, float]: ...
    @overload
    def box(self, row: int, col: int, clipped_to: tuple[int, int]) -> tuple[int, int, int, int]: ...
    def box(
        self, row: int, col: int, clipped_to: tuple[int, int] | None = None
    ) -> tuple[float, float, float, float]:
        """The pixels that unit (row, col) sees, as y0, x0, y1, x1 with the ends excluded.

        Args:
            row: of the layer's map.
            col: likewise.
            clipped_to: the image's size; then the box holds pixels that are really read, as whole
                numbers (y1 = y0 if there are none). Without it the box may reach out of the image.

        Raises:
            ValueError: there is no such unit, or the field was worked out for another size.
        """
        if self.is_global and self.units == (1, 1):
            row = col = 0  # however many units the map has: nothing tells them apart
        if not (0 <= row < self.units[0] and 0 <= col < self.units[1]):
            raise ValueError(f"no unit ({row}, {col}) in a map of {self.units[0]}x{self.units[1]}")
        if clipped_to is not None and tuple(clipped_to) != self.input_size:
            raise ValueError(f"the field is for {self.input_size} images, not {clipped_to}")
        interval = _unclipped if clipped_to is None else _clipped
        y0, y1 = interval(self.rows, row)
        x0, x1 = interval(self.columns, col)
        return y0, x0, y1, x1


def receptive_fields(
    module: nn.Module, input_size: tuple[int, int], *, channels: int = 3
) -> dict[str, ReceptiveField]:
    """The receptive field of every layer that runs, by dotted name, leaf or not.

    A layer that runs more than once has the field of its last run.

    Args:
        module: in evaluation mode; it is left as it is.
        input_size: rows and columns of the image.
        channels: of the image.

    Raises:
        Untraceable: the network cannot be turned into a graph, or does not run at this size.
    """
    parameter = next(module.parameters(), torch.zeros(()))
    graph = describe(
        trace(module), input_size, channels=channels, device=parameter.device, dtype=parameter.dtype
    )
    fields = node_fields(graph)
    return {name: fields[node] for name, node in graph.layers.items() if node in fields}


def node_fields(graph: Graph) -> dict[fx.Node, ReceptiveField]:
    """The receptive field of every node of a described network that depends on the image."""
    shape = graph.info[graph.source].shape
    assert shape is not None  # noqa: S101 (told to mypy: the image is a tensor)
    fields: dict[fx.Node, ReceptiveField] = {}
    for node, info in graph.info.items():
        if isinstance(info.geometry, Fixed):
            continue
        inputs = [fields[source] for source in info.inputs]
        axes = (
            _field(graph, node, info, 0, [field.rows for field in inputs]),
            _field(graph, node, info, 1, [field.columns for field in inputs]),
        )
        fields[node] = ReceptiveField(*axes, input_size=(shape[2], shape[3]))
    return fields


def _unclipped(axis: AxisField, unit: int) -> FloatPair:
    if math.isinf(axis.size):
        return -math.inf, math.inf
    begin = axis.start + (unit * axis.jump if unit else 0)
    return begin, begin + axis.size


def _clipped(axis: AxisField, unit: int) -> tuple[int, int]:
    first, last = int(axis.first[unit]), int(axis.last[unit])
    return (0, 0) if last < 0 else (first, last + 1)


def _field(
    graph: Graph, node: fx.Node, info: NodeInfo, axis: int, inputs: list[AxisField]
) -> AxisField:
    """One axis of one node, from those that it reads."""
    geometry = info.geometry
    count = info.shape[info.axes[axis]] if info.shape and info.axes else None
    if isinstance(geometry, Image):
        return pixels(count or 0)
    if isinstance(geometry, Pointwise | Merge):
        return union(inputs)
    if isinstance(geometry, Window) and count is not None:
        return through_window(inputs[0], geometry, axis, count)
    resample = _resampler(graph, node, info)
    if resample is not None and count is not None:
        return through_resampling(inputs[0], resample, axis)
    return everything(inputs, count)


def _resampler(graph: Graph, node: fx.Node, info: NodeInfo) -> Callable[[Tensor], Tensor] | None:
    """Upsampling and uneven adaptive pooling as functions of a map of any size; else None."""
    if info.layer is not None:
        module = graph.module.get_submodule(info.layer)
        return module if isinstance(module, _RESAMPLERS) else None
    name = _RESAMPLING_FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if name is None or info.shape is None:
        return None
    options = dict(node.kwargs) | dict(
        zip((name, "scale_factor", "mode", "align_corners"), node.args[1:], strict=False)
    )
    if options.get(name) is not None:
        options[name] = info.shape[2:]
    if any(isinstance(value, fx.Node) for value in options.values()):
        return None
    target = node.target
    return lambda x: target(x, **{k: v for k, v in options.items() if k != "input"})  # type: ignore[operator]
