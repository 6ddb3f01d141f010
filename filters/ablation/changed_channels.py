"""Operations on a value of which each ablation changes one channel.

`changed_channel_rules` evaluates a step of the suffix (`cnnviz.filters.ablation.suffix`) that reads
a changed channel:

- batch norm, activations, pooling, depthwise convolution and the spatial mean run on the changed
  channels only: the result is a changed channel again;
- adding or multiplying by a base value uses the same channels of that value; concatenating shifts
  them;
- flattening keeps each channel as a block of columns;
- a convolution or linear layer is linear in its input, so its result is the base result plus the
  contribution of the changed channel: the result is rows;
- for everything else the result is None, and the step runs on full rows.

It makes `ablate --sweep` of a wide late layer several times as fast (`docs/ablate.md`).
"""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (its customary name)
from torch import Tensor, fx, nn

from cnnviz.core.graph.program import OUT_OF_PLACE, target_name
from cnnviz.filters.ablation.suffix import (
    ChangedChannel,
    FullRows,
    Run,
    is_channels_last,
    shape_of_changed,
)

ELEMENTWISE_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU,
    nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh,
)  # fmt: skip
POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
ELEMENTWISE_NAMES = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "softplus", "softsign", "hardswish", "hardsigmoid", "hardtanh", "dropout", "dropout2d", "clamp",
    "contiguous", "clone", "detach", "abs", "neg", "exp", "stochastic_depth",
)  # fmt: skip
POOLING_NAMES = ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
# F.max_pool2d dispatches between two functions and has the name of neither.
POOLING_FUNCTIONS = (F.max_pool2d, F.adaptive_max_pool2d)
ARITHMETIC = (
    operator.add, operator.sub, operator.mul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div,
)  # fmt: skip


def changed_channel_rules(run: Run, node: fx.Node) -> ChangedChannel | FullRows | None:
    """Evaluates a step that reads a changed channel; None if it needs full rows."""
    if node.op == "call_module":
        return _module(run, node)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in ("size", getattr):
        return shape_of_changed(run, node)
    target = OUT_OF_PLACE.get(node.target, node.target)
    if target in ARITHMETIC or node.target in ("add", "mul", "sub", "div"):
        return _arithmetic(run, node)
    if target in (torch.cat, torch.concat):
        return _concatenate(run, node)
    return _function(run, node)


def _function(run: Run, node: fx.Node) -> ChangedChannel | None:
    """Functions and methods of one map."""
    changed = _only_changed(run, node)
    if changed is None:
        return None
    name = target_name(node.target)
    pools = node.target in POOLING_FUNCTIONS or name in POOLING_NAMES
    if name in ELEMENTWISE_NAMES or (pools and not changed.flat):
        return _applied(run, node, changed)
    rule = _SHAPING.get(name)
    return rule(run, node, changed) if rule is not None else None


def _only_changed(run: Run, node: fx.Node) -> ChangedChannel | None:
    """The changed channel that is a step's first argument, if all others are numbers or shapes."""
    first, *others = node.args
    changed = run.env.get(first) if isinstance(first, fx.Node) else None
    reads_more = any(
        isinstance(run.env.get(n), ChangedChannel) or n in run.base.shapes
        for n in node.all_input_nodes
        if n is not first
    )
    repeated = any(other is first for other in others)
    alone = not reads_more and not repeated
    return changed if isinstance(changed, ChangedChannel) and alone else None


def _applied(run: Run, node: fx.Node, changed: ChangedChannel) -> ChangedChannel | None:
    if any(isinstance(other, fx.Node) for other in node.args[1:]):
        return None
    values = run.program.operations[node].call(changed.values, *node.args[1:], **node.kwargs)
    return ChangedChannel(values, changed.channels) if isinstance(values, Tensor) else None


def _module(run: Run, node: fx.Node) -> ChangedChannel | FullRows | None:
    module, changed = run.program.operations[node].call, _only_changed(run, node)
    if changed is None or len(node.args) != 1 or node.kwargs:
        return None
    kind = type(module)
    if kind in ELEMENTWISE_MODULES or (kind in POOLING_MODULES and not changed.flat):
        return _applied(run, node, changed)
    rule = _LAYERS.get(kind)
    return rule(run, node, module, changed) if rule is not None else None


def _batch_norm(
    _run: Run, _node: fx.Node, module: nn.BatchNorm2d, changed: ChangedChannel
) -> ChangedChannel | None:
    if module.running_mean is None or module.running_var is None or module.training or changed.flat:
        return None
    values = F.batch_norm(
        changed.values,
        module.running_mean[changed.channels],
        module.running_var[changed.channels],
        None if module.weight is None else module.weight[changed.channels],
        None if module.bias is None else module.bias[changed.channels],
        eps=module.eps,
    )
    return ChangedChannel(values, changed.channels)


