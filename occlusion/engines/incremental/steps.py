"""A traced network as a list of steps that can run on windows as well as on whole maps.

Each node becomes a `Step` with its kind, its call, what it may overwrite and what is no longer
needed behind it. Operations that overwrite their input do so only where nobody else reads it.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.graph.call import Call
from cnnviz.core.graph.geometry import Fixed, Image, Merge, Mix, Pointwise, Window
from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import Graph, NodeInfo, Untraceable
from cnnviz.occlusion.engines.incremental.sliding import Sliding, sliding


class Kind(Enum):
    """How a step treats places."""

    SOURCE = auto()
    FIXED = auto()
    LOCAL = auto()
    RESHAPE = auto()
    JOIN = auto()
    CONCAT = auto()
    SLIDE = auto()
    MEAN = auto()
    MIX = auto()


_RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten"))
_FREE = _RESHAPES | {
    "getitem", "chunk", "split", "permute", "transpose", "swapaxes", "unsqueeze", "detach",
    "expand", "squeeze",
}  # fmt: skip
_VIEWS = _FREE | {"contiguous", "to", "float", "type_as"}
_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(eq=False)
class Step:
    """One node, ready to run.

    Attributes:
        node: the node.
        place: what is known about it.
        kind: how it treats places.
        call: the operation itself, on evaluated arguments.
        sliding: the operation on cut windows, for those that slide.
        done: nodes whose values nobody needs behind this step.
        keep: the untouched image's map is needed later, to cut windows from it.
        constant: its value depends on parameters alone.
        free: it only looks at its input in another way.
    """

    node: fx.Node
    place: NodeInfo
    kind: Kind
    call: Callable[..., Any]
    sliding: Sliding | None = None
    done: tuple[fx.Node, ...] = ()
    keep: bool = False
    constant: bool = False
    free: bool = False


def compile_steps(graph: Graph, layer: str | None = None) -> list[Step]:
    """The steps of a described network, in order.

    Args:
        graph: folded, if it should be fast.
        layer: a layer whose output is looked at too.

    Raises:
        Untraceable: it has an operation on splits of maps that windows cannot follow.
    """
    pure = _pure_values(graph)
    last = _last_uses(graph)
    steps = {node: _step(graph, node, pure, last) for node in graph.places}
    for step in steps.values():
        for needed in _needed(graph, step):
            steps[needed].keep = True
    if layer is not None:
        steps[graph.layers[layer]].keep = True
    for step in steps.values():
        if step.keep and step.place.shape is None:
            raise Untraceable(f"'{step.node.name}' splits a map in a way that is not supported")
    return list(steps.values())


def _pure_values(graph: Graph) -> dict[fx.Node, Any]:
    """Values that depend on parameters alone: not on the image, nor on how many there are."""
    values: dict[fx.Node, Any] = {}
    for node, place in graph.places.items():
        if place.geometry != Fixed() or any(m not in values for m in node.all_input_nodes):
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        values[node] = _operation(graph, node, reuse=False)(*args, **kwargs)
    return values


def _last_uses(graph: Graph) -> dict[fx.Node, fx.Node]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.places:
        for used in (*node.all_input_nodes, node):
            last[used] = node
    last.pop(graph.output, None)
    return last


def _step(
    graph: Graph, node: fx.Node, pure: dict[fx.Node, Any], last: dict[fx.Node, fx.Node]
) -> Step:
    place = graph.places[node]
    done = tuple(m for m in dict.fromkeys((*node.all_input_nodes, node)) if last.get(m) is node)
    if node in pure:
        value = pure[node]
        return Step(
            node, place, Kind.FIXED, lambda *_args, **_kwargs: value, done=done, constant=True
        )
    reuse = len(place.inputs) == 1 and place.inputs[0] in done and _fresh(graph, place.inputs[0])
    call = _operation(graph, node, reuse=reuse)
    kind = _kind(graph, node, place)
    step = Step(node, place, kind, call, done=done, free=_name(graph, node) in _FREE)
    if kind is Kind.SLIDE:
        step.sliding = _sliding(graph, node, place, pure)
        if step.sliding.local:
            step.kind = Kind.LOCAL
    return step


def _name(graph: Graph, node: fx.Node) -> str:
    if node.op == "call_module":
        kind = type(graph.module.get_submodule(str(node.target))).__name__
        return {"Flatten": "flatten", "Unflatten": "unflatten"}.get(kind, kind)
    return Call(node, None, (), {}, None, {}).name


def _kind(graph: Graph, node: fx.Node, place: NodeInfo) -> Kind:  # noqa: PLR0911
    name = _name(graph, node)
    match place.geometry:
        case Image():
            return Kind.SOURCE
        case Fixed():
            return Kind.FIXED
        case Pointwise():
            return Kind.RESHAPE if name in _RESHAPES else Kind.LOCAL
        case Merge():
            flat = place.shape is not None and len(place.shape) == 4
            return (
                Kind.CONCAT if name.startswith("concat") or (name == "cat" and flat) else Kind.JOIN
            )
        case Window(transposed=False):
            return Kind.SLIDE
        case Mix(mean=True):
            return Kind.MEAN if len(place.inputs) == 1 else Kind.MIX
        case _:
            return Kind.MIX


def _sliding(graph: Graph, node: fx.Node, place: NodeInfo, pure: dict[fx.Node, Any]) -> Sliding:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), pure.get)
    module = graph.module.get_submodule(place.layer) if place.layer is not None else None
    sizes = extents(graph)
    assert isinstance(place.geometry, Window)  # noqa: S101
    call = Call(node, module, args, kwargs, None, {})
    return sliding(call, place.geometry, (sizes[place.inputs[0]], sizes[node]))


def _needed(graph: Graph, step: Step) -> list[fx.Node]:
    """Nodes whose untouched map this step may cut from."""
    if step.kind is Kind.CONCAT:
        return [step.node]
    if step.kind in (Kind.JOIN, Kind.SLIDE, Kind.MEAN, Kind.MIX):
        return [m for m in step.place.inputs if graph.places[m].axes is not None]
    return []


def _fresh(graph: Graph, node: fx.Node) -> bool:
    """Its value is a tensor of its own, not a view of another one."""
    geometry = graph.places[node].geometry
    return not isinstance(geometry, Image | Fixed) and _name(graph, node) not in _VIEWS | {
        "Identity"
    }


def _operation(graph: Graph, node: fx.Node, *, reuse: bool) -> Callable[..., Any]:
    """The node's call; with `reuse` it may overwrite its input, else it must not."""
    target: Any = node.target
    if node.op == "placeholder":
        return lambda *default: default[0] if default else None
    if node.op == "get_attr":
        return lambda: operator.attrgetter(str(target))(graph.module)
    if node.op == "call_module":
        module = graph.module.get_submodule(str(target))
        if hasattr(module, "inplace"):
            module = copy.copy(module)
            module.__dict__["inplace"] = reuse
        return module
    if node.op == "call_method":
        return _method(str(target), reuse)
    if target in _OUT_OF_PLACE:
        return _OUT_OF_PLACE[target]
    return _function(target, reuse)


