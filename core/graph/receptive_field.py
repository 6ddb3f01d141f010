"""The receptive field of every layer: size, jump and start, and the pixels that each unit reads.

Both axes are computed separately, forwards through the traced network, in two ways:

- **unclipped**, as if maps had no borders: with kernel k, dilation d, stride s and padding p, size
  grows by (k - 1) d jump, start moves by -p jump, and jump is multiplied by s (Araujo et al. 2019,
  "Computing Receptive Fields of Convolutional Neural Networks");
- **clipped**, a table with the first and last pixel that each unit reads. Padding is not a pixel,
  in any layer. Boxes that are shown to users come from this table.

Where branches meet, a unit sees the union (as an interval). After an operation that mixes all
positions (global pooling, squeeze-and-excitation gates, group norm, attention, flattening, and
everything that `core.graph` does not recognise) size is infinite and the table holds all that its
inputs see.

Pairs are (vertical, horizontal). Shapes: U units, T taps of a window, I input positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from cnnviz.core.graph.geometry import Fixed, Image, Merge, Pointwise, Window, copied_from
from cnnviz.core.graph.trace import Graph, NodeInfo, describe, trace

FloatPair = tuple[float, float]
Index = NDArray[np.int64]
NOTHING = np.iinfo(np.int64).max
"""`first` of a unit that reads only padding; its `last` is -1."""
# Size of the other axis in resampling trials: large enough to survive downscaling.
_OTHER_AXIS = 32
_RESAMPLERS = (nn.Upsample, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_RESAMPLING_FUNCTIONS: dict[object, str] = {
    functional.interpolate: "size",
    functional.adaptive_avg_pool2d: "output_size",
    functional.adaptive_max_pool2d: "output_size",
}


@dataclass(frozen=True, eq=False)
class AxisField:
    """What the units of a layer see along one axis."""

    # pixels that a unit sees, padding counted as pixels; inf after global operations. Where units
    # differ (uneven adaptive pooling, upsampling), the largest
    size: float
    jump: float  # pixels between the fields of neighbouring units; inf if there is only one unit
    start: float  # first pixel of unit 0, negative where it is padding; -inf if size is inf
    first: Index  # (U,) the first pixel that each unit reads; NOTHING if it reads none
    last: Index  # (U,) the last one, included; -1 if it reads none


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What the units of one layer see of the image.

    Attributes:
        rows: along the vertical axis.
        columns: along the horizontal axis.
        input_size: rows and columns of the image that it was computed for.
    """

    rows: AxisField
    columns: AxisField
    input_size: tuple[int, int]

    @property
    def size(self) -> FloatPair:
        """Pixels seen by one unit, padding included; inf after global operations."""
        return self.rows.size, self.columns.size

    @property
    def jump(self) -> FloatPair:
        """Pixels between the fields of neighbouring units."""
        return self.rows.jump, self.columns.jump

    @property
    def start(self) -> FloatPair:
        """First pixel of unit (0, 0), negative where padding extends beyond the image."""
        return self.rows.start, self.columns.start

    @property
    def units(self) -> tuple[int, int]:
        """Rows and columns of the layer's map; (1, 1) where it has no such axes."""
        return len(self.rows.first), len(self.columns.first)

    @property
    def is_global(self) -> bool:
        """Whether a unit sees the whole image, regardless of its size."""
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
        """Returns the pixels that unit (row, col) sees, as y0, x0, y1, x1 with the ends excluded.

        Args:
            row: row of the unit in the layer's map.
            col: column of the unit in the layer's map.
            clipped_to: the image's size; the box then holds only pixels that are read, as whole
                numbers (y1 = y0 if there are none). Without it the box may exceed the image.

        Raises:
            ValueError: there is no such unit, or the field was computed for another size.
        """
        if self.is_global and self.units == (1, 1):
            row = col = 0  # all units of a global field see the same
        if not (0 <= row < self.units[0] and 0 <= col < self.units[1]):
            raise ValueError(f"no unit ({row}, {col}) in a map of {self.units[0]}x{self.units[1]}")
        if clipped_to is not None and tuple(clipped_to) != self.input_size:
            raise ValueError(f"the field is for {self.input_size} images, not {clipped_to}")
        interval = _unclipped if clipped_to is None else _clipped
        y0, y1 = interval(self.rows, row)
        x0, x1 = interval(self.columns, col)
        return y0, x0, y1, x1


def _unclipped(axis: AxisField, unit: int) -> FloatPair:
    if math.isinf(axis.size):
        return -math.inf, math.inf
    begin = axis.start + (unit * axis.jump if unit else 0)
    return begin, begin + axis.size


def _clipped(axis: AxisField, unit: int) -> tuple[int, int]:
    first, last = int(axis.first[unit]), int(axis.last[unit])
    return (0, 0) if last < 0 else (first, last + 1)


