"""A network as a graph of operations with known geometry.

`trace` turns a module into a `torch.fx.GraphModule` (control flow resolved for evaluation, leaf
modules kept under their names); `describe` runs it once and determines for each node its shape,
which of its axes are rows and columns, and its geometry (see `cnnviz.core.graph.geometry`).
Receptive fields, the incremental occlusion engine and the replay of ablations are based on this.

    graph = describe(trace(model.module), (224, 224), device=model.device, dtype=...)
    for node, info in graph.info.items():          # in execution order
        info.geometry, info.shape, info.axes, info.inputs
    graph.layers["layer1.0"]                       # the fx node of that layer's output

The module is not modified: the graph module refers to its layers and parameters.
"""

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from cnnviz.core.device import rounding
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError
from cnnviz.core.graph.geometry import Fixed, Geometry, Image, Mix
from cnnviz.core.graph.operations import classify
from cnnviz.core.graph.program import Call

_COMPILED = "cannot be traced (TorchScript is compiled already)"
_ASSERTIONS = (torch._assert, fx._symbolic_trace._assert_is_none)
MACS = "macs"
"""Key of the multiply-accumulates per image, in `meta` of modules that are marked as one step."""
_BATCH = 2  # with one image, the batch axis could be confused with other axes of size 1


class Untraceable(CnnvizError):  # noqa: N818 (a reason, not an error of the program)
    """The module's forward cannot be turned into a graph."""


@dataclass(frozen=True)
class NodeInfo:
    """Description of one node."""

    geometry: Geometry  # where the operation looks
    # of the output tensor for a batch of one; None if it is not a single tensor
    shape: tuple[int, ...] | None
    # positions of rows and columns in that shape, e.g. (2, 3), or (1, 2) after a permute to
    # channels last; None if it has none
    axes: tuple[int, int] | None
    # the nodes that it reads and that depend on the image, in order of the arguments
    inputs: tuple[fx.Node, ...]
    layer: str | None  # dotted name of the module that it calls; None for functions and methods


@dataclass(frozen=True)
class Graph:
    """A traced network with a description of every node except `output`."""

    module: fx.GraphModule  # the graph module; `module(images)` returns what the original returns
    info: dict[fx.Node, NodeInfo]  # node to its description, in execution order
    # dotted name of every layer that runs, leaf or not, to the node of its output (the last one,
    # where a layer runs more than once)
    layers: dict[str, fx.Node]
    source: fx.Node  # the node of the image
    output: fx.Node  # the node whose value the network returns


class _Parts(fx.Proxy):
    """The list returned by a split, whose length follows from the arguments."""

    def __len__(self) -> int:
        return _pieces(self.node) or 0

    def __iter__(self) -> Iterator[Any]:
        part: Any = self
        return iter([part[index] for index in range(len(self))])


class Tap(nn.Module):
    """An identity at the end of a layer that consists of several operations.

    It makes the layer's name a step of the graph, which hooks can watch and change.
    """

    def forward(self, value: Any) -> Any:
        """Returns `value`."""
        return value


class _NamingTracer(fx.Tracer):
    """Records the output node of each module, leaf or not; splits of known length are lists."""

    def __init__(self, tapped: Collection[str]) -> None:
        super().__init__()
        self.layers: dict[str, str] = {}
        self._tapped = tapped
        self.taps: set[str] = set()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            path = self.path_of_module(m)
            if path in self._tapped and not self.is_leaf_module(m, path):
                output = self.create_proxy("call_module", path, (output,), {})
                self.taps.add(path)
            self.layers[path] = output.node.name
        return output

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step: torch's layers, and what is compiled or marked."""
        step = isinstance(m, torch.jit.ScriptModule) or one_step(m)
        return step or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Returns the proxy of a node's value."""
        return super().proxy(node) if _pieces(node) is None else _Parts(node, self)


def one_step(module: nn.Module) -> bool:
    """Whether a module is marked as one step of a graph, which is not traced into."""
    return getattr(module, "one_step", False) is True


