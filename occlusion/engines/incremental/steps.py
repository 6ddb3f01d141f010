"""A traced network as a list of steps that can run on windows as well as on whole maps.

Each operation of the network's program becomes a `Step`, which also knows how it treats positions.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.graph.call import Call
from cnnviz.core.graph.geometry import Fixed, Image, Merge, Mix, Pointwise, Window
from cnnviz.core.graph.program import FREE, RESHAPES, Operation, Program, name_of
from cnnviz.core.graph.reach import extents
from cnnviz.core.graph.trace import Graph, NodeInfo, Untraceable
from cnnviz.occlusion.engines.incremental.sliding import Sliding, sliding


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


@dataclass(eq=False)
class Step(Operation):
    """An operation that can run on windows.

    Attributes:
        info: what is known about its node.
        kind: how it treats positions.
        free: it only looks at its input in another way.
        sliding: the operation on cut windows, for those that slide.
        cached: the unchanged image's map is needed later, to cut windows from it.
    """

    info: NodeInfo
    kind: Kind
    free: bool
    sliding: Sliding | None = None
    cached: bool = False


def compile_steps(graph: Graph, layer: str | None = None) -> list[Step]:
    """The steps of a described network, in order.

    Args:
        graph: folded, if it should be fast.
        layer: a layer whose output is looked at too.

    Raises:
        Untraceable: it has an operation on splits of maps that windows cannot follow.
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
    return sliding(call, info.geometry, (sizes[info.inputs[0]], sizes[node]))


def _needed(graph: Graph, step: Step) -> list[fx.Node]:
    """Nodes whose unchanged map this step may cut from."""
    if step.kind is Kind.CONCAT:
        return [step.node]
    if step.kind in (Kind.JOIN, Kind.SLIDE, Kind.MEAN, Kind.MIX):
        return [m for m in step.info.inputs if graph.info[m].axes is not None]
    return []


def macs_of(step: Step, graph: Graph) -> float:
    """Multiply-accumulates per output position of the step's map (of all, where it has none)."""
    if step.sliding is not None:
        return step.sliding.macs
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
