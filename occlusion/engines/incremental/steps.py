"""A traced network as a list of steps that can run on windows as well as on whole maps.

Each operation of the network's program becomes a `Step`, which also knows how it treats positions.
A step that slides (convolution, pooling, padding, strided slicing) has a function from cut input
(N, C, h, w) to output windows: the windows are cut with everything that they need, so no padding is
left to do, and along an axis where the kernel is 1 the cut already takes every s-th position only.
`run_baseline` runs all steps on the original image and keeps the maps that windows are cut from.
Shapes: N windows, C channels, K classes, H W rows and columns of a map, h w of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from cnnviz.core.device import send
from cnnviz.core.graph.geometry import Fixed, Image, Merge, Mix, Pointwise, Window
from cnnviz.core.graph.program import (
    FREE,
    RESHAPES,
    Call,
    Operation,
    Program,
    name_of,
    run_operations,
)
from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import MACS, Graph, NodeInfo, Untraceable
from cnnviz.occlusion.engines.incremental.windows import Box, CachedMap
from cnnviz.occlusion.engines.network import channel_sums
from cnnviz.occlusion.engines.winograd import WinogradConv2d


class Kind(Enum):
    """How a step treats positions."""

    SOURCE = auto()
    FIXED = auto()
    LOCAL = auto()
    RESHAPE = auto()
    JOIN = auto()
    CONCAT = auto()
    SLIDE = auto()
    MEAN = auto()
    MIX = auto()


@dataclass(frozen=True, eq=False)
class Sliding:
    """A sliding operation on cut windows."""

    window: Window
    # cut input (N, C, h, w) and output box to the output windows
    compute: Callable[[Tensor, Box], Tensor]
    lowest: bool = False  # padding is minus infinity (max pooling)
    fill: float = 0.0  # the value of padding otherwise
    macs: float = 0.0  # multiply-accumulates per output position

    @property
    def local(self) -> bool:
        """Each output position reads the same input position and no other."""
        window = self.window
        return (window.kernel, window.stride, window.padding) == ((1, 1), (1, 1), ((0, 0), (0, 0)))


@dataclass(eq=False)
class Step(Operation):
    """An operation that can run on windows."""

    info: NodeInfo
    kind: Kind  # how it treats positions
    free: bool  # it returns a view of its input
    sliding: Sliding | None = None  # the operation on cut windows, for those that slide
    cached: bool = False  # the original image's map is needed later, to cut windows from it


def compile_steps(graph: Graph, layer: str | None = None) -> list[Step]:
    """Returns the steps of a described network, in order.

    Raises:
        Untraceable: it splits maps in a way that windows do not support.
    """
    program = Program(graph.module, reuse=True)
    steps = {node: _step(graph, program, node) for node in graph.info}
    for step in steps.values():
        for needed in _needed(graph, step):
            steps[needed].cached = True
    if layer is not None:
        steps[graph.layers[layer]].cached = True
    for step in steps.values():
        if step.cached and step.info.shape is None:
            raise Untraceable(f"'{step.node.name}' splits a map in a way that is not supported")
    return list(steps.values())


def _step(graph: Graph, program: Program, node: fx.Node) -> Step:
    operation, info = program.operations[node], graph.info[node]
    name = name_of(graph.module, node)
    step = Step(**vars(operation), info=info, kind=_kind(name, info), free=name in FREE)
    if step.kind is Kind.SLIDE:
        step.sliding = _sliding(graph, program, step)
        if step.sliding.local:
            step.kind = Kind.LOCAL
    return step


def _kind(name: str, info: NodeInfo) -> Kind:  # noqa: PLR0911
    match info.geometry:
        case Image():
            return Kind.SOURCE
        case Fixed():
            return Kind.FIXED
        case Pointwise():
            return Kind.RESHAPE if name in RESHAPES else Kind.LOCAL
        case Merge():
            flat = info.shape is not None and len(info.shape) == 4
            return (
                Kind.CONCAT if name.startswith("concat") or (name == "cat" and flat) else Kind.JOIN
            )
        case Window(transposed=False):
            return Kind.SLIDE
        case Mix(mean=True):
            return Kind.MEAN if len(info.inputs) == 1 else Kind.MIX
        case _:
            return Kind.MIX


def _sliding(graph: Graph, program: Program, step: Step) -> Sliding:
    def constant(node: fx.Node) -> Any:
        operation = program.operations[node]
        return operation.call() if operation.constant else None

    node, info = step.node, step.info
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), constant)
    module = graph.module.get_submodule(info.layer) if info.layer is not None else None
    sizes = extents(graph)
    assert isinstance(info.geometry, Window)  # noqa: S101
    call = Call(node, module, args, kwargs, None, {})
    return _sliding_of(call, info.geometry, (sizes[info.inputs[0]], sizes[node]))


def _needed(graph: Graph, step: Step) -> list[fx.Node]:
    """Nodes from whose original maps this step may cut."""
    if step.kind is Kind.CONCAT:
        return [step.node]
    if step.kind in (Kind.JOIN, Kind.SLIDE, Kind.MEAN, Kind.MIX):
        return [m for m in step.info.inputs if graph.info[m].axes is not None]
    return []


def macs_of(step: Step, graph: Graph) -> float:
    """Multiply-accumulates per output position of a step's map (in total if it is not a map)."""
    if step.sliding is not None:
        return step.sliding.macs
    if MACS in step.node.meta:
        return float(step.node.meta[MACS])
    module = graph.module.get_submodule(step.info.layer) if step.info.layer else None
    shapes = [graph.info[node].shape for node in (*step.info.inputs, step.node)]
    if isinstance(module, nn.MultiheadAttention) and shapes[0] is not None:
        weights = sum(p.numel() for p in module.parameters() if isinstance(p, Tensor))
        return float(weights * shapes[0][1])
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return 0.0
    tokens = 1.0
    if isinstance(module, nn.Linear) and step.info.axes is None and shapes[-1] is not None:
        tokens = torch.Size(shapes[-1]).numel() / module.out_features
    return tokens * module.weight.numel()


