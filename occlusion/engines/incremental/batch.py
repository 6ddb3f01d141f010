"""Runs one batch of masks through the network, computing only what they change.

Every intermediate value is a batch of windows on a map (`Box`), in the layout that the network uses
there; a window that is the whole map is an ordinary batch of maps. A value of None is a map that no
mask of the batch changes.
Shapes: N positions of the batch, C channels, H W of a map, h w of a window.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from cnnviz.core.device import send
from cnnviz.core.graph.geometry import Fixed, Window
from cnnviz.core.graph.trace import Graph
from cnnviz.occlusion.engines.incremental.schedule import Segment
from cnnviz.occlusion.engines.incremental.steps import Baseline, Kind, Sliding, Step
from cnnviz.occlusion.engines.incremental.windows import (
    Box,
    CachedMap,
    ReadWindow,
    cut_and_paste,
    cut_mapped,
    from_rows,
    paste_whole,
    to_rows,
)
from cnnviz.occlusion.engines.network import channel_sums


class Batch:
    """A batch of masks while it runs through the steps."""

    def __init__(
        self,
        graph: Graph,
        baseline: Baseline,
        boxes: Mapping[fx.Node, Box],
        count: int,
    ) -> None:
        """Starts `count` masks with windows at `boxes`, one `Box` for every map of the network."""
        self._graph, self._baseline = graph, baseline
        self._boxes, self._count = boxes, count
        self._env: dict[fx.Node, Any] = {}
        self._sums: Tensor | None = None

    def run(
        self,
        segments: list[Segment],
        layer: fx.Node | None,
        source_NhwC: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns float32 logits (N, K) and, with a layer, the sums (N, C) of its maps."""
        self._env[self._graph.source] = source_NhwC.permute(0, 3, 1, 2)
        for segment in segments:
            count = -(-self._count // segment.size)
            if count == 1:
                self._advance(segment.steps, layer)
                continue
            parts = []
            for numbers in np.array_split(np.arange(self._count), count):
                part = self._part(slice(int(numbers[0]), int(numbers[-1]) + 1))
                part._advance(segment.steps, layer)
                parts.append(part)
            self._gather(parts)
        logits = self._whole(self._graph.output)
        return logits.float(), self._sums

    def _advance(self, steps: list[Step], layer: fx.Node | None) -> None:
        for step in steps:
            if step.kind is not Kind.SOURCE:
                self._env[step.node] = self._value(step)
            if step.node is layer:
                self._sums = self._sum(step)
            for dead in step.done:
                self._env.pop(dead, None)

    def _part(self, positions: slice) -> "Batch":
        """The current state of some positions; only where all values can be split."""
        boxes = {box: box.part(positions) for box in set(self._boxes.values())}
        part = Batch(
            self._graph,
            self._baseline,
            {node: boxes[box] for node, box in self._boxes.items()},
            positions.stop - positions.start,
        )
        for node, value in self._env.items():
            shared = value is None or self._constant(node)
            part._env[node] = value if shared else value[positions]
        return part

    def _gather(self, parts: list["Batch"]) -> None:
        """Joins the current states of the parts."""
        self._env = {
            node: value
            if value is None or self._constant(node)
            else torch.cat([part._env[node] for part in parts])
            for node, value in parts[0]._env.items()
        }
        sums = [part._sums for part in parts if part._sums is not None]
        if sums:
            self._sums = torch.cat(sums)

    def _constant(self, node: fx.Node) -> bool:
        return isinstance(self._graph.info[node].geometry, Fixed)

    def _value(self, step: Step) -> Any:  # noqa: PLR0911
        if step.kind is Kind.FIXED:
            return self._fixed(step)
        box = self._boxes.get(step.node)
        if box is not None and box.empty:
            return None
        if step.kind is Kind.MEAN:
            return self._mean(step)
        if step.kind is Kind.MIX or box is None or (box.whole and step.kind is not Kind.CONCAT):
            return self._mix(step)
        if step.kind is Kind.LOCAL:
            return self._local(step, box)
        if step.kind is Kind.RESHAPE:
            return self._reshape(step, box)
        if step.kind is Kind.CONCAT:
            return self._concatenate(step, box)
        if step.kind is Kind.SLIDE:
            return self._slide(step, box)
        return self._join(step, box)

    def _fixed(self, step: Step) -> Any:
        """Arithmetic on shapes, evaluated with maps of full size instead of windows."""

        def value(node: fx.Node) -> Any:
            info = self._graph.info[node]
            if info.axes is None or info.shape is None:
                return self._env[node]
            like = self._env.get(node)
            blank = torch.empty(1, dtype=getattr(like, "dtype", self._dtype), device=self._device)
            return blank.expand(self._count, *info.shape[1:])

        args, kwargs = fx.node.map_arg((step.node.args, dict(step.node.kwargs)), value)
        return step.call(*args, **kwargs)

    @property
    def _dtype(self) -> torch.dtype:
        return next(iter(self._baseline.maps.values())).table.dtype

    @property
    def _device(self) -> torch.device:
        return self._baseline.logits_1K.device

    def _rows(self, node: fx.Node) -> Tensor | None:
        value, axes = self._env[node], self._graph.info[node].axes
        return None if value is None or axes is None else to_rows(value, axes)

    def _whole(self, node: fx.Node) -> Any:
        """The node's value as whole maps."""
        box, value = self._boxes.get(node), self._env[node]
        if box is None or (box.whole and value is not None):
            return value
        cached = self._baseline.maps[node]
        rows = self._rows(node)
        if rows is None:
            return cached.whole(self._count)
        return from_rows(paste_whole(cached, box, rows), cached.axes, cached.shape)

    def _mix(self, step: Step) -> Any:
        values = {
            node: self._whole(node) if node in step.info.inputs else self._env[node]
            for node in step.node.all_input_nodes
        }
        return step.run(values.__getitem__)

    def _mean(self, step: Step) -> Tensor:
        """A mean over all positions: it changes by the change of the sum over the window."""
        source = step.info.inputs[0]
        box, value = self._boxes[source], self._env[source]
        if box.whole and value is not None:
            return self._mix(step)  # type: ignore[no-any-return]
        base = self._baseline.means[step.node]
        rows = self._rows(source)
        if rows is None:
            return base.expand(self._count, *base.shape[1:])
        cached = self._baseline.maps[source]
        change = (_sums(rows) - cached.box_sums(box)) / (box.extent[0] * box.extent[1])
        return base + change.to(base.dtype).view(self._count, *base.shape[1:])

    def _local(self, step: Step, box: Box) -> Any:
        """Runs the operation on windows; adaptive pools, which would resize them, use `sliding`."""
        if step.sliding is None:
            return step.run(self._env.__getitem__)
        windows = self._env[step.info.inputs[0]]
        out = step.sliding.compute(windows, box)
        return out.clone() if out is windows else out

    def _reshape(self, step: Step, box: Box) -> Tensor:
        info = step.info
        assert info.shape is not None and info.axes is not None  # noqa: S101, PT018
        shape = [self._count, *info.shape[1:]]
        shape[info.axes[0]], shape[info.axes[1]] = box.height, box.width
        value: Tensor = self._env[info.inputs[0]]
        return value.reshape(shape)

    def _slide(self, step: Step, box: Box) -> Tensor:
        operation, source = step.sliding, step.info.inputs[0]
        assert operation is not None  # noqa: S101
        read = _reading(operation.window, box)
        cached, below = self._baseline.maps[source], self._boxes[source]
        rows = self._rows(source)
        if operation.window.padding_mode != "zeros":
            cut = cut_mapped(cached, read, operation.window.padding_mode, below, rows)
        else:
            cut = cut_and_paste(cached, read, below, rows, lowest=operation.lowest)
        if operation.fill:
            _fill_outside(cut, read, cached.extent, operation)
        out = operation.compute(cut.permute(0, 3, 1, 2), box)
        return (
            out
            if cached.axes == (2, 3)
            else from_rows(to_rows(out, (2, 3)), cached.axes, cached.shape)
        )

    def _aligned(self, node: fx.Node, box: Box) -> Any:
        """A map's windows at exactly `box`."""
        below = self._boxes.get(node)
        if below is None:
            return self._fixed_map(node, box)
        if below.same(box) and self._env[node] is not None:
            return self._env[node]
        cached = self._baseline.maps[node]
        rows = cut_and_paste(cached, ReadWindow.at(box), below, self._rows(node))
        return from_rows(rows, cached.axes, cached.shape)

    def _fixed_map(self, node: fx.Node, box: Box) -> Any:
        """A number, a constant per channel, or a parameter that is a map."""
        value = self._env[node]
        if not isinstance(value, Tensor) or tuple(value.shape[-2:]) != box.extent:
            return value
        full = value.view(*(1,) * (4 - value.dim()), *value.shape)
        cached = CachedMap(full, (2, 3))
        rows = cut_and_paste(cached, ReadWindow.at(box), box, None)
        return from_rows(rows, (2, 3), cached.shape)

    def _join(self, step: Step, box: Box) -> Any:
        values = {node: self._aligned(node, box) for node in step.node.all_input_nodes}
        return step.run(values.__getitem__)

    def _concatenate(self, step: Step, box: Box) -> Any:
        inputs = step.node.all_input_nodes
        boxes = [self._boxes.get(m) for m in inputs]
        if all(
            b and b.same(box) and self._env[m] is not None
            for m, b in zip(inputs, boxes, strict=True)
        ):
            return step.run(self._env.__getitem__)
        cached = self._baseline.maps[step.node]
        read = ReadWindow.at(box)
        joined = cut_and_paste(cached, read, box, None)
        first = 0
        parts = step.node.args[0] if step.node.args else step.node.kwargs["tensors"]
        assert isinstance(parts, list | tuple)  # noqa: S101
        for node in parts:
            assert isinstance(node, fx.Node)  # noqa: S101
            last = first + _channels(self._graph, node, cached.axes)
            rows = self._rows(node)
            if rows is not None and node in self._boxes:
                for target, source in read.pastes(self._boxes[node]):
                    joined[(*target, slice(first, last))] = rows[source]
            first = last
        return from_rows(joined, cached.axes, cached.shape)

    def _sum(self, step: Step) -> Tensor:
        """The sums of the layer's maps, per position (N, C)."""
        node, box = step.node, self._boxes.get(step.node)
        value, base = self._env[node], self._baseline.sums_1C
        assert base is not None  # noqa: S101 (there is a layer)
        if value is None:
            return base.expand(self._count, -1)
        if box is None or box.whole:
            return channel_sums(value, step.info.axes)
        rows = self._rows(node)
        assert rows is not None  # noqa: S101 (it has a box)
        changed = _sums(rows) - self._baseline.maps[node].box_sums(box)
        return base + changed.float()


def _sums(rows_NhwC: Tensor) -> Tensor:
    """Sum over each window, (N, C), in float32 or better: windows are small enough for float32."""
    return rows_NhwC.sum((1, 2), dtype=torch.promote_types(rows_NhwC.dtype, torch.float32))


def _reading(window: Window, box: Box) -> ReadWindow:
    """The input positions that output windows at `box` read, including padding."""
    return box.once(window, lambda: _read_window(window, box))


def _read_window(window: Window, box: Box) -> ReadWindow:
    firsts, counts, steps = [], [], []
    for axis, (start, size) in enumerate(((box.top_N, box.height), (box.left_N, box.width))):
        stride, kernel = window.stride[axis], window.kernel[axis]
        firsts.append(start * stride - window.padding[axis][0])
        steps.append(stride if kernel == 1 else 1)
        far = (kernel - 1) * window.dilation[axis]
        counts.append(size if kernel == 1 else (size - 1) * stride + far + 1)
    return ReadWindow((firsts[0], firsts[1]), (counts[0], counts[1]), (steps[0], steps[1]))


def _fill_outside(
    cut_NhwC: Tensor, read: ReadWindow, extent: tuple[int, int], operation: Sliding
) -> None:
    """Writes the padding value where the cut is outside the map."""

    def outside() -> Any:
        rows, columns = read.numbers(0), read.numbers(1)
        above = ((rows < 0) | (rows >= extent[0]))[:, :, None, None]
        return above | ((columns < 0) | (columns >= extent[1]))[:, None, :, None]

    cut_NhwC.masked_fill_(read.table(("outside", extent), cut_NhwC.device, outside), operation.fill)


def _channels(graph: Graph, node: fx.Node, axes: tuple[int, int]) -> int:
    shape = graph.info[node].shape
    assert shape is not None  # noqa: S101
    return int(np.prod([size for axis, size in enumerate(shape) if axis not in (0, *axes)]))


def source_windows(
    image_3HW: Tensor, fill_3HW: Tensor, box: Box, boxes_N4: np.ndarray[Any, Any]
) -> Tensor:
    """Cuts the occluded image at each window: the fill inside the mask, else the image; NhwC."""
    both = torch.cat([image_3HW.flatten(1).T, fill_3HW.flatten(1).T])

    def tables(axis: int) -> tuple[Tensor, Tensor]:
        """Of each row (column) of a window: its place in the image, and whether it is masked."""
        start, size = ((box.top_N, box.height), (box.left_N, box.width))[axis]
        numbers = start[:, None] + np.arange(size)
        low, high = boxes_N4[:, axis, None], boxes_N4[:, axis + 2, None]
        places = numbers * (box.extent[1], 1)[axis]
        masked = (numbers >= low) & (numbers < high)
        device = both.device
        return send(torch.from_numpy(places), device), send(torch.from_numpy(masked), device)

    rows, masked_rows = box.once("source rows", lambda: tables(0))
    columns, masked_columns = box.once("source columns", lambda: tables(1))
    covered = masked_rows[:, :, None] & masked_columns[:, None, :]
    index = rows[:, :, None] + columns[:, None, :] + covered * (len(both) // 2)
    return both.index_select(0, index.view(-1)).view(*index.shape, -1)
