"""The same network with fewer operations: batch norm folded into convolutions, no-ops removed.

In evaluation batch norm is y = γ·(x − μ)/√(σ² + ε) + β with fixed numbers, so after a convolution
it is a change of the convolution's weight and bias (Jacob et al. 2017, "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2). Folding is
done in float64, on copies: the traced module keeps its layers and parameters.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cnnviz.core.graph.program import OUT_OF_PLACE, VIEWS, name_of, target_name, writes
from cnnviz.core.graph.trace import Untraceable, one_step, replaced

_DROPPED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_SCALE, _SHIFT = "folded_scale", "folded_shift"
MOST = 64
"""Times its own deviation that a channel may be shifted and still be told to six bits less."""
_DROPPED_FUNCTIONS = ("dropout", "dropout2d", "stochastic_depth")


def fold(
    traced: fx.GraphModule, keep: Collection[str] = (), rescaled: Collection[str] = ()
) -> fx.GraphModule:
    """Copies a network with batch norms folded, no-ops removed and convolutions channels-last.

    Args:
        traced: the result of `cnnviz.core.graph.trace.trace`.
        keep: dotted names of layers whose outputs are needed; these layers are not changed.
        rescaled: those of them whose output may be rescaled: each of its channels is multiplied by
            a number and shifted (`rescaling` tells by what), because a batch norm is folded in.

    Raises:
        Untraceable: an operation overwrites a part of a tensor that is read again later.

    Returns:
        A new graph module. Its `meta["layers"]` maps layers to the nodes of their outputs; folded
        convolutions are missing there, since their outputs no longer exist.
    """
    folded = fx.GraphModule(traced, copy.deepcopy(traced.graph), type(traced).__name__)
    _redirect_overwritten(folded)
    layers = dict(traced.meta.get("layers", {}))
    kept = {layers[name] for name in keep if name in layers}
    free = {layers[name] for name in rescaled if name in layers}

    def layer(node: fx.Node) -> nn.Module:
        return folded.get_submodule(str(node.target))

    for node in list(folded.graph.nodes):
        if node.name in kept:
            continue
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None:
            continue
        if is_noop(folded, node):
            _bypass(node, source, layers)
        elif source.name in kept and source.name not in free:
            continue
        elif _foldable(folded, node, source):
            merged, undone = _merged(layer(source), layer(node))
            if source.name in kept and not undone:
                continue
            folded.set_submodule(str(source.target), merged)
            if source.name not in kept:
                _forget(layers, source.name)
            _bypass(node, source, layers)
    _lay_out(folded)
    folded.delete_all_unused_submodules()
    folded.recompile()
    folded.meta["layers"] = layers
    return folded


def rescaling(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """What `fold` multiplied and shifted each channel of a layer's output by, if it did."""
    buffers = dict(layer.named_buffers(recurse=False))
    return (buffers[_SCALE], buffers[_SHIFT]) if _SCALE in buffers else None


def _lay_out(graph_module: fx.GraphModule) -> None:
    """Prepares convolutions for channels-last maps, which only `reshape` can flatten."""
    for node in graph_module.graph.find_nodes(op="call_method", target="view"):
        if not any(isinstance(argument, torch.dtype) for argument in node.args):
            node.target = "reshape"
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or one_step(module):
            copied = copy.deepcopy(module).to(memory_format=torch.channels_last)
            graph_module.set_submodule(str(node.target), copied)


def _redirect_overwritten(module: fx.GraphModule) -> None:
    """Makes later readers of a tensor that was overwritten in place read the overwriting node."""
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        if not _overwrites(module, node) or not isinstance(node.args[0], fx.Node):
            continue
        target = node.args[0]
        for user in list(target.users):
            if order[user] > order[node]:
                user.replace_input_with(target, node)
        while name_of(module, target) in VIEWS and target.args:
            if not isinstance(target.args[0], fx.Node):
                break
            target = target.args[0]
            if any(order[user] > order[node] for user in target.users):
                raise Untraceable(f"'{node.name}' overwrites a part of '{target.name}'")


def _overwrites(module: fx.GraphModule, node: fx.Node) -> bool:
    if not node.args:
        return False
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.target in OUT_OF_PLACE or writes(node.target):
        return True
    name = target_name(node.target)
    second = node.args[1] if len(node.args) == 2 and name in ("relu", "silu") else False
    return node.op == "call_function" and (node.kwargs.get("inplace", second) is True)


def is_noop(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node returns its input unchanged: identities, and dropout in evaluation mode."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        stays = isinstance(layer, nn.Identity) or not layer.training
        return isinstance(layer, _DROPPED_MODULES) and stays and not replaced(layer)
    # Traced in evaluation mode, these have training=False; anything else is not a no-op.
    name = getattr(node.target, "__name__", "")
    if node.op != "call_function" or name not in _DROPPED_FUNCTIONS:
        return False
    place = {"stochastic_depth": 3}.get(name, 2)
    training = node.args[place] if len(node.args) > place else node.kwargs.get("training", True)
    return training is False


def _foldable(module: fx.GraphModule, node: fx.Node, source: fx.Node) -> bool:
    if node.op != "call_module" or source.op != "call_module" or len(source.users) != 1:
        return False
    norm = module.get_submodule(str(node.target))
    convolution = module.get_submodule(str(source.target))
    calls = [n for n in module.graph.find_nodes(op="call_module") if n.target == source.target]
    return (
        isinstance(norm, _NORMS)
        and norm.running_mean is not None
        and not norm.training
        and type(convolution) is nn.Conv2d
        and len(calls) == 1
        and not (replaced(norm) or replaced(convolution))
    )


def _merged(convolution: nn.Module, norm: Any) -> tuple[nn.Conv2d, bool]:
    """One convolution equivalent to both layers, and whether its output tells the first one's."""
    merged = copy.deepcopy(convolution)
    assert isinstance(merged, nn.Conv2d)  # noqa: S101 (as `_foldable` requires)

    def exact(value: Any) -> Any:
        return None if value is None else value.detach().double()

    weight, bias = fuse_conv_bn_weights(
        exact(merged.weight),
        exact(merged.bias),
        exact(norm.running_mean),
        exact(norm.running_var),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    dtype = merged.weight.dtype
    merged.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    merged.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    deviation = (exact(norm.running_var) + norm.eps).sqrt()
    ones = torch.ones_like(deviation)
    scale = (ones if norm.weight is None else exact(norm.weight)) / deviation
    offset = 0 * ones if norm.bias is None else exact(norm.bias)
    shift = offset - exact(norm.running_mean) * scale
    merged.register_buffer(_SCALE, scale.to(dtype))
    merged.register_buffer(_SHIFT, shift.to(dtype))
    undone = dtype.itemsize >= 4 and bool((shift.abs() <= MOST * (scale * deviation).abs()).all())
    return merged, undone and bool(scale.all())


def _bypass(node: fx.Node, source: fx.Node, layers: dict[str, str]) -> None:
    for layer, name in layers.items():
        if name == node.name:
            layers[layer] = source.name
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _forget(layers: dict[str, str], name: str) -> None:
    for layer in [layer for layer, node in layers.items() if node == name]:
        del layers[layer]
