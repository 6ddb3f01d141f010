"""A traced network as a program whose intermediate values can be kept.

Networks overwrite activations in place to save memory (`ReLU(inplace=True)`, `x += y`). Here no
operation modifies its inputs, so the values of one run can be kept and used for other runs; or, on
request, an operation overwrites only inputs that nothing else reads.
Values that depend only on parameters are computed once.

    program = Program(trace(model.module))
    logits = program.run(images, lambda node, value: ...)    # called with every value
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
# `FREE` operations never copy; the others of `VIEWS` may return their input.
FREE = RESHAPES | {
    "getitem", "chunk", "split", "permute", "transpose", "swapaxes", "unsqueeze", "detach",
    "expand", "squeeze",
}  # fmt: skip
VIEWS = FREE | {"contiguous", "to", "float", "type_as", "Identity"}
Axes = tuple[int, int]


@dataclass(eq=False)
class Operation:
    """One node, ready to run."""

    node: fx.Node
    call: Callable[..., Any]  # the function to call with evaluated arguments
    done: tuple[fx.Node, ...]  # nodes whose values are not read after this one
    constant: bool  # the value depends only on parameters

    def run(self, value_of: Callable[[fx.Node], Any]) -> Any:
        """Evaluates the operation; `value_of` returns the value of an input node."""
        node = self.node
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), value_of)
        return self.call(*args, **kwargs)


@dataclass(frozen=True)
class Call:
    """One operation with its arguments and result, as the rules of geometry inspect it."""

    node: fx.Node
    module: nn.Module | None  # the module that it calls, if any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    # rows and columns of each input that depends on the image (None: it has none)
    axes: dict[fx.Node, Axes | None]

    @property
    def name(self) -> str:
        """See `target_name`."""
        return target_name(self.node.target)

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """Returns an argument by position or by name."""
        if len(self.args) > index:
            return self.args[index]
        return self.kwargs.get(name, default)

    @property
    def map(self) -> Tensor:
        """The first argument."""
        first: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return first

    @property
    def map_axes(self) -> Axes | None:
        """Rows and columns of the first argument."""
        first = self.node.args[0] if self.node.args else next(iter(self.node.kwargs.values()))
        return self.axes.get(first) if isinstance(first, fx.Node) else None


class Program:
    """A traced network as operations in order, none of which overwrites a value that is read later.

    Args:
        traced: the network.
        reuse: operations may overwrite an input that nothing else reads; values are then valid
            only until the next operation has run.

    Attributes:
        nodes: all nodes in order; the last one is the output.
        on_image: nodes that depend on the image.
        operations: node to operation, in order.
    """

    def __init__(self, traced: fx.GraphModule, *, reuse: bool = False) -> None:
        self.traced = traced
        self.nodes = list(traced.graph.nodes)
        self.on_image = set(self.dependents([node for node in self.nodes if is_image(node)]))
        done = last_uses(self.nodes)
        self.operations: dict[fx.Node, Operation] = {}
        for node in self.nodes:
            dead = tuple(done.get(node, ()))
            call = self._call(node, reuse=reuse and self._may_overwrite(node, dead))
            operation = Operation(node, call, dead, constant=node not in self.on_image)
            if operation.constant and node.op != "output":
                operation.call = self._evaluated(operation)
            self.operations[node] = operation

    def dependents(self, starts: Sequence[fx.Node]) -> list[fx.Node]:
        """Returns the nodes that depend on any of `starts`, and `starts`, in execution order."""
        reached = set(starts)
        for node in self.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached]

    def run(self, images: Tensor, keep: Callable[[fx.Node, Any], None]) -> Any:
        """Runs the network on a batch; `keep` is called with the value of every node."""
        return run_operations(self.operations.values(), images, keep)[self.nodes[-1]]

    def _evaluated(self, operation: Operation) -> Callable[..., Any]:
        with torch.no_grad():
            value = operation.run(lambda node: self.operations[node].call())
        return lambda *_args, **_kwargs: value

    def _may_overwrite(self, node: fx.Node, done: Sequence[fx.Node]) -> bool:
        """Whether the node is the last to read its only input, and this is not a view."""
        inputs = [read for read in node.all_input_nodes if read in self.on_image]
        if len(inputs) != 1 or is_image(inputs[0]) or inputs[0] not in done:
            return False
        return name_of(self.traced, inputs[0]) not in VIEWS

    def _call(self, node: fx.Node, *, reuse: bool) -> Callable[..., Any]:
        """The node's function; only with `reuse` may it overwrite its input."""
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
    """The module, or a copy with the same parameters, whose `inplace` flag equals `reuse`."""
    if getattr(module, "inplace", None) is not (not reuse):
        return module
    twin = copy.copy(module)
    twin.__dict__["inplace"] = reuse
    return twin


def _method(name: str) -> Callable[..., Any]:
    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        # Values may be in channels-last layout, which only `reshape` can flatten.
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
    """Runs operations in order on a batch; `keep` is called with each value before the next runs.

    Returns:
        The values that are not in any operation's `done`.
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
    """Whether the node is the network's only required input."""
    return node.op == "placeholder" and not node.args


def name_of(traced: nn.Module, node: fx.Node) -> str:
    """Names what a node calls: `relu` for any spelling of the function, `ReLU` for the module."""
    if node.op == "call_module":
        kind = type(traced.get_submodule(str(node.target))).__name__
        return {"Flatten": "flatten", "Unflatten": "unflatten"}.get(kind, kind)
    return target_name(node.target)


def target_name(target: Any) -> str:
    """Normalises a name: `relu` for torch.relu, F.relu, Tensor.relu_, operator and aten."""
    spelled = _spelled(target)
    return spelled if spelled.startswith("_") else spelled.rstrip("_")


def writes(target: Any) -> bool:
    """Whether a function or method overwrites its first argument, by its name."""
    spelled = _spelled(target)
    return spelled.endswith("_") and not spelled.endswith("__")


def _spelled(target: Any) -> str:
    packet = getattr(target, "overloadpacket", target)
    return target if isinstance(target, str) else getattr(packet, "__name__", str(target))


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Maps each of `nodes` to the nodes whose values none of them reads afterwards."""
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