def _method(name: str, reuse: bool) -> Callable[..., Any]:
    in_place = name.endswith("_") and not name.startswith("_")

    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value.clone() if in_place and not reuse else value, name)(*args, **kwargs)

    return call


def _function(target: Callable[..., Any], reuse: bool) -> Callable[..., Any]:
    try:
        signature = inspect.signature(target)
    except ValueError:  # built into torch: has no Python signature
        name = getattr(target, "__name__", "")
        if not name.endswith("_") or name.startswith("_") or reuse:
            return target
        return lambda value, *args, **kwargs: target(value.clone(), *args, **kwargs)
    if "inplace" not in signature.parameters:
        return target

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["inplace"] = reuse
        return target(*bound.args, **bound.kwargs)

    return call


def macs_of(step: Step, graph: Graph) -> float:
    """Multiply-accumulates per output position of the step's map (of all, where it has none)."""
    if step.sliding is not None:
        return step.sliding.macs
    module = graph.module.get_submodule(step.place.layer) if step.place.layer else None
    shapes = [graph.places[node].shape for node in (*step.place.inputs, step.node)]
    if isinstance(module, nn.MultiheadAttention) and shapes[0] is not None:
        weights = sum(p.numel() for p in module.parameters() if isinstance(p, Tensor))
        return float(weights * shapes[0][1])
    if not isinstance(module, nn.Linear | nn.Conv2d):
        return 0.0
    tokens = 1.0
    if isinstance(module, nn.Linear) and step.place.axes is None and shapes[-1] is not None:
        tokens = torch.Size(shapes[-1]).numel() / module.out_features
    return tokens * module.weight.numel()