def _sliding_of(
    call: Call, window: Window, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> Sliding:
    """The operation of a call whose geometry is a (not transposed) window.

    Only its fixed arguments are evaluated; `sizes` are (H, W) of its input and of its output.
    """
    left = (
        1 if window.kernel[0] == 1 else window.stride[0],
        1 if window.kernel[1] == 1 else window.stride[1],
    )
    module, name = call.module, call.name
    if isinstance(module, WinogradConv2d) and window.padding_mode == "zeros":
        macs = float(module.weight.numel())
        return Sliding(window, lambda cut, _box: module.valid(cut), macs=macs)
    if isinstance(module, nn.Conv2d):
        numbers = (module.weight, module.bias, module.groups)
        return _convolution(window, left, *numbers)
    if name == "conv2d":
        numbers = (call.get(1, "weight"), call.get(2, "bias"), call.get(6, "groups", 1))
        return _convolution(window, left, *numbers)
    if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) or "max_pool2d" in name:
        return Sliding(window, _max_pool(window, left), lowest=True)
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) or "avg_pool2d" in name:
        return Sliding(window, _average_pool(call, window, left, sizes))
    fill = getattr(module, "value", 0.0) if module is not None else call.get(3, "value", 0.0)
    return Sliding(
        window, lambda cut, _box: cut, fill=float(fill or 0.0) if name != "getitem" else 0
    )


def _convolution(
    window: Window, stride: tuple[int, int], weight: Tensor, bias: Tensor | None, groups: int
) -> Sliding:
    laid_out = weight.contiguous(memory_format=torch.channels_last)

    def compute(cut: Tensor, _box: Box) -> Tensor:
        return F.conv2d(cut, laid_out, bias, stride, 0, window.dilation, groups)

    return Sliding(window, compute, macs=float(weight.numel()))


def _max_pool(window: Window, stride: tuple[int, int]) -> Callable[[Tensor, Box], Tensor]:
    return lambda cut, _box: F.max_pool2d(cut, window.kernel, stride, 0, window.dilation)


def _average_pool(
    call: Call, window: Window, stride: tuple[int, int], sizes: tuple[Any, Any]
) -> Callable[[Tensor, Box], Tensor]:
    """Sums over the window, divided by the number of positions that torch counts there."""
    module = call.module
    if isinstance(module, nn.AdaptiveAvgPool2d) or call.name == "adaptive_avg_pool2d":
        include, fixed = True, None
    elif isinstance(module, nn.AvgPool2d):
        include, fixed = module.count_include_pad, module.divisor_override
    else:
        include = call.get(5, "count_include_pad", True)
        fixed = call.get(6, "divisor_override")
    counts = [_counted(window, axis, sizes[0][axis], sizes[1][axis], include) for axis in (0, 1)]
    uniform = all(int(c.min()) == int(c.max()) == window.kernel[a] for a, c in enumerate(counts))
    if fixed is not None or uniform:
        return lambda cut, _box: F.avg_pool2d(cut, window.kernel, stride, divisor_override=fixed)

    def compute(cut: Tensor, box: Box) -> Tensor:
        sums = F.avg_pool2d(cut, window.kernel, stride, divisor_override=1)

        def divisor() -> Tensor:
            rows = counts[0][torch.from_numpy(box.top_N)[:, None] + torch.arange(box.height)]
            columns = counts[1][torch.from_numpy(box.left_N)[:, None] + torch.arange(box.width)]
            product = rows[:, None, :, None] * columns[:, None, None, :]
            return send(product.to(sums.dtype), sums.device)

        return sums.div_(box.once(compute, divisor))

    return compute


def _counted(window: Window, axis: int, size_in: int, size_out: int, include: bool) -> Tensor:
    """Number of rows (columns) that torch counts for each output row (column)."""
    before, after = window.padding[axis]
    start = torch.arange(size_out) * window.stride[axis] - before
    end = (start + window.kernel[axis]).clamp(max=size_in + after)
    if include:
        return end - start
    return end.clamp(max=size_in) - start.clamp(min=0)


@dataclass(frozen=True, eq=False)
class Baseline:
    """The original image's run through the network."""

    maps: dict[fx.Node, CachedMap]  # the maps that windows are cut from
    means: dict[fx.Node, Tensor]  # values of global averages
    logits_1K: Tensor  # float32
    sums_1C: Tensor | None  # the layer's channel sums, with a layer


def run_baseline(
    steps: list[Step], output: fx.Node, layer: fx.Node | None, image_13HW: Tensor
) -> Baseline:
    """Runs every step on the original image and caches the maps that masks will need."""
    by_node = {step.node: step for step in steps}
    maps: dict[fx.Node, CachedMap] = {}
    means: dict[fx.Node, Tensor] = {}
    sums: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        step = by_node[node]
        if step.cached and step.info.axes is not None:
            maps[node] = CachedMap(value, step.info.axes)
        if step.kind is Kind.MEAN:
            means[node] = value.clone()
        if node is layer:
            sums[node] = channel_sums(value, step.info.axes)

    logits: Tensor = run_operations(steps, image_13HW, keep)[output]
    return Baseline(maps, means, logits.float(), sums.get(layer) if layer is not None else None)