def _delta(run: Run, node: fx.Node, changed: ChangedChannel) -> Tensor:
    """The difference of the changed channel that a step reads from the base value."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 (as `_only_changed` returned it)
    base: Tensor = run.base.values[source]
    if changed.flat:
        base = torch.unflatten(base, 1, (-1, changed.values.shape[2]))
    return changed.values - base[:, changed.channels]


def _convolution(
    run: Run, node: fx.Node, module: nn.Conv2d, changed: ChangedChannel
) -> ChangedChannel | FullRows | None:
    if changed.flat or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if module.groups == module.in_channels == module.out_channels:
        return _depthwise(module, changed)
    if module.groups != 1:
        return None
    delta = _delta(run, node, changed)
    images, count, height, width = delta.shape
    weight = module.weight[:, changed.channels].transpose(0, 1).flatten(2)  # (G, O, kernel)
    if module.kernel_size == (1, 1) and module.padding == (0, 0):
        rows, columns = module.stride
        patches = delta[:, :, ::rows, ::columns].flatten(2).unsqueeze(2)
    else:
        single = delta.reshape(images * count, 1, height, width)
        geometry = (module.kernel_size, module.dilation, module.padding, module.stride)
        patches = torch.unflatten(F.unfold(single, *geometry), 0, (images, count))
    base: Tensor = run.base.values[node]
    if not is_channels_last(base):
        added = torch.matmul(weight, patches).add_(base.flatten(2).unsqueeze(1))
        return FullRows(added.view(images * count, *base.shape[1:]))
    last = base.permute(0, 2, 3, 1)
    added = torch.matmul(patches.transpose(2, 3), weight.transpose(1, 2))
    added += last.flatten(1, 2).unsqueeze(1)
    return FullRows(added.view(images * count, *last.shape[1:]).permute(0, 3, 1, 2))


def _depthwise(module: nn.Conv2d, changed: ChangedChannel) -> ChangedChannel:
    values = F.conv2d(
        changed.values,
        module.weight[changed.channels],
        None if module.bias is None else module.bias[changed.channels],
        module.stride,
        module.padding,
        module.dilation,
        groups=len(changed.channels),
    )
    return ChangedChannel(values, changed.channels)


def _linear(run: Run, node: fx.Node, module: nn.Linear, changed: ChangedChannel) -> FullRows | None:
    if not changed.flat:
        return None
    delta = _delta(run, node, changed)
    columns = torch.unflatten(module.weight, 1, (-1, delta.shape[2]))
    weight = columns[:, changed.channels]  # (O, G, B)
    base: Tensor = run.base.values[node]
    if delta.shape[2] == 1:
        added = delta * weight[:, :, 0].T
    else:
        added = torch.matmul(delta.transpose(0, 1), weight.permute(1, 2, 0)).transpose(0, 1)
    return FullRows((added + base.unsqueeze(1)).flatten(0, 1))


def _flatten(run: Run, node: fx.Node, changed: ChangedChannel) -> ChangedChannel | None:
    """`flatten(1)`, `x.view(x.size(0), -1)` and similar: (N, C, H, W) to (N, C*H*W)."""
    before, after = run.base.shapes[node.all_input_nodes[0]], run.base.shapes.get(node)
    if changed.flat or after != (before[0], before[1:].numel()):
        return None
    return ChangedChannel(changed.values.flatten(2), changed.channels)


# A layer type is looked up exactly: a subclass may have another forward.
_LAYERS: dict[type, Callable[..., ChangedChannel | FullRows | None]] = {
    nn.BatchNorm2d: _batch_norm,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.Flatten: lambda run, node, _module, changed: _flatten(run, node, changed),
}


def _mean(_run: Run, node: fx.Node, changed: ChangedChannel) -> ChangedChannel | None:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if changed.flat or not isinstance(dims, list | tuple) or {d % 4 for d in dims} != {2, 3}:
        return None
    mean = changed.values.mean((2, 3), keepdim=True)
    return ChangedChannel(mean if keep else mean.flatten(2), changed.channels)


_SHAPING: dict[str, Callable[[Run, fx.Node, ChangedChannel], ChangedChannel | None]] = {
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    "mean": _mean,
}


def _arithmetic(run: Run, node: fx.Node) -> ChangedChannel | None:
    if node.kwargs or len(node.args) != 2:
        return None
    changes = [run.env[n] for n in node.args if isinstance(n, fx.Node) and n in run.env]
    if not all(isinstance(value, ChangedChannel) for value in changes):
        return None
    changed = changes[0]
    assert isinstance(changed, ChangedChannel)  # noqa: S101 (checked above)
    operands = [_operand(run, argument, changed) for argument in node.args]
    if any(operand is None for operand in operands):
        return None
    values = run.program.operations[node].call(*operands)
    return (
        ChangedChannel(values, changed.channels) if values.shape == changed.values.shape else None
    )


def _operand(run: Run, argument: object, changed: ChangedChannel) -> Tensor | float | None:
    """One operand for the changed channels only; None if that is impossible."""
    if isinstance(argument, int | float):
        return argument
    if not isinstance(argument, fx.Node):
        return None
    value = run.env.get(argument)
    if isinstance(value, ChangedChannel):
        same = value.channels is changed.channels or torch.equal(value.channels, changed.channels)
        return value.values if same and value.flat == changed.flat else None
    if changed.flat or argument not in run.base.shapes or argument not in run.program.on_image:
        return None
    base: Tensor = run.base.values[argument]
    return base[:, changed.channels] if base.dim() == 4 and base.shape[1] > 1 else None


def _concatenate(run: Run, node: fx.Node) -> ChangedChannel | None:
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    inputs = [n for n in node.all_input_nodes if n in run.env]
    if not isinstance(tensors, list | tuple) or len(inputs) != 1 or dim not in (1, -3):
        return None
    changed = run.env[inputs[0]]
    if (
        not isinstance(changed, ChangedChannel)
        or changed.flat
        or sum(n is inputs[0] for n in tensors) != 1
    ):
        return None
    offset = 0
    for tensor in tensors:
        if tensor is inputs[0]:
            break
        if not isinstance(tensor, fx.Node):
            return None
        offset += run.base.shapes[tensor][1]
    return ChangedChannel(changed.values, changed.channels + offset)
