"""Many ablations of one network over the same images, each paying only for what it changes.

`Replay` sends a batch of images through the network once, caches the values that the parts behind
the ablated layers read, and runs these parts for many ablations together, within a budget of
memory. A rehearsal on the first images finds out what to cache and how large it gets, and compares
with whole passes (`cnnviz.filters.ablation.passes`); these serve wherever the network cannot be
traced or the comparison fails. `ablation_passes` decides. Nothing touches the disk.
Shapes: N images, G ablations, V ablations in all, C channels, K classes.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from cnnviz.core.device import is_out_of_memory
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError
from cnnviz.core.graph.program import Program
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.layers import named_layers
from cnnviz.filters.ablation.base import Base, CannotReplay, run_base
from cnnviz.filters.ablation.changed_channels import changed_channel_rules
from cnnviz.filters.ablation.passes import (
    IMAGES,
    AblationPasses,
    Consume,
    Fills,
    WholePasses,
    ablated_logits,
)
from cnnviz.filters.ablation.suffix import Change, Suffix
from cnnviz.filters.channels import Channels

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

MEMORY = 1 << 28
MEMORY_OF_GPU = 1 << 33
REHEARSED = 2


def default_memory(device: torch.device) -> int:
    """Bytes for replaying: what a processor's caches still profit from, or a GPU's larger share."""
    if device.type != "cuda":
        return MEMORY
    return min(MEMORY_OF_GPU, torch.cuda.get_device_properties(device).total_memory // 4)


@dataclass(frozen=True)
class Block:
    """Consecutive ablations that change the same layers.

    Attributes:
        ablations: their places in the whole list.
        suffix: what runs behind these layers; None for the unchanged network.
        channels: (V,) the single channel of each; None where they change more than one.
        masks: node to (V, C) bool and the fill of its layer; empty with `channels`.
        fill: of the layer of `channels`.
    """

    ablations: range
    suffix: Suffix | None
    channels: Tensor | None
    masks: Mapping[fx.Node, tuple[Tensor, Tensor | None]]
    fill: Tensor | None

    def changes(self, part: slice) -> dict[fx.Node, Change]:
        """The changes that some of the block's ablations make, by start node."""
        if self.suffix is None:
            return {}
        if self.channels is not None:
            return {self.suffix.starts[0]: Change(None, self.channels[part], self.fill)}
        return {node: Change(mask[part], None, fill) for node, (mask, fill) in self.masks.items()}


