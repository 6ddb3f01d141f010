"""A traced network as a program whose values may be kept.

Networks overwrite their own activations to save memory (`ReLU(inplace=True)`, `x += y`). Here every
step leaves what it reads as it was, so the values of one untouched run can be kept and read again
by whatever is run behind an ablated layer. Shapes: N images, K classes.
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

IN_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class CannotReplay(Exception):  # noqa: N818 (the reason why, not an error of the program)
    """The network does something that rows of several ablations cannot go through together."""


class Program:
    """A traced network as steps that never write into a value that somebody else may read.

    Raises:
        CannotReplay: it has steps that only exist to write.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self.nodes = list(traced.graph.nodes)
        self.modules = {
            str(n.target): _out_of_place(traced.get_submodule(str(n.target)))
            for n in self.nodes
            if n.op == "call_module"
        }
        if any(node.target is operator.setitem for node in self.nodes):
            raise CannotReplay("it assigns to parts of a tensor")
        self.traced = traced
        self.on_image: set[fx.Node] = set()
        for node in self.nodes:
            is_image = node.op == "placeholder" and not node.args
            if is_image or not self.on_image.isdisjoint(node.all_input_nodes):
                self.on_image.add(node)

    def behind(self, starts: Sequence[fx.Node]) -> list[fx.Node]:
        """The nodes that depend on any of `starts`, these included, in order of execution."""
        reached = set(starts)
        for node in self.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return [node for node in self.nodes if node in reached]

    def call(self, node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Runs one node on evaluated arguments, leaving these as they are."""
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            first, *rest = _unshared(node, args, kwargs)
            # Values may lie channels last, which only `reshape` can flatten.
            shapes = node.target == "view" and not any(isinstance(a, torch.dtype) for a in rest)
            return getattr(first, "reshape" if shapes else str(node.target))(*rest, **kwargs)
        if node.op != "call_function" or not callable(node.target):
            raise CannotReplay(f"a step of kind {node.op}")
        target = IN_PLACE.get(node.target, node.target)
        return target(*_unshared(node, args, kwargs), **kwargs)

    def fetch(self, node: fx.Node) -> Any:
        """The value of a `get_attr` node."""
        value: Any = self.traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value


def _out_of_place(module: nn.Module) -> nn.Module:
    """The module itself, or a copy sharing its parameters where it would overwrite its input."""
    if getattr(module, "inplace", False) is not True:
        return module
    twin = copy.copy(module)
    twin.inplace = False  # type: ignore[assignment]
    return twin


def _unshared(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """The arguments, the tensors among them copied where the step may write into them."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    writes = name.endswith("_") and not name.endswith("__")
    writes = writes or kwargs.get("inplace") is True or any(arg is True for arg in args)
    return [a.clone() if writes and isinstance(a, Tensor) else a for a in args]


class Values(Mapping[fx.Node, Any]):
    """Base values by node, with a note of which ones were read."""

    def __init__(self, values: dict[fx.Node, Any]) -> None:
        self.values_by_node = values
        self.read: set[fx.Node] = set()

    def __getitem__(self, node: fx.Node) -> Any:
        self.read.add(node)
        return self.values_by_node[node]

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.values_by_node)

    def __len__(self) -> int:
        return len(self.values_by_node)


@dataclass(frozen=True)
class Base:
    """The untouched run of N images.

    Attributes:
        logits: what the network returned, (N, K).
        values: kept values of nodes.
        shapes: the shape of every tensor that a node put out.
        images: N.
    """

    logits: Tensor
    values: Values
    shapes: dict[fx.Node, torch.Size]
    images: int


def run_base(program: Program, images: Tensor, keep: set[fx.Node] | None) -> Base:
    """Runs the whole network once; keeps the values of `keep` (None: all), and all that are small.

    Raises:
        CannotReplay: the network returns something other than one tensor.
    """
    finished = last_uses(program.nodes)
    env: dict[fx.Node, Any] = {}
    kept: dict[fx.Node, Any] = {}
    shapes: dict[fx.Node, torch.Size] = {}
    for node in program.nodes:
        if node.op == "placeholder":
            value = node.args[0] if node.args else images
        elif node.op == "get_attr":
            value = program.fetch(node)
        elif node.op == "output":
            value = fx.node.map_arg(node.args[0], env.__getitem__)
        else:
            args = fx.node.map_arg(node.args, env.__getitem__)
            value = program.call(node, args, fx.node.map_arg(node.kwargs, env.__getitem__))
        env[node] = value
        if isinstance(value, Tensor):
            shapes[node] = value.shape
        if keep is None or node in keep or not holds_tensors(value):
            kept[node] = value
        for done in finished.get(node, ()):
            del env[done]
    result = env[program.nodes[-1]]
    if not isinstance(result, Tensor):
        raise CannotReplay(f"the network returns {type(result).__name__}, not a tensor")
    return Base(result, Values(kept), shapes, len(images))


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in it, however nested."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


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
