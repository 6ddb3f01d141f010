"""Many ablations of one network on the same images, each costing only what it changes.

`Replay` runs a batch of images through the network once, caches the values that the parts after the
ablated layers read, and runs these parts (`Suffix`) for many ablations together, within a budget of
memory. A rehearsal on the first images determines what to cache and how large it is, and compares
with whole passes; these are used if the network cannot be traced or the comparison fails.
`ablation_passes` decides. Nothing is written to disk.

`WholePasses` is the plain way: one hooked pass of the whole network for each ablation. Neither
modifies the module.
Shapes: N images, G ablations, V ablations in all, C channels, K classes.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor, fx

from cnnviz.core.device import in_batches, is_out_of_memory
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError
from cnnviz.core.graph.program import Program
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.layers import named_layers, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.filters.ablation.changed_channels import changed_channel_rules
from cnnviz.filters.ablation.suffix import Base, CannotReplay, Change, Suffix, run_base
from cnnviz.filters.channels import Channels

IMAGES = 32
MEMORY = 1 << 28
MEMORY_OF_GPU = 1 << 33
REHEARSED = 2

Consume = Callable[[slice, slice, Tensor], None]
"""Receives (images, ablations, logits (N, G, K)) of one part of a batch."""
Fills = Mapping[str, Tensor]
"""Layer name to the values that replace its channels; other layers' channels become zero.

