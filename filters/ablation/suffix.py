"""The prefix of a network once, and what comes after an ablated layer for many ablations at once.

A traced network is split at the ablated layer. What does not depend on it (the prefix, and branches
that do not join it) is the same for every ablation; `run_base` computes it once and caches the
values that the suffix reads. `Suffix` then runs for G ablations of N images together. Each value in
it is one of two kinds:

    ChangedChannel  one channel per ablation is new, the rest is as in the base run: (N, G, ...),
                    where entry g belongs to channel channels[g]. It remains one through everything
                    that works channel by channel (batch norm, activations, pooling, adding,
                    concatenating); the first convolution or linear layer turns it into full rows by
                    adding the contribution of the change.
    FullRows        everything may be new: (N*G, ...), ablation fastest.

So silencing one of C channels costs 1/C of the layers up to and including the next convolution, and
if only pooling and a linear layer follow, it is a rank-one update of the logits.
Shapes: N images, G ablations, C channels, H W rows and columns, K classes.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from cnnviz.core.graph.program import OUT_OF_PLACE, Program, last_uses


class CannotReplay(Exception):  # noqa: N818 (a reason, not an error of the program)
    """The network has an operation that cannot run rows of several ablations together."""


class Values(dict[fx.Node, Any]):
    """Values by node that record which ones were read."""

    def __init__(self, values: dict[fx.Node, Any]) -> None:
        super().__init__(values)
        self.read: set[fx.Node] = set()

    def __getitem__(self, node: fx.Node) -> Any:
        self.read.add(node)
        return super().__getitem__(node)


@dataclass(frozen=True)
class Base:
    """The original run of N images."""

    logits: Tensor  # the network's output, (N, K)
    values: Values  # cached values of nodes
    shapes: dict[fx.Node, torch.Size]  # the shape of every tensor that a node returned
    images: int  # N


def run_base(program: Program, images: Tensor, cached: set[fx.Node] | None) -> Base:
    """Runs the whole network once; caches the values of `cached` (None: all) and non-tensors.

    Raises:
        CannotReplay: the network does not return a single tensor.
    """
    values: dict[fx.Node, Any] = {}
    shapes: dict[fx.Node, torch.Size] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node] = value.shape
        if cached is None or node in cached or not _holds_tensors(value):
            values[node] = value

    result = program.run(images, keep)
    if not isinstance(result, Tensor):
        raise CannotReplay(f"the network returns {type(result).__name__}, not a tensor")
    return Base(result, Values(values), shapes, len(images))


def _holds_tensors(value: Any) -> bool:
    """Whether a value contains a tensor, however nested."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


@dataclass
class ChangedChannel:
    """One new channel per ablation."""

    values: Tensor  # (N, G, H, W), or (N, G, B) once flattened, where a channel became B columns
    channels: Tensor  # (G,) int64, the index of each among the channels of the base value

    @property
    def flat(self) -> bool:
        """Whether the base value is (N, C*B) rather than (N, C, H, W)."""
        return self.values.dim() == 3


@dataclass
class FullRows:
    """A value of the suffix in full: a tensor (N*G, ...), a tuple of such, or a shape."""

    value: Any


@dataclass(frozen=True)
class Change:
    """What ablations do to one layer's output; either `mask` or `channel` is None."""

    mask: Tensor | None  # (G, C) bool, the channels that each ablation replaces
    channel: Tensor | None  # (G,) int64, the single channel that each ablation replaces
    # the values that replace them: (C,), or an output of one image, (1, ...); None for zero
    fill: Tensor | None
    axis: int = 1  # of channels in the output; another one than 1 only with a mask

    def part(self, part: slice) -> "Change":
        """The changes of some of the ablations."""
        mask = None if self.mask is None else self.mask[part]
        channel = None if self.channel is None else self.channel[part]
        return Change(mask, channel, self.fill, self.axis)


Rule = Callable[["Run", fx.Node], "ChangedChannel | FullRows | None"]