def receptive_fields(
    module: nn.Module, input_size: tuple[int, int], *, channels: int = 3
) -> dict[str, ReceptiveField]:
    """Computes the receptive field of every layer that runs, by dotted name, leaf or not.

    A layer that runs more than once has the field of its last run.

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
    """Computes the receptive field of every node that depends on the image."""
    shape = graph.info[graph.source].shape
    assert shape is not None  # noqa: S101 (the image is a tensor)
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


def _field(
    graph: Graph, node: fx.Node, info: NodeInfo, axis: int, inputs: list[AxisField]
) -> AxisField:
    """Computes one axis of one node from the nodes that it reads."""
    geometry = info.geometry
    count = info.shape[info.axes[axis]] if info.shape and info.axes else None
    if isinstance(geometry, Image):
        each = np.arange(count or 0, dtype=np.int64)
        return AxisField(1, 1, 0, each, each)
    if isinstance(geometry, Pointwise | Merge):
        return _union(inputs)
    if isinstance(geometry, Window) and count is not None:
        return _through_window(inputs[0], geometry, axis, count)
    resample = _resampler(graph, node, info)
    if resample is not None and count is not None:
        return _through_resampling(inputs[0], resample, axis)
    return _everything(inputs, count)


def _union(inputs: Sequence[AxisField]) -> AxisField:
    """The hull of what several maps of one size see."""
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


def _everything(inputs: Sequence[AxisField], count: int | None) -> AxisField:
    """All that the inputs see, for each of `count` units."""
    count = count or 1
    first = min(int(field.first.min()) for field in inputs)
    last = max(int(field.last.max()) for field in inputs)
    kept = [field for field in inputs if len(field.first) == count > 1]
    jump = _shared_jump(kept)
    return AxisField(math.inf, jump, -math.inf, np.full(count, first), np.full(count, last))


def _through_window(field: AxisField, window: Window, axis: int, count: int) -> AxisField:
    """What `count` units see through a sliding window, plain or transposed."""
    kernel, stride, dilation = window.kernel[axis], window.stride[axis], window.dilation[axis]
    before = window.padding[axis][0]
    units_U1, taps_T = np.arange(count)[:, None], np.arange(kernel) * dilation
    if not window.transposed:
        padded_UT = units_U1 * stride - before + taps_T
        reads_UT = copied_from(padded_UT, len(field.first), window.padding_mode)
        first, last = _hull(field, reads_UT)
        size = field.size + _pixels((kernel - 1) * dilation, field)
        start = field.start - _pixels(before, field)
        return AxisField(size, field.jump * stride, start, first, last)
    over_UT = units_U1 + before - taps_T
    sources_UT = np.where(over_UT % stride == 0, over_UT // stride, -1)
    first, last = _hull(field, sources_UT)
    # Which taps meet an input repeats every `stride` units, so the first few show all cases.
    offsets_UT = np.arange(stride)[:, None] + before - taps_T
    cases = [row[row % stride == 0] // stride for row in offsets_UT]
    spread = max((int(case.max() - case.min()) for case in cases if case.size), default=0)
    begin = int(cases[0].min()) if cases[0].size else 0
    size, start = field.size + _pixels(spread, field), field.start + _pixels(begin, field)
    return AxisField(size, field.jump / stride, start, first, last)


def _pixels(units: int, field: AxisField) -> float:
    """Distance in pixels spanned by `units`; 0 for 0 units, even if the jump is infinite."""
    return units * field.jump if units else 0.0


def _hull(field: AxisField, reads_UT: Index) -> tuple[Index, Index]:
    """First and last pixel that each unit reads; positions outside the map are padding."""
    count = len(field.first)
    inside_UT = (reads_UT >= 0) & (reads_UT < count)
    safe_UT = np.where(inside_UT, reads_UT, 0)
    first = np.where(inside_UT, field.first[safe_UT], NOTHING).min(axis=1)
    last = np.where(inside_UT, field.last[safe_UT], -1).max(axis=1)
    return first, last


def _resampler(graph: Graph, node: fx.Node, info: NodeInfo) -> Callable[[Tensor], Tensor] | None:
    """Returns upsampling and uneven adaptive pooling as functions of a map; else None."""
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


def _through_resampling(
    field: AxisField, resample: Callable[[Tensor], Tensor], axis: int
) -> AxisField:
    """Finds which inputs each output reads by resampling one impulse at a time."""
    count = len(field.first)
    impulses = torch.eye(count).unsqueeze(1).unsqueeze(3 - axis)
    impulses = impulses.repeat_interleave(_OTHER_AXIS, 3 - axis)
    responses = resample(impulses)[:, 0].movedim(1 + axis, 1).flatten(2).abs().amax(2)
    reads_UI = responses.T.numpy() > 0
    if len(reads_UI) == 1 and reads_UI.all():
        return _everything([field], 1)
    first, last = _hull(field, np.where(reads_UI, np.arange(count), -1))
    spans = list(_spans(reads_UI))
    spread = max((end - begin for begin, end in spans), default=0)
    begin = spans[0][0] if spans else 0
    return AxisField(
        size=field.size + _pixels(spread, field),
        jump=field.jump * count / len(reads_UI),
        start=field.start + _pixels(begin, field),
        first=first,
        last=last,
    )


def _spans(reads_UI: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    for row in reads_UI:
        hits = np.flatnonzero(row)
        if hits.size:
            yield int(hits[0]), int(hits[-1])