class Replay:
    """Prefix once, suffixes for many ablations at a time.

    Args:
        model: the network.
        ablations: V of them.
        fills: what stands in for ablated channels.
        first: a few of the images, (N, 3, H, W), to rehearse on.
        memory: bytes for cached values and for running suffixes, together.
        images: images at a time; None to choose by `memory`.

    Raises:
        Untraceable: the network cannot be made a graph.
        CannotReplay: it can, but does not bear being run in rows.
    """

    engine = "replay"

    def __init__(
        self,
        model: "Model",
        ablations: Sequence[Channels],
        fills: Fills,
        *,
        first: Tensor,
        memory: int = MEMORY,
        images: int | None = None,
    ) -> None:
        self.reason: str | None = None
        self.model = model
        self.ablations = ablations
        self.fills = fills
        traced = trace(model.module)
        if traced.graph.find_nodes(op="call_function", target=operator.setitem):
            raise CannotReplay("it assigns to parts of a tensor")
        self.program = Program(traced)
        self._named = {node.name: node for node in self.program.nodes}
        self._outputs: dict[str, str] = traced.meta["layers"]
        self.cached: set[fx.Node] = set()
        self.blocks: list[Block] = []
        self.row_bytes: list[int] = []
        self.budget = memory // 2
        self.most = len(ablations)
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
            raise CannotReplay(f"it does not bear several ablations at once ({text})") from error
        largest = max([cached, *self.row_bytes, 1])
        self.images = images or max(1, min(IMAGES, self.budget // largest))

    def run(self, images: Tensor, consume: Consume) -> None:
        """Every ablation of these images."""
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
        """After running out of memory: smaller groups, and when these are single, fewer images."""
        if self._tried > 1:
            self.most = self._tried // 2
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
        base = run_base(self.program, self._prepared(images), self.cached)
        for block, row_bytes in zip(self.blocks, self.row_bytes, strict=True):
            size = max(1, min(self.most, self.budget // max(row_bytes * base.images, 1)))
            for start in range(max(progress[0], block.ablations.start), block.ablations.stop, size):
                group = slice(start, min(start + size, block.ablations.stop))
                self._tried = group.stop - group.start
                use(where, group, self._logits(base, block, group))
                progress[0] = group.stop

    def _logits(self, base: Base, block: Block, group: slice) -> Tensor:
        as_logits = self.model.head.logits
        if block.suffix is None:
            count = group.stop - group.start
            return as_logits(base.logits.float()).unsqueeze(1).expand(-1, count, -1)
        start = block.ablations.start
        part = slice(group.start - start, group.stop - start)
        run = block.suffix.run(base, block.changes(part), group.stop - group.start)
        return as_logits(run.logits.float())

    def _prepared(self, images: Tensor) -> Tensor:
        # Most processors and GPUs convolve faster with the channels last in memory.
        ready = images.to(self.model.device, self.model.precision.dtype)
        return ready.contiguous(memory_format=torch.channels_last)

    def _plan(self, shapes: Mapping[fx.Node, torch.Size]) -> None:
        """Groups consecutive ablations of the same layers; single channels together."""
        start = 0

        def kind(channels: Channels) -> tuple[tuple[str, ...], bool]:
            return tuple(channels), [len(numbers) for numbers in channels.values()] == [1]

        for stop in range(1, len(self.ablations) + 1):
            ended = stop == len(self.ablations)
            if ended or kind(self.ablations[stop]) != kind(self.ablations[start]):
                layers, single = kind(self.ablations[start])
                self.blocks.append(self._block(range(start, stop), layers, single, shapes))
                start = stop

    def _block(
        self,
        ablations: range,
        layers: tuple[str, ...],
        single: bool,
        shapes: Mapping[fx.Node, torch.Size],
    ) -> Block:
        if not layers:
            return Block(ablations, None, None, {}, None)
        nodes = {layer: self._nodes(layer) for layer in layers}
        suffix = Suffix(
            self.program, [n for found in nodes.values() for n in found], changed_channel_rules
        )
        own = [self.ablations[place] for place in ablations]
        if single and len(nodes[layers[0]]) == 1:
            numbers = torch.tensor([channels[layers[0]][0] for channels in own])
            fill = self.fills.get(layers[0])
            return Block(ablations, suffix, numbers.to(self.model.device), {}, fill)
        masks = {}
        for layer in layers:
            channels = shapes[nodes[layer][0]][1]
            mask = torch.zeros(len(own), channels, dtype=torch.bool)
            for row, ablation in enumerate(own):
                mask[row, list(ablation[layer])] = True
            mask = mask.to(self.model.device)
            masks.update(dict.fromkeys(nodes[layer], (mask, self.fills.get(layer))))
        return Block(ablations, suffix, None, masks, None)

    def _nodes(self, layer: str) -> list[fx.Node]:
        """Where a layer's output appears; more than once where the layer runs more than once."""
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

    def _rehearse(self, images: Tensor) -> int:
        """Finds out what to cache and how large it gets, and checks each block's outcome.

        Returns:
            Bytes of cached values per image.
        """
        base = run_base(self.program, images, None)
        self._compare(base.logits, {}, images)
        self._plan(base.shapes)
        for block in self.blocks:
            if block.suffix is None:
                self.row_bytes.append(0)
                continue
            count = min(REHEARSED, len(block.ablations))
            run = block.suffix.run(base, block.changes(slice(0, count)), count)
            self.row_bytes.append(run.peak // (count * len(images)))
            for place in range(count):
                ablation = self.ablations[block.ablations[place]]
                self._compare(run.logits[:, place], ablation, images)
        self.cached = {node for node in base.values.read if node in base.shapes}
        cached = sum(
            value.numel() * value.element_size()
            for value in (base.values[node] for node in self.cached)
            if isinstance(value, Tensor)
        )
        return cached // len(images)

    def _compare(self, logits: Tensor, channels: Channels, images: Tensor) -> None:
        expected = ablated_logits(self.model, images.contiguous(), channels, self.fills)
        logits = self.model.head.logits(logits.float())
        eps = torch.finfo(self.model.precision.dtype).eps
        tolerance = max(1e-4 if images.device.type == "cpu" else 1e-2, 16 * eps)
        if logits.shape != expected.shape or not torch.allclose(
            logits, expected, rtol=0, atol=tolerance * float(expected.abs().max())
        ):
            raise CannotReplay("a replay differs from a whole pass")


def ablation_passes(
    model: "Model",
    ablations: Sequence[Channels],
    fills: Fills,
    *,
    first: Tensor,
    memory: int = MEMORY,
    images: int | None = None,
) -> AblationPasses:
    """The quickest right way to run these ablations; see `Replay` for the arguments."""
    try:
        if model.repeat > 1:
            raise CannotReplay(f"its answers are averaged over {model.repeat} passes")
        return Replay(model, ablations, fills, first=first, memory=memory, images=images)
    except (Untraceable, CannotReplay) as reason:
        return WholePasses(model, ablations, fills, reason=str(reason), images=images)
