"""The geometry of torch's own operations, module by module and function by function.

`classify` looks at one node of a traced network while it runs, with real arguments and the real
result at hand, and says how it treats rows and columns. What it does not know is a `Mix`, which is
always right and never fast. Functions go by their names, so `torch.relu`, `F.relu`, `Tensor.relu_`
and `aten.relu` are one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

import cnnviz.core.graph.rearrangements as axes_of
from cnnviz.core.graph.call import MIXED, Axes, Call, Verdict
from cnnviz.core.graph.geometry import Merge, Mix, Pointwise, Window, convolution, pair, pooling

_POINTWISE_MODULES = (
    nn.BatchNorm2d, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink,
    nn.Tanhshrink, nn.Threshold, nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.LocalResponseNorm, nn.ChannelShuffle, nn.Softmax2d,
)  # fmt: skip
_POINTWISE_FUNCTIONS = frozenset((
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid",
    "tanh", "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold",
    "logsigmoid", "hardswish", "hardsigmoid", "hardtanh", "clamp", "clamp_min", "clamp_max",
    "clip", "abs", "neg", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "reciprocal",
    "sign", "floor", "round", "sin", "cos", "erf", "dropout", "dropout2d", "feature_dropout",
    "alpha_dropout", "stochastic_depth", "contiguous", "clone", "detach", "to", "float",
    "double", "half", "bfloat16", "type_as", "local_response_norm", "channel_shuffle",
    "native_dropout", "identity",
))  # fmt: skip
_ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "maximum",
    "minimum", "rsub", "true_divide", "subtract", "multiply", "divide",
))  # fmt: skip
_KEEPS_AXES_NOT_PLACES = (nn.GroupNorm, nn.InstanceNorm2d, nn.Upsample)


def classify(call: Call) -> Verdict:
    """Geometry of the operation, and the axes of rows and columns in its result."""
    if call.module is not None:
        return _module(call, call.module)
    name = call.name
    if name in _ELEMENTWISE or (name == "pow" and len(call.axes) > 1):
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
    if isinstance(module, _KEEPS_AXES_NOT_PLACES):
        return Mix(), axes
    if axes == (2, 3) and call.map.dim() == 4:
        window = _window(module, call.value)
        if window is not None:
            return window, axes
    return _other_module(call, module)


def _other_module(call: Call, module: nn.Module) -> Verdict:
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and call.map_axes == (2, 3):
        return _adaptive(call, average=isinstance(module, nn.AdaptiveAvgPool2d))
    if isinstance(module, nn.LayerNorm):
        return axes_of.on_last_axes(call, len(module.normalized_shape))
    if isinstance(module, nn.Linear):
        return axes_of.on_last_axes(call, 1)
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        return axes_of.along_axes(call, module.dim)
    return axes_of.reshape(call) if isinstance(module, nn.Flatten) else MIXED


def _window(module: nn.Module, value: Any) -> Window | None:
    if isinstance(module, nn.Conv2d):
        return convolution(
            pair(module.kernel_size),
            module.stride,
            module.padding,
            module.dilation,
            module.padding_mode,
        )
    if isinstance(module, nn.ConvTranspose2d):
        plain = convolution(
            pair(module.kernel_size), module.stride, module.padding, module.dilation
        )
        return replace(plain, transposed=True)
    if isinstance(module, nn.MaxPool2d) and isinstance(value, Tensor):
        return pooling(
            module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )
    if isinstance(module, nn.AvgPool2d):
        return pooling(module.kernel_size, module.stride, module.padding, 1, module.ceil_mode)
    pads = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
    modes = ("zeros", "zeros", "reflect", "replicate")
    for kind, mode in zip(pads, modes, strict=True):
        if isinstance(module, kind):
            sides: Any = module.padding
            left, right, top, bottom = sides
            return Window((1, 1), padding=((top, bottom), (left, right)), padding_mode=mode)
    return None


def _adaptive(call: Call, average: bool) -> Verdict:
    (height, width), (rows, columns) = call.map.shape[-2:], call.value.shape[-2:]
    if (rows, columns) == (height, width):
        # Not Pointwise: the operation itself, run on a part of the map, would stretch that part.
        return Window((1, 1), (1, 1)), (2, 3)
    if (rows, columns) == (1, 1):
        return Mix(mean=average), (2, 3)
    if height % rows or width % columns:
        return Mix(), (2, 3)
    kernel = (height // rows, width // columns)
    return Window(kernel, kernel), (2, 3)


def _elementwise(call: Call) -> Verdict:
    value, places = call.value, list(call.node.args[:2])
    whole = [
        node for node in places if isinstance(node, fx.Node) and call.axes.get(node) is not None
    ]
    if not whole or not isinstance(value, Tensor):
        return MIXED
    pairs = list(zip(places, call.args[:2], strict=True))
    # Axes counted from the end are what broadcasting lines up.
    known = [
        (tuple(a - tensor.dim() for a in axes), tuple(tensor.shape[a] for a in axes))
        for node, tensor in pairs
        if isinstance(node, fx.Node) and (axes := call.axes.get(node)) is not None
    ]
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
    """What one operand is to the result: a map, a constant, or a gate that acts everywhere."""
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
    # What does not depend on the image (coordinates, positional maps) has no say.
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
    """Whether a weight is itself computed by the network rather than stored in it."""
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


def _batch_norm(call: Call) -> Verdict:
    axes = call.map_axes
    return (Pointwise(), axes) if axes == (2, 3) and not call.get(5, "training", False) else MIXED


def _layer_norm(call: Call) -> Verdict:
    return axes_of.on_last_axes(call, len(call.get(1, "normalized_shape")))


def _keeps_axes(call: Call) -> Verdict:
    return Mix(), call.map_axes


_RULES: dict[str, Callable[[Call], Verdict]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "boolean_dispatch": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": lambda call: _adaptive(call, average=True),
    "adaptive_max_pool2d": lambda call: _adaptive(call, average=False),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "linear": lambda call: axes_of.on_last_axes(call, 1),
    "chunk": axes_of.split,
    "split": axes_of.split,
    "permute": axes_of.permute,
    "transpose": axes_of.transpose,
    "swapaxes": axes_of.transpose,
    "view": axes_of.reshape,
    "reshape": axes_of.reshape,
    "flatten": axes_of.reshape,
    "unflatten": axes_of.reshape,
    "unsqueeze": axes_of.unsqueeze,
    "getitem": axes_of.getitem,
    "pad": axes_of.pad,
    "mean": axes_of.reduction,
    "sum": axes_of.reduction,
    "amax": axes_of.reduction,
    "softmax": lambda call: axes_of.along_axes(call, call.get(1, "dim")),
    "log_softmax": lambda call: axes_of.along_axes(call, call.get(1, "dim")),
    "normalize": lambda call: axes_of.along_axes(call, call.get(2, "dim", 1)),
    "group_norm": _keeps_axes,
    "instance_norm": _keeps_axes,
    "interpolate": _keeps_axes,
}
