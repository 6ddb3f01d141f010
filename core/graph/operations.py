"""The geometry of torch's operations, module by module and function by function.

`classify` inspects one node of a traced network while it runs, with its actual arguments and
result, and determines how it treats rows and columns. Unknown operations are a `Mix`, which is
always correct but slow. Functions are identified by name, so `torch.relu`, `F.relu`,
`Tensor.relu_` and `aten.relu` are the same operation.

Operations that move, select, pad or reduce axes are local as long as rows and columns remain axes
of the result; their rules determine which ones.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from cnnviz.core.graph.geometry import (
    Geometry,
    Merge,
    Mix,
    Pointwise,
    Window,
    convolution,
    pooling,
    window_of,
)
from cnnviz.core.graph.program import Axes, Call

Verdict = tuple[Geometry, Axes | None]
MIXED: Verdict = (Mix(), None)

_POINTWISE_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink,
    nn.Tanhshrink, nn.Threshold, nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
)  # fmt: skip
_PER_CHANNEL = (
    nn.modules.batchnorm._NormBase, nn.LocalResponseNorm, nn.ChannelShuffle, nn.Softmax2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid",
    "tanh", "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold",
    "logsigmoid", "hardswish", "hardsigmoid", "hardtanh", "clamp", "clamp_min", "clamp_max",
    "clip", "abs", "neg", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "reciprocal",
    "sign", "floor", "round", "sin", "cos", "erf", "dropout", "dropout2d", "feature_dropout",
    "alpha_dropout", "stochastic_depth", "contiguous", "clone", "detach", "to", "float",
    "double", "half", "bfloat16", "type_as", "native_dropout", "identity",
))  # fmt: skip
_ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "maximum",
    "minimum", "rsub", "true_divide", "subtract", "multiply", "divide",
))  # fmt: skip
_MIXING_MODULES_WITH_AXES = (nn.GroupNorm, nn.Upsample)


def classify(call: Call) -> Verdict:
    """Determines an operation's geometry, and the axes of rows and columns in its result."""
    if call.module is not None:
        return _module(call, call.module)
    name = call.name
    if name in _ELEMENTWISE or (name in ("pow", "max", "min") and len(call.axes) > 1):
        return _elementwise(call)
    if name in _POINTWISE_FUNCTIONS and call.map_axes is not None:
        return Pointwise(), call.map_axes
    if name in ("cat", "concat", "concatenate"):
        return _concatenate(call)
    rule = _RULES.get(name)
    return rule(call) if rule is not None and call.map_axes is not None else MIXED


def _module(call: Call, module: nn.Module) -> Verdict:
    axes = call.map_axes
    if axes is None:
        return MIXED
    if isinstance(module, _POINTWISE_MODULES):
        return Pointwise(), axes
    if isinstance(module, _MIXING_MODULES_WITH_AXES):
        return Mix(), axes
    if isinstance(module, _PER_CHANNEL):
        return _per_channel(call)
    if axes == (2, 3) and call.map.dim() == 4:
        window = window_of(module, call.value)
        if window is not None:
            return window, axes
    return _other_module(call, module)


def _other_module(call: Call, module: nn.Module) -> Verdict:
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and call.map_axes == (2, 3):
        return _adaptive(call, average=isinstance(module, nn.AdaptiveAvgPool2d))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return _on_last_axes(call, len(module.normalized_shape))
    if isinstance(module, nn.Linear):
        return _on_last_axes(call, 1)
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.GLU):
        return _along_axes(call, module.dim)
    return _reshape(call) if isinstance(module, nn.Flatten) else MIXED


