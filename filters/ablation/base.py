"""The unchanged run of a batch, whose values are read by what runs behind an ablated layer.

Shapes: N images, K classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from cnnviz.core.graph.program import Program


class CannotReplay(Exception):  # noqa: N818 (the reason why, not an error of the program)
    """The network does something that rows of several ablations cannot go through together."""


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
    """The unchanged run of N images.

    Attributes:
        logits: what the network returned, (N, K).
        values: cached values of nodes.
        shapes: the shape of every tensor that a node put out.
        images: N.
    """

    logits: Tensor
    values: Values
    shapes: dict[fx.Node, torch.Size]
    images: int


def run_base(program: Program, images: Tensor, cached: set[fx.Node] | None) -> Base:
    """Runs the whole network once; caches the values of `cached` (None: all), and what is small.

    Raises:
        CannotReplay: the network returns something other than one tensor.
    """
    values: dict[fx.Node, Any] = {}
    shapes: dict[fx.Node, torch.Size] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = value.shape
        if cached is None or node in cached or not holds_tensors(value):
            values[node] = value

    result = program.run(images, keep)
    if not isinstance(result, Tensor):
        raise CannotReplay(f"the network returns {type(result).__name__}, not a tensor")
    return Base(result, Values(values), shapes, len(images))


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in it, however nested."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