def _pieces(node: fx.Node) -> int | None:
    """Number of parts of a split, if its arguments determine it."""
    name = Call(node, None, (), {}, None, {}).name
    given = node.args[1] if len(node.args) > 1 else None
    if name == "chunk":
        given = node.kwargs.get("chunks", given)
        return given if isinstance(given, int) else None
    if name == "split":
        sizes = node.kwargs.get("split_size_or_sections", node.kwargs.get("split_size", given))
        return len(sizes) if isinstance(sizes, list | tuple) else None
    return None


def trace(module: nn.Module, tapped: Collection[str] = ()) -> fx.GraphModule:
    """Traces a module in evaluation mode; the module is not modified.

    The result's `meta["layers"]` maps every layer's dotted name to the name of its output node.

    Args:
        module: the network.
        tapped: names of layers that must be steps of the graph, regardless of the number of
            operations that they consist of (`Tap`).

    Raises:
        Untraceable: its forward depends on the values of tensors, takes several inputs, is
            compiled code (TorchScript), or was exported for one batch size.
    """
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise Untraceable(f"{kind} {_COMPILED}")
    if module.training:
        raise Untraceable(f"{kind} cannot be traced in training mode; call .eval() first")
    with _unchanged(module):
        return _traced(module, _NamingTracer(tapped))


def _traced(module: nn.Module, tracer: _NamingTracer) -> fx.GraphModule:
    kind = type(module).__name__
    try:
        graph = tracer.trace(module, _defaults(module))
    except USER_CODE_ERRORS as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise Untraceable(f"{kind} cannot be traced ({reason or type(error).__name__})") from error
    required = [node for node in graph.find_nodes(op="placeholder") if not node.args]
    if len(required) != 1:
        raise Untraceable(f"{kind} cannot be traced (it takes {len(required)} inputs, not one)")
    called = [module.get_submodule(str(n.target)) for n in graph.find_nodes(op="call_module")]
    if called and all(isinstance(part, torch.jit.ScriptModule) for part in called):
        raise Untraceable(f"{kind} {_COMPILED}")  # an archive behind a reader of its output
    _drop_defaults(graph)
    traced = fx.GraphModule(_parts(module, graph, tracer.taps), graph, class_name=kind)
    traced.training = False
    traced.meta["layers"] = tracer.layers
    return traced


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Undoes what the forward caches of a trace: later passes would read proxies of values."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    before = [(vars(part), dict(vars(part))) for part in parts]
    values = [value for _, attributes in before for value in attributes.values()]
    containers = [(value, value.copy()) for value in values if isinstance(value, dict | list | set)]
    try:
        yield
    finally:
        for container, content in containers:
            if _holds_proxies(container):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
        for now, attributes in before:
            for name in [name for name, value in now.items() if _holds_proxies(value)]:
                del now[name]
                now.update({name: attributes[name]} if name in attributes else {})


def _holds_proxies(value: object) -> bool:
    items = value.values() if isinstance(value, dict) else value
    several = isinstance(value, dict | list | set | tuple)
    return isinstance(value, fx.Proxy) or (
        several and any(isinstance(item, fx.Proxy) for item in cast("Iterable[object]", items))
    )