def _adaptive(call: Call, average: bool) -> Verdict:
    (height, width), (rows, columns) = call.map.shape[-2:], call.value.shape[-2:]
    if (rows, columns) == (height, width):
        # Not Pointwise: the operation would resize a part of the map to the whole map's size.
        return Window((1, 1), (1, 1)), (2, 3)
    if (rows, columns) == (1, 1):
        return Mix(mean=average), (2, 3)
    if height % rows or width % columns:
        return Mix(), (2, 3)
    kernel = (height // rows, width // columns)
    return Window(kernel, kernel), (2, 3)


def _elementwise(call: Call) -> Verdict:
    value = call.value
    if not isinstance(value, Tensor):
        return MIXED
    pairs = list(zip(call.node.args[:2], call.args[:2], strict=True))
    # Broadcasting aligns axes counted from the end.
    known = [
        (tuple(a - tensor.dim() for a in axes), tuple(tensor.shape[a] for a in axes))
        for node, tensor in pairs
        if isinstance(node, fx.Node) and (axes := call.axes.get(node)) is not None
    ]
    if not known:
        return MIXED
    seen = {axes for axes, sizes in known if sizes != (1, 1)} or {known[0][0]}
    if len(seen) != 1:
        return MIXED
    row, column = (a + value.dim() for a in seen.pop())
    axes = (row, column)
    extent = (value.shape[row], value.shape[column])
    kinds = {_side(node, tensor, axes, extent, call) for node, tensor in pairs}
    if "gate" in kinds:
        return Mix(), axes
    return (Merge() if kinds == {"map"} else Pointwise()), axes


def _side(node: Any, tensor: Any, axes: Axes, extent: Axes, call: Call) -> str:
    """Classifies one operand: a map, a constant, or a gate that acts on all positions."""
    if not isinstance(tensor, Tensor):
        return "constant"
    rank = call.value.dim()
    sizes = tuple(tensor.shape[a - rank] if rank - a <= tensor.dim() else 1 for a in axes)
    if node in call.axes and call.axes[node] is None:
        return "gate"
    if sizes == extent and (sizes != (1, 1) or node in call.axes):
        return "map"
    return "constant" if sizes == (1, 1) and node not in call.axes else "gate"


def _concatenate(call: Call) -> Verdict:
    nodes = call.node.args[0] if call.node.args else call.node.kwargs["tensors"]
    if not isinstance(nodes, list | tuple):
        return MIXED
    # Tensors that do not depend on the image (coordinates, positional maps) are ignored.
    axes = {call.axes[node] for node in nodes if isinstance(node, fx.Node) and node in call.axes}
    if len(axes) != 1 or None in axes:
        return MIXED
    shared = axes.pop()
    dim = call.get(1, "dim", 0) % call.value.dim()
    return (Merge(), shared) if shared is not None and dim and dim not in shared else MIXED


def _conv2d(call: Call) -> Verdict:
    weight = call.get(1, "weight")
    if call.map_axes != (2, 3) or call.map.dim() != 4 or _reads_image(call, 1):
        return MIXED
    kernel = (weight.shape[2], weight.shape[3])
    rest = (call.get(3, "stride", 1), call.get(4, "padding", 0), call.get(5, "dilation", 1))
    return convolution(kernel, *rest), (2, 3)


def _reads_image(call: Call, index: int) -> bool:
    """Whether an argument (a weight) is computed from the image."""
    node = call.node.args[index] if len(call.node.args) > index else None
    return isinstance(node, fx.Node) and node in call.axes


def _max_pool2d(call: Call) -> Verdict:
    if call.map_axes != (2, 3) or not isinstance(call.value, Tensor):
        return MIXED
    step, sides = call.get(2, "stride"), call.get(3, "padding", 0)
    spread, ceil = call.get(4, "dilation", 1), bool(call.get(5, "ceil_mode", False))
    return pooling(call.get(1, "kernel_size"), step, sides, spread, ceil), (2, 3)


def _avg_pool2d(call: Call) -> Verdict:
    if call.map_axes != (2, 3):
        return MIXED
    step, sides = call.get(2, "stride"), call.get(3, "padding", 0)
    ceil = bool(call.get(4, "ceil_mode", False))
    return pooling(call.get(1, "kernel_size"), step, sides, 1, ceil), (2, 3)


def _per_channel(call: Call) -> Verdict:
    """Along axis 1, or with numbers for each index of it: local if that is the channels.

    A norm with the statistics of its input is not.
    """
    axes, norm = call.map_axes, call.module
    if isinstance(norm, nn.modules.batchnorm._NormBase) and (
        norm.training or norm.running_mean is None
    ):
        return Mix(), axes
    return (Mix() if axes is None or 1 in axes else Pointwise()), axes


def _batch_norm(call: Call) -> Verdict:
    return (Mix(), call.map_axes) if call.get(5, "training", False) else _per_channel(call)


def _instance_norm(call: Call) -> Verdict:
    return (Mix(), call.map_axes) if call.get(5, "use_input_stats", True) else _per_channel(call)


def _layer_norm(call: Call) -> Verdict:
    return _on_last_axes(call, len(call.get(1, "normalized_shape")))


def _keeps_axes(call: Call) -> Verdict:
    return Mix(), call.map_axes


def _on_last_axes(call: Call, count: int) -> Verdict:
    """Layer norm and linear use the last axes: local unless rows or columns are among them."""
    axes = call.map_axes
    if axes is None or max(axes) >= call.map.dim() - count:
        return MIXED
    return Pointwise(), axes


def _along_axes(call: Call, dims: int | tuple[int, ...] | list[int] | None) -> Verdict:
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


def _reduction(call: Call) -> Verdict:
    """Mean, sum, maximum over axes; the mean over rows and columns is marked as such."""
    axes, dims = call.map_axes, call.get(1, "dim")
    if axes is not None and call.name == "mean" and dims is not None and not isinstance(dims, int):
        rank = call.map.dim()
        if {d % rank for d in dims} == set(axes) and axes == (2, 3) and rank == 4:
            return Mix(mean=True), axes if call.value.dim() == rank else None
    return _along_axes(call, dims)


def _split(call: Call) -> Verdict:
    """Splitting along one axis into several tensors."""
    dim = call.get(2, "dim", 0) % call.map.dim()
    axes = call.map_axes
    return (Pointwise(), axes) if axes is not None and dim and dim not in axes else MIXED


def _permute(call: Call) -> Verdict:
    """Reordering of all axes."""
    order = call.get(1, "dims")
    if isinstance(order, int):
        order = call.args[1:]
    return _reordered(call, [d % call.map.dim() for d in order])


def _transpose(call: Call) -> Verdict:
    """Exchange of two axes."""
    order = list(range(call.map.dim()))
    first, second = call.get(1, "dim0"), call.get(2, "dim1")
    order[first], order[second] = order[second], order[first]
    return _reordered(call, order)


def _reordered(call: Call, order: list[int]) -> Verdict:
    axes = call.map_axes
    if axes is None or order[0] != 0:
        return MIXED
    return Pointwise(), (order.index(axes[0]), order.index(axes[1]))


def _reshape(call: Call) -> Verdict:
    """Local if the batch, the rows and the columns each remain a separate axis."""
    axes = call.map_axes
    if axes is None or not isinstance(call.value, Tensor):
        return MIXED
    kept = _axes_kept(tuple(call.map.shape), tuple(call.value.shape))
    if kept.get(0) != 0 or axes[0] not in kept or axes[1] not in kept:
        return MIXED
    return Pointwise(), (kept[axes[0]], kept[axes[1]])


def _axes_kept(before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, int]:
    """The axes of a shape that a reshape does not change: old position to new."""
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


def _unsqueeze(call: Call) -> Verdict:
    """A new axis of size 1."""
    dim = call.get(1, "dim") % (call.map.dim() + 1)
    axes = call.map_axes
    if axes is None or dim == 0:
        return MIXED
    row, column = (a + (dim <= a) for a in axes)
    return Pointwise(), (row, column)


def _getitem(call: Call) -> Verdict:
    """Selecting from a split, slicing channels, or strided slicing of rows and columns."""
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
    return MIXED if items[:1] == [None] else _sliced(call.map, axes, items)


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
    row, column = where[axes[0]], where[axes[1]]
    if all(cuts[a] == (0, 1, tensor.shape[a]) for a in axes):
        return Pointwise(), (row, column)
    if not _keeps_channels(tensor, axes, items):  # a window reads all of them
        return MIXED
    starts = tuple(cuts[a][0] for a in axes)
    steps = (cuts[axes[0]][1], cuts[axes[1]][1])
    ends = [(cuts[a][2] - 1) * cuts[a][1] + 1 + cuts[a][0] - tensor.shape[a] for a in axes]
    sides = ((-starts[0], ends[0]), (-starts[1], ends[1]))
    return Window((1, 1), steps, sides), (row, column)


def _keeps_channels(tensor: Tensor, axes: Axes, items: list[Any]) -> bool:
    """Whether a slice keeps all that is not rows and columns, as it is."""
    if None in items:
        return False
    return all(
        isinstance(item, slice) and item.indices(length) == (0, length, 1)
        for axis, (item, length) in enumerate(zip(items, tensor.shape, strict=False))
        if axis not in axes
    )


def _pad(call: Call) -> Verdict:
    """Padding at the ends of some axes; local if only channels are padded."""
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


_RULES: dict[str, Callable[[Call], Verdict]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "boolean_dispatch": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": lambda call: _adaptive(call, average=True),
    "adaptive_max_pool2d": lambda call: _adaptive(call, average=False),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "linear": lambda call: _on_last_axes(call, 1),
    "chunk": _split,
    "split": _split,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _reshape,
    "unflatten": _reshape,
    "unsqueeze": _unsqueeze,
    "getitem": _getitem,
    "pad": _pad,
    "mean": _reduction,
    "sum": _reduction,
    "amax": _reduction,
    "softmax": lambda call: _along_axes(call, call.get(1, "dim")),
    "log_softmax": lambda call: _along_axes(call, call.get(1, "dim")),
    "normalize": lambda call: _along_axes(call, call.get(2, "dim", 1)),
    "glu": lambda call: _along_axes(call, call.get(1, "dim", -1)),
    "local_response_norm": _per_channel,
    "channel_shuffle": _per_channel,
    "group_norm": _keeps_axes,
    "instance_norm": _instance_norm,
    "interpolate": _keeps_axes,
}