class Suffix:
    """The part of a network after some nodes, to run for many ablations.

    Args:
        program: the network.
        starts: the nodes whose values are changed.
        rules: evaluates nodes that read a changed channel; None for a full evaluation.
    """

    def __init__(self, program: Program, starts: Sequence[fx.Node], rules: Rule) -> None:
        self.program = program
        self.nodes = program.dependents(starts)
        self.last_uses = last_uses(self.nodes)
        self.rules = rules

    def run(self, base: Base, changes: Mapping[fx.Node, Change], count: int) -> "Run":
        """Runs `count` ablations at once; `changes` has one entry per start node.

        Raises:
            CannotReplay: an operation cannot run rows of several ablations together.
        """
        run = Run(self, base, count)
        run.execute(changes)
        return run


class Run:
    """One run of a suffix: N images, G ablations.

    Attributes:
        base: the original run.
        count: G.
        env: values of the suffix so far.
        peak: maximum bytes of its values at any one time.
        logits: (N, G, K), after `execute`.
    """

    def __init__(self, suffix: Suffix, base: Base, count: int) -> None:
        self.suffix = suffix
        self.program = suffix.program
        self.base = base
        self.count = count
        self.env: dict[fx.Node, ChangedChannel | FullRows] = {}
        self.peak = 0
        self.logits = torch.empty(0)

    def execute(self, changes: Mapping[fx.Node, Change]) -> None:
        """Runs every node of the suffix."""
        if self.suffix.nodes[-1].op != "output":  # the changed values are never used
            self.logits = self.base.logits.unsqueeze(1).expand(-1, self.count, -1)
            return
        live = 0
        sizes: dict[fx.Node, int] = {}
        for node in self.suffix.nodes:
            if self.env.keys().isdisjoint(node.all_input_nodes):
                value = self._change(node, changes[node])
            else:
                value = self._evaluate(node)
                if node in changes:
                    self.env[node] = value
                    value = self._change(node, changes[node])
            self.env[node] = value
            sizes[node] = _bytes(value)
            live += sizes[node]
            self.peak = max(self.peak, live)
            for done in self.suffix.last_uses.get(node, ()):
                del self.env[done]
                live -= sizes[done]
        result = self.rows(self.suffix.nodes[-1])
        self.logits = torch.unflatten(result, 0, (self.base.images, self.count))

    def _evaluate(self, node: fx.Node) -> ChangedChannel | FullRows:
        if any(isinstance(self.env.get(read), ChangedChannel) for read in node.all_input_nodes):
            value = self.suffix.rules(self, node)
            if value is not None:
                return value
        merged = self._merged(node)
        return FullRows(self._computed(node) if merged is None else merged)

    def _computed(self, node: fx.Node) -> Any:
        return self.program.operations[node].run(self.rows)

    def _merged(self, node: fx.Node) -> Tensor | None:
        """Arithmetic on rows and a base value, which is broadcast instead of repeated."""
        function = OUT_OF_PLACE.get(node.target, node.target)
        if function not in (operator.add, operator.mul, torch.add, torch.mul) or node.kwargs:
            return None
        first, second = node.args
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
            return None
        new, old = (first, second) if first in self.env else (second, first)
        if old in self.env or old not in self.program.on_image:
            return None
        rows, value = self.rows(new), self.base.values[old]
        if not isinstance(value, Tensor) or value.shape[1:] != rows.shape[1:]:
            return None
        parts = torch.unflatten(rows, 0, (self.base.images, self.count))
        merged: Tensor = function(parts, value.unsqueeze(1))
        return merged.flatten(0, 1)

    def _change(self, node: fx.Node, change: Change) -> ChangedChannel | FullRows:
        batch = (self.base.images, self.count)
        if change.channel is not None:
            value = self.base.values[node]
            new = value.new_zeros(*batch, *value.shape[2:])
            if change.fill is not None:
                fill = change.fill.to(new.dtype).view(1, -1, *(change.fill.shape[2:] or (1, 1)))
                new += fill[:, change.channel]
            return ChangedChannel(new, change.channel)
        assert change.mask is not None  # noqa: S101 (a change has a channel or a mask)
        old: Tensor = self.rows(node)
        rows = old.clone() if node in self.env else old
        parts = torch.unflatten(rows, 0, batch).movedim(change.axis + 1, -1)  # (N, G, ..., C)
        mask = torch.unflatten(change.mask, 0, (-1, *[1] * (parts.dim() - 3)))
        if change.fill is None:
            parts.masked_fill_(mask, 0)
        else:
            fill = change.fill if change.fill.dim() == 1 else change.fill.movedim(change.axis, -1)
            parts.copy_(torch.where(mask, fill.to(rows.dtype), parts))
        return FullRows(rows)

    def rows(self, node: fx.Node) -> Any:
        """Returns the value of any node in full, for N*G rows."""
        value = self.env.get(node)
        if isinstance(value, FullRows):
            return value.value
        if value is None:
            return self._repeated(node, self.base.values[node])
        base = self.base.values[node]
        if value.flat:
            base = torch.unflatten(base, 1, (-1, value.values.shape[2]))
        full = _repeat(base, self.count)
        parts = torch.unflatten(full, 0, (self.base.images, self.count))
        parts[:, torch.arange(self.count, device=full.device), value.channels] = value.values
        return full.flatten(1) if value.flat else full

    def _repeated(self, node: fx.Node, value: Any) -> Any:
        """A base value with each image's part repeated for every ablation."""
        if not _holds_tensors(value):
            return self._resized(node, value)
        if node not in self.program.on_image:
            return value
        return pytree.tree_map(self._repeated_tensor, value)

    def _repeated_tensor(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if value.shape[0] == self.base.images:
            return _repeat(value, self.count)
        if value.shape[0] % self.base.images:
            raise CannotReplay(f"a value of shape {tuple(value.shape)} has no batch axis")
        parts = torch.unflatten(value, 0, (self.base.images, -1))
        return _repeat(parts, self.count).flatten(0, 1)

    def _resized(self, node: fx.Node, value: Any) -> Any:
        """A shape, or arithmetic on shapes, recomputed for N*G images."""
        if node not in self.program.on_image:
            return value
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source in self.base.shapes:
            if node.target not in ("size", getattr):
                raise CannotReplay(f"{node.target} reads numbers out of a tensor")
            length = self.base.shapes[source][0] * self.count
            shape = torch.Size([length, *self.base.shapes[source][1:]])
            return _shape_answer(node, shape)
        return self._computed(node)


def _repeat(value: Tensor, count: int) -> Tensor:
    """Copies (N, ...) to (N*count, ...), each entry `count` times in a row.

    Maps in channels-last layout keep it.
    """
    if is_channels_last(value):
        rows = _repeat(value.permute(0, 2, 3, 1), count)
        return rows.permute(0, 3, 1, 2)
    wide = value.unsqueeze(1).expand(-1, count, *value.shape[1:])
    return wide.clone(memory_format=torch.contiguous_format).flatten(0, 1)


def is_channels_last(value: Tensor) -> bool:
    """Whether maps (N, C, H, W) are in memory as (N, H, W, C), and not also as (N, C, H, W)."""
    return (
        value.dim() == 4
        and value.is_contiguous(memory_format=torch.channels_last)
        and not value.is_contiguous()
    )


def _shape_answer(node: fx.Node, shape: torch.Size) -> Any:
    """The result of `size()`, `size(dim)` or `shape` for a tensor of that shape."""
    if node.target is getattr and node.args[1] == "shape":
        return shape
    if node.target == "size":
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return shape if dim is None else shape[dim]  # type: ignore[index]
    raise CannotReplay(f"the attribute '{node.args[1]}' of a tensor")


def shape_of_changed(run: Run, node: fx.Node) -> FullRows:
    """The shape of a changed value, or one of its sizes, as that of its rows."""
    source = node.args[0]
    assert isinstance(source, fx.Node)  # noqa: S101 (called only for nodes that read one)
    shape = run.base.shapes[source]
    return FullRows(_shape_answer(node, torch.Size([shape[0] * run.count, *shape[1:]])))


def _bytes(value: ChangedChannel | FullRows) -> int:
    leaves = pytree.tree_leaves(value.values if isinstance(value, ChangedChannel) else value.value)
    return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