def _parts(module: nn.Module, graph: fx.Graph, taps: Collection[str]) -> dict[str, Any]:
    """The layers and parameters that a graph's nodes refer to, and taps of whole layers."""

    def part(path: str) -> Any:
        parent, _, last = path.rpartition(".")
        return Tap().eval() if path in taps else getattr(module.get_submodule(parent), last)

    named = (node for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return {str(node.target): part(str(node.target)) for node in named}


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Arguments of the forward other than the image, fixed at their defaults."""
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _drop_defaults(graph: fx.Graph) -> None:
    """Removes fixed arguments, and assertions about their values."""
    for node in reversed(graph.nodes):
        fixed = node.op == "placeholder" and node.args
        asserts = node.op == "call_function" and node.target in _ASSERTIONS
        compares = node.op == "call_function" and node.target is operator.eq
        if not node.users and (fixed or asserts or compares):
            graph.erase_node(node)


class _Describer(fx.Interpreter):
    """Runs the graph once and records the description of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.info: dict[fx.Node, NodeInfo] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        counts = n.op == "call_module" and one_step(self.module.get_submodule(str(n.target)))
        if counts:
            from torch.utils.flop_counter import FlopCounterMode  # which imports Triton

            with FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            n.meta[MACS] = counter.get_total_flops() / 2 / _BATCH
        else:
            value = super().run_node(n)
        if n.op != "output":
            self.info[n] = self._info(n, args, kwargs, value)
        return value

    def _info(
        self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> NodeInfo:
        layer = str(n.target) if n.op == "call_module" else None
        shape = _shape(value)
        if n.op == "placeholder" and not n.args:
            return NodeInfo(Image(), shape, (2, 3), (), None)
        inputs = tuple(m for m in n.all_input_nodes if self.info[m].geometry != Fixed())
        if not inputs or not _holds_tensors(value):
            return NodeInfo(Fixed(), shape, None, (), layer)
        module = self.module.get_submodule(layer) if layer is not None else None
        axes = {m: self.info[m].axes for m in inputs}
        if not any(axes.values()):
            return NodeInfo(Mix(), shape, None, inputs, layer)
        geometry, out_axes = classify(Call(n, module, args, kwargs, value, axes))
        if module is not None and replaced(module) and not _as_its_class(module, args, kwargs):
            geometry = Mix()
        return NodeInfo(geometry, shape, out_axes, inputs, layer)


def replaced(module: nn.Module) -> bool:
    """Whether methods or hooks of a layer may make it different from its class in torch.

    Patches and wrappers work this way. Hooks of torch itself (weight norm, pruning) only compute
    weights.
    """
    kind = _torch_class(module)
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if any(not getattr(hook, "__module__", "").startswith("torch.") for hook in hooks):
        return True
    methods = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return any(callable(getattr(kind, name, None)) for name in vars(module)) or any(
        getattr(type(module), name) is not getattr(kind, name)
        for name in methods
        if kind is not nn.Module
    )


def _torch_class(module: nn.Module) -> type[nn.Module]:
    kinds = type(module).__mro__
    return next(kind for kind in kinds if kind.__module__.startswith("torch.nn.modules."))


def _as_its_class(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a layer whose methods or hooks are replaced answers noise as its class does."""
    kind, generator = _torch_class(module), torch.Generator().manual_seed(0)
    twin = kind.__new__(kind)
    state = {k: v for k, v in vars(module).items() if not callable(getattr(kind, k, None))}
    computed = dict(getattr(module, "parametrizations", {}))
    twin.__dict__ = state | {name: getattr(module, name) for name in computed}

    def noise(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch.randn(value.shape, generator=generator).to(value) if floating else value

    inputs = [noise(value) for value in args], {k: noise(v) for k, v in kwargs.items()}
    try:
        answer, expected = module(*inputs[0], **inputs[1]), twin.forward(*inputs[0], **inputs[1])
    except USER_CODE_ERRORS:
        return False
    return (
        isinstance(answer, Tensor)
        and answer.shape == expected.shape
        and bool(torch.isclose(answer, expected, atol=rounding(answer.dtype), equal_nan=True).all())
    )


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, Tensor):
        return None
    shape = tuple(value.shape)
    return (1, *shape[1:]) if shape[:1] == (_BATCH,) else shape


def describe(
    traced: fx.GraphModule,
    size: tuple[int, int],
    *,
    channels: int = 3,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Graph:
    """Runs a traced module on blank images of `size` (H, W) and describes every node.

    Raises:
        Untraceable: it does not run on images of this size, or returns no tensor.
    """
    images = torch.zeros(_BATCH, channels, *size, device=device, dtype=dtype)
    describer = _Describer(traced)
    try:
        with torch.inference_mode():
            result = describer.run(images)
    except USER_CODE_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise Untraceable(f"the network does not run on {size[0]}x{size[1]} ({reason})") from error
    if not isinstance(result, Tensor):
        raise Untraceable(f"the network returns {type(result).__name__}, not a tensor")
    by_name = {node.name: node for node in describer.info}
    named: dict[str, str] = traced.meta.get("layers", {})
    layers = {layer: by_name[name] for layer, name in named.items() if name in by_name}
    output = next(iter(traced.graph.find_nodes(op="output"))).args[0]
    source = next(node for node, info in describer.info.items() if info.geometry == Image())
    if not isinstance(output, fx.Node):
        raise Untraceable("the network returns something that does not depend on the image")
    return Graph(traced, describer.info, layers, source, output)