They are numbers (C,), or the layer's output for one image (1, ...): each position gets the value of
the same position in another run (activation patching).
"""
Axes = Mapping[str, int]
"""Layer name to the axis of channels in its output; other layers return (N, C, ...)."""
CHANNELS_SECOND: Axes = {}


def ablation_passes(
    model: Model,
    ablations: Sequence[Channels],
    fills: Fills,
    *,
    first: Tensor,
    memory: int = MEMORY,
    images: int | None = None,
    axes: Axes = CHANNELS_SECOND,
) -> "Replay | WholePasses":
    """Returns the fastest correct way to run these ablations; arguments as for `Replay`.

    The empty ablation is the original network.
    """
    try:
        if model.repeat > 1:
            raise CannotReplay(f"its answers are averaged over {model.repeat} passes")
        return Replay(model, ablations, fills, first=first, memory=memory, images=images, axes=axes)
    except (Untraceable, CannotReplay) as reason:
        return WholePasses(model, ablations, fills, images or IMAGES, str(reason), axes)


def ablated_logits(
    model: Model,
    images: Tensor,
    channels: Channels,
    fills: Fills,
    axes: Axes = CHANNELS_SECOND,
) -> Tensor:
    """Returns the logits (N, K) of a whole pass with channels replaced."""
    unseen = set(channels)

    def changer(layer: str, numbers: list[int]) -> Callable[[Tensor], Tensor]:
        def change(output: Tensor) -> Tensor:
            unseen.discard(layer)
            changed, fill = output.clone(), fills.get(layer)
            axis = axes.get(layer, 1)
            last = changed.movedim(axis, -1)  # a view
            if fill is not None:
                fill = (fill if fill.dim() == 1 else fill.movedim(axis, -1)).to(output.dtype)
            last[..., numbers] = 0.0 if fill is None else fill[..., numbers]
            return changed

        return change

    changes = {layer: changer(layer, list(numbers)) for layer, numbers in channels.items()}
    with torch.inference_mode(), replace_outputs(model.module, changes):
        logits = model.logits(images)
    if unseen:
        raise CnnvizError(
            f"the output of layer '{min(unseen)}' of {model.name} cannot be replaced: hooks of the "
            "layer do not run (compiled code?)"
        )
    return logits


@dataclass
class WholePasses:
    """One hooked pass of the whole network for each ablation."""

    engine: ClassVar[str] = "full"
    model: Model
    ablations: Sequence[Channels]
    fills: Fills
    images: int = IMAGES  # at a time
    reason: str | None = None  # why not `Replay`
    axes: Axes = field(default_factory=dict)

    def run(self, images: Tensor, consume: Consume) -> None:
        """Runs every ablation on images (N, 3, H, W); passes each result on exactly once."""
        images = images.to(self.model.device)
        for number, channels in enumerate(self.ablations):

            def one(part: slice, number: int = number, channels: Channels = channels) -> None:
                logits = ablated_logits(self.model, images[part], channels, self.fills, self.axes)
                consume(part, slice(number, number + 1), logits.unsqueeze(1))

            for _done, size in in_batches(len(images), self.images, one):
                self.images = size


def default_memory(device: torch.device) -> int:
    """Bytes for replaying: little enough for a CPU's caches to help; of a GPU a larger share."""
    if device.type != "cuda":
        return MEMORY
    return min(MEMORY_OF_GPU, torch.cuda.get_device_properties(device).total_memory // 4)


@dataclass
class _Block:
    """Consecutive ablations that change the same layers."""

    ablations: range  # their places in the whole list
    suffix: Suffix | None  # what runs after these layers; None for the original network
    changes: Mapping[fx.Node, Change]  # by start node, of all ablations of the block
    row_bytes: int = 0  # memory of the suffix per image and ablation

    def part(self, part: slice) -> dict[fx.Node, Change]:
        """The changes of some of the ablations."""
        return {node: change.part(part) for node, change in self.changes.items()}


class Replay:
    """Runs the prefix once, and suffixes for many ablations at a time.

    Args:
        model: the network.
        ablations: V of them.
        fills: the values of ablated channels.
        first: some of the images, (N, 3, H, W), to rehearse on.
        memory: bytes for cached values and for running suffixes, together.
        images: images at a time; None to choose by `memory`.
        axes: the axis of channels in each layer's output.

    Raises:
        Untraceable: the network cannot be turned into a graph.
        CannotReplay: it cannot run several ablations together.
    """

    engine = "replay"
    reason = None

    def __init__(
        self,
        model: Model,
        ablations: Sequence[Channels],
        fills: Fills,
        *,
        first: Tensor,
        memory: int = MEMORY,
        images: int | None = None,
        axes: Axes = CHANNELS_SECOND,
    ) -> None:
        self.model, self.ablations, self.fills, self.axes = model, ablations, fills, axes
        traced = trace(model.module)
        if traced.graph.find_nodes(op="call_function", target=operator.setitem):
            raise CannotReplay("it assigns to parts of a tensor")
        self.program = Program(traced)
        self._named = {node.name: node for node in self.program.nodes}
        self._outputs: dict[str, str] = traced.meta["layers"]
        self._cached: set[fx.Node] = set()
        self._blocks: list[_Block] = []
        self._budget = memory // 2
        self._maximum = len(ablations)  # ablations at a time
        self._tried = 0
        try:
            with torch.inference_mode():
                cached = self._rehearse(self._prepared(first[:REHEARSED]))
        except (CannotReplay, CnnvizError):
            raise
        except USER_CODE_ERRORS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            text = str(error).strip().split("\n")[0]
            raise CannotReplay(f"it cannot run several ablations together ({text})") from error
        largest = max([cached, *(block.row_bytes for block in self._blocks), 1])
        self.images = images or max(1, min(IMAGES, self._budget // largest))

    def run(self, images: Tensor, consume: Consume) -> None:
        """Runs every ablation on images (N, 3, H, W); passes each result on exactly once."""
        waiting = [(slice(0, len(images)), 0)]
        while waiting:
            part, first = waiting.pop()
            if part.stop - part.start > self.images:
                middle = part.start + self.images
                waiting += [(slice(middle, part.stop), first), (slice(part.start, middle), first)]
                continue
            progress = [first]
            try:
                with torch.inference_mode():
                    self._run_part(images[part], part, progress, consume)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                waiting.append((part, progress[0]))
                self._shrink(part.stop - part.start)

    def _shrink(self, images: int) -> None:
        """After running out of memory: smaller groups, then fewer images."""
        if self._tried > 1:
            self._maximum = self._tried // 2
        elif images > 1:
            self.images = images // 2
        else:
            raise CnnvizError(
                "out of memory with one image and one ablation; "
                "use --device cpu or a smaller --size"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run_part(self, images: Tensor, where: slice, progress: list[int], use: Consume) -> None:
        self._tried = 0
        base = run_base(self.program, self._prepared(images), self._cached)
        for block in self._blocks:
            places, row_bytes = block.ablations, max(block.row_bytes * base.images, 1)
            size = max(1, min(self._maximum, self._budget // row_bytes))
            for start in range(max(progress[0], places.start), places.stop, size):
                group = slice(start, min(start + size, places.stop))
                self._tried = group.stop - group.start
                use(where, group, self._logits(base, block, group))
                progress[0] = group.stop

    def _logits(self, base: Base, block: _Block, group: slice) -> Tensor:
        as_logits, count = self.model.head.logits, group.stop - group.start
        if block.suffix is None:
            return as_logits(base.logits.float()).unsqueeze(1).expand(-1, count, -1)
        start = block.ablations.start
        changes = block.part(slice(group.start - start, group.stop - start))
        return as_logits(block.suffix.run(base, changes, count).logits.float())

    def _prepared(self, images: Tensor) -> Tensor:
        # Most CPUs and GPUs convolve faster with the channels last in memory.
        kind, pinned = self.model.precision.dtype, images.is_pinned()
        ready = images.to(self.model.device, kind, non_blocking=pinned)
        return ready.contiguous(memory_format=torch.channels_last)

    def _rehearse(self, images: Tensor) -> int:
        """Plans the blocks, checks their results, and finds what to cache; returns its bytes."""
        base = run_base(self.program, images, None)
        self._compare(base.logits, {}, images)

        def kind(place: int) -> tuple[tuple[str, ...], bool]:
            channels = self.ablations[place]
            return tuple(channels), [len(numbers) for numbers in channels.values()] == [1]

        for (layers, single), group in groupby(range(len(self.ablations)), kind):
            places = list(group)
            block = self._block(range(places[0], places[-1] + 1), layers, single, base.shapes)
            self._blocks.append(block)
            if block.suffix is None:
                continue
            count = min(REHEARSED, len(places))
            run = block.suffix.run(base, block.part(slice(0, count)), count)
            block.row_bytes = run.peak // (count * len(images))
            for place in range(count):
                self._compare(run.logits[:, place], self.ablations[places[place]], images)
        self._cached = {node for node in base.values.read if node in base.shapes}
        values = [base.values[node] for node in self._cached]
        total = sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
        return total // len(images)

    def _block(
        self,
        places: range,
        layers: tuple[str, ...],
        single: bool,
        shapes: Mapping[fx.Node, torch.Size],
    ) -> _Block:
        """A block of ablations of the same layers; with `single`, each changes one channel."""
        if not layers:
            return _Block(places, None, {})
        nodes = {layer: self._nodes(layer) for layer in layers}
        starts = [node for outputs in nodes.values() for node in outputs]
        suffix = Suffix(self.program, starts, changed_channel_rules)
        device = self.model.device
        is_map = len(shapes[starts[0]]) == 4 and self.axes.get(layers[0], 1) == 1
        if single and len(starts) == 1 and is_map:
            numbers = [self.ablations[place][layers[0]][0] for place in places]
            fill = self.fills.get(layers[0])
            change = Change(None, torch.tensor(numbers).to(device), fill)
            return _Block(places, suffix, {starts[0]: change})
        changes: dict[fx.Node, Change] = {}
        for layer in layers:
            axis = self.axes.get(layer, 1)
            mask = torch.zeros(len(places), shapes[nodes[layer][0]][axis], dtype=torch.bool)
            for row, place in enumerate(places):
                mask[row, list(self.ablations[place][layer])] = True
            change = Change(mask.to(device), None, self.fills.get(layer), axis)
            changes |= dict.fromkeys(nodes[layer], change)
        return _Block(places, suffix, changes)

    def _nodes(self, layer: str) -> list[fx.Node]:
        """The nodes of a layer's output; several if the layer runs more than once."""
        module = named_layers(self.model.module)[layer]
        calls = [
            node
            for node in self.program.nodes
            if node.op == "call_module"
            and self.program.traced.get_submodule(str(node.target)) is module
        ]
        if calls:
            return calls
        if layer not in self._outputs:
            raise CannotReplay(f"the output of layer '{layer}' is not in the graph")
        return [self._named[self._outputs[layer]]]

    def _compare(self, logits: Tensor, channels: Channels, images: Tensor) -> None:
        expected = ablated_logits(self.model, images.contiguous(), channels, self.fills, self.axes)
        logits = self.model.head.logits(logits.float())
        eps = torch.finfo(self.model.precision.dtype).eps
        tolerance = max(1e-4 if images.device.type == "cpu" else 1e-2, 16 * eps)
        if logits.shape != expected.shape or not torch.allclose(
            logits, expected, rtol=0, atol=tolerance * float(expected.abs().max())
        ):
            raise CannotReplay("a replay differs from a whole pass")
