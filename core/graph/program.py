"""A traced network as a program whose values may be kept.

Networks overwrite their own activations to save memory (`ReLU(inplace=True)`, `x += y`). Here every
operation leaves what it reads as it was, so the values of one run can be kept and read again by
whatever is run from them; or, where asked, it overwrites just what nobody else reads.
What depends on parameters alone is computed once.

    program = Program(trace(model.module))
    logits = program.run(images, lambda node, value: ...)    # shown every value before it is gone
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten"))
# These never move a number; those behind them may also hand on their input itself.
FREE = RESHAPES | {
    "getitem", "chunk", "split", "permute", "transpose", "swapaxes", "unsqueeze", "detach",
    "expand", "squeeze",
}  # fmt: skip
VIEWS = FREE | {"contiguous", "to", "float", "type_as", "Identity"}


@dataclass(eq=False)
class Operation:
    """One node, ready to run.

    Attributes:
        node: the node.
        call: what it does, on evaluated arguments.
        done: nodes whose values nobody needs behind it.
        constant: its value depends on parameters alone.
    """

    node: fx.Node
    call: Callable[..., Any]
    done: tuple[fx.Node, ...]
    constant: bool

    def run(self, value_of: Callable[[fx.Node], Any]) -> Any:
        """The operation on these values of its inputs."""
        node = self.node
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
        return self.call(*args, **kwargs)


class Program:
    """A traced network as operations in order, none of which writes where somebody else reads.

    Args:
        traced: the network.
        reuse: operations overwrite their input where nobody else reads it; values are then gone
            once the next operation has run.

    Attributes:
        nodes: all of them in order; the last one is the output.
        on_image: those that depend on the image.
        operations: node to operation, in order.
    """

    def __init__(self, traced: fx.GraphModule, *, reuse: bool = False) -> None:
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.on_image = set(self.behind([node for node in self.nodes if is_image(node)]))
        done = last_uses(self.nodes)
        self.operations: dict[fx.Node, Operation] = {}
        for node in self.nodes:
            dead = tuple(done.get(node, ()))
            call = self._call(node, reuse=reuse and self._may_overwrite(node, dead))
            operation = Operation(node, call, dead, constant=node not in self.on_image)
            if operation.constant and node.op != "output":
                operation.call = self._evaluated(operation)
            self.operations[node] = operation

    def behind(self, starts: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes that depend on any of `starts`, these included, in order of execution."""
        reached = set(starts)
        for node in self.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached]

    def run(self, images: Tensor, keep: Callable[[fx.Node, Any], None]) -> Any:
        """What the network returns for a batch; `keep` is shown the value of every node."""
        return run_operations(self.operations.values(), images, keep)[self.nodes[-1]]

    def _evaluated(self, operation: Operation) -> Callable[..., Any]:
        with torch.no_grad():
            value = operation.run(lambda node: self.operations[node].call())
        return lambda *_args, **_kwargs: value

    def _may_overwrite(self, node: fx.Node, done: Sequence[fx.Node]) -> bool:
        """It is the last to read its one input, which is a tensor of its own and no view."""
        inputs = [read for read in node.all_input_nodes if read in self.on_image]
        if len(inputs) != 1 or is_image(inputs[0]) or inputs[0] not in done:
            return False
        return name_of(self.traced, inputs[0]) not in VIEWS

    def _call(self, node: fx.Node, *, reuse: bool) -> Callable[..., Any]:
        """The node's call; with `reuse` it may overwrite its input, else it must not."""
        target: Any = node.target
        if node.op == "placeholder":
            return lambda *default: default[0] if default else None
        if node.op == "get_attr":
            return lambda: operator.attrgetter(target)(self.traced)
        if node.op == "call_module":
            return _module(self.traced.get_submodule(target), reuse)
        if node.op == "output":
            return lambda value: value
        call = _method(target) if node.op == "call_method" else _function(target, reuse)
        return _on_a_copy(call) if writes(target) and not reuse else call


def _module(module: nn.Module, reuse: bool) -> nn.Module:
    """The module, or a copy with the same parameters, that overwrites its input or does not."""
    if getattr(module, "inplace", None) is not (not reuse):
        return module
    twin = copy.copy(module)
    twin.__dict__["inplace"] = reuse
    return twin


def _method(name: str) -> Callable[..., Any]:
    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        # Values may lie channels last, which only `reshape` can flatten.
        shapes = name == "view" and not any(isinstance(a, torch.dtype) for a in args)
        return getattr(value, "reshape" if shapes else name)(*args, **kwargs)

    return call


def _function(target: Any, reuse: bool) -> Callable[..., Any]:
    function: Callable[..., Any] = OUT_OF_PLACE.get(target, target)
    try:
        signature = inspect.signature(function)
    except ValueError:  # built into torch: has no Python signature
        return function
    if "inplace" not in signature.parameters:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["inplace"] = reuse
        return function(*bound.args, **bound.kwargs)

    return call


def _on_a_copy(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value, *args, **kwargs: call(value.clone(), *args, **kwargs)


def run_operations(
    operations: Iterable[Operation], images: Tensor, keep: Callable[[fx.Node, Any], None]
) -> dict[fx.Node, Any]:
    """Runs them in order on a batch; `keep` is shown each value before the next operation runs.

    Returns:
        The values that none of them was the last to read.
    """
    values: dict[fx.Node, Any] = {}
    for operation in operations:
        node = operation.node
        values[node] = images if is_image(node) else operation.run(values.__getitem__)
        keep(node, values[node])
        for dead in operation.done:
            del values[dead]
    return values


def is_image(node: fx.Node) -> bool:
    """Whether it is the network's one required input."""
    return node.op == "placeholder" and not node.args


def name_of(traced: nn.Module, node: fx.Node) -> str:
    """What a node calls: `relu` for every spelling of the function, `ReLU` for the module."""
    if node.op == "call_module":
        kind = type(traced.get_submodule(str(node.target))).__name__
        return {"Flatten": "flatten", "Unflatten": "unflatten"}.get(kind, kind)
    return target_name(node.target)


def target_name(target: Any) -> str:
    """`relu` for torch.relu, F.relu, Tensor.relu_, operator and aten spellings alike."""
    spelled = _spelled(target)
    return spelled if spelled.startswith("_") else spelled.rstrip("_")


def writes(target: Any) -> bool:
    """Whether a function or method says by its name that it overwrites its first argument."""
    spelled = _spelled(target)
    return spelled.endswith("_") and not spelled.endswith("__")


def _spelled(target: Any) -> str:
    packet = getattr(target, "overloadpacket", target)
    return target if isinstance(target, str) else getattr(packet, "__name__", str(target))


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For each of `nodes`, the values among theirs that none of them reads after it."""
    inside = set(nodes)
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for read in node.all_input_nodes:
            if read in inside:
                last[read] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for read, node in last.items():
        if node is not nodes[-1]:
            uses.setdefault(node, []).append(read)
    return uses
