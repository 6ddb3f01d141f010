"""The same network with fewer operations: batch norm folded into convolutions, no-ops removed.

In evaluation batch norm is y = γ·(x − μ)/√(σ² + ε) + β with fixed numbers, so after a convolution
it is a change of the convolution's weight and bias (Jacob et al. 2017, "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3.2). Folding is
done in float64, on copies: the traced module keeps its layers and parameters.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn

from cnnviz.core.graph.program import OUT_OF_PLACE, VIEWS, name_of, target_name, writes
from cnnviz.core.graph.trace import Untraceable

_DROPPED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPPED_FUNCTIONS = ("dropout", "dropout2d", "stochastic_depth")


def fold(traced: fx.GraphModule, keep: Collection[str] = ()) -> fx.GraphModule:
    """Copies a network with batch norms folded, no-ops removed and convolutions channels-last.

    Args:
        traced: the result of `cnnviz.core.graph.trace.trace`.
        keep: dotted names of layers whose outputs are needed; these layers are not changed.

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

    def layer(node: fx.Node) -> nn.Module:
        return folded.get_submodule(str(node.target))

    for node in list(folded.graph.nodes):
        if node.name in kept:
            continue
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None:
            continue
        if _is_noop(folded, node):
            _bypass(node, source, layers)
        elif source.name not in kept and _foldable(folded, node, source):
            merged = _merged(layer(source), layer(node))
            _put(folded, str(source.target), merged)
            _forget(layers, source.name)
            _bypass(node, source, layers)
    _lay_out(folded)
    folded.delete_all_unused_submodules()
    folded.recompile()
    folded.meta["layers"] = layers
    return folded


def _lay_out(graph_module: fx.GraphModule) -> None:
    """Prepares convolutions for channels-last maps, which only `reshape` can flatten."""
    for node in graph_module.graph.find_nodes(op="call_method", target="view"):
        if not any(isinstance(argument, torch.dtype) for argument in node.args):
            node.target = "reshape"
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            copied = copy.deepcopy(module).to(memory_format=torch.channels_last)
            _put(graph_module, str(node.target), copied)


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


def _is_noop(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _DROPPED_MODULES)
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
        isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
        and type(convolution) is nn.Conv2d
        and len(calls) == 1
    )


def _merged(convolution: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """One convolution equivalent to both layers."""
    merged = copy.deepcopy(convolution)
    assert isinstance(merged, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)  # noqa: S101, PT018
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101, PT018
    weight = merged.weight
    scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double()
    if merged.bias is not None:
        shift = shift + merged.bias.detach().double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    merged.weight = _parameter(weight.detach().double() * scale[:, None, None, None], weight)
    merged.bias = _parameter(shift, weight)
    return merged


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=False)


def _bypass(node: fx.Node, source: fx.Node, layers: dict[str, str]) -> None:
    for layer, name in layers.items():
        if name == node.name:
            layers[layer] = source.name
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _forget(layers: dict[str, str], name: str) -> None:
    for layer in [layer for layer, node in layers.items() if node == name]:
        del layers[layer]


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)
