"""The network as the engines run it: a folded channels-last copy, and one layer's sums if wanted.

Preparing is done once per experiment, whatever the number of images. A network that cannot be
traced runs as it is (a channels-last copy). The user's module is never changed.
Shapes: N images, C channels, H W rows and columns, K classes.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import UsageError
from cnnviz.core.graph.fold import fold
from cnnviz.core.graph.trace import Graph, Untraceable, describe, trace
from cnnviz.core.models.layers import not_run
from cnnviz.core.models.variants import check_same, laid_out, random_image
from cnnviz.occlusion.engines.winograd import speed_up


@dataclass(frozen=True, eq=False)
class Network:
    """What both engines start from.

    Attributes:
        module: images (N, 3, H, W) to logits (N, K), and to (logits, sums (N, C)) with a layer.
        graph: the folded graph and what is known about every node; None where tracing failed.
        reason: why there is no graph.
        layer: the layer whose channel sums come out too.
        device: where it runs.
        dtype: the number format of weights and activations.
        layout: how images lie in memory: channels last, unless the network cannot stand it.
        repeat: passes that are averaged, where answers differ each time.
    """

    module: nn.Module
    graph: Graph | None
    reason: str | None
    layer: str | None
    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format = torch.channels_last
    repeat: int = 1

    def run(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Float32 logits (N, K), and the layer's sum over positions per channel (N, C)."""
        images = images_N3HW.contiguous(memory_format=self.layout)
        outputs, sums = self._pass(images)
        for _ in range(self.repeat - 1):
            more, more_sums = self._pass(images)
            outputs = outputs + more
            sums = None if sums is None or more_sums is None else sums + more_sums
        return outputs / self.repeat, None if sums is None else sums / self.repeat

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        result = self.module(images)
        if self.layer is None:
            return result.float(), None
        return result[0].float(), result[1]


def prepare(
    module: nn.Module,
    size: tuple[int, int],
    *,
    channels: int = 3,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    layer: str | None = None,
) -> Network:
    """Traces, folds and lays out a copy of the module for images of `channels` and `size` (H, W).

    Raises:
        UsageError: `layer` takes no part in the forward pass.
    """
    image = random_image((channels, *size), device, dtype)
    try:
        with torch.inference_mode(False), torch.no_grad():
            folded = fold(trace(module), keep=(layer,) if layer else ())
            speed_up(folded)
        graph = describe(folded, size, channels=channels, device=device, dtype=dtype)
        check_same(module, folded, image)
    except Untraceable as error:
        plain, layout = laid_out(module, image, speed_up)
        watched = _Watched(plain, layer) if layer else plain
        return Network(watched, None, str(error), layer, device, dtype, layout)
    if layer is None:
        return Network(folded, graph, None, None, device, dtype)
    return Network(_with_sums(graph, layer), graph, None, layer, device, dtype)


def channel_sums(value: Tensor, axes: tuple[int, int] | None) -> Tensor:
    """Sum over all positions, per image and channel, float32 (N, C).

    Without known axes, (N, C, …) sums over what follows the channels, and tokens (N, L, C) over L.
    """
    if axes is None:
        axes_summed = (1,) if value.dim() == 3 else tuple(range(2, value.dim()))
    else:
        axes_summed = axes
    return value.float().sum(axes_summed).flatten(1) if axes_summed else value.float()


def _with_sums(graph: Graph, layer: str) -> fx.GraphModule:
    """The same graph, putting out (logits, channel sums of the layer)."""
    if layer not in graph.layers:
        raise not_run(layer)
    info = graph.info[graph.layers[layer]]
    if info.shape is None:
        raise UsageError(f"layer '{layer}' puts out no tensor; name a layer inside it")
    tapped = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
    nodes = {node.name: node for node in tapped.graph.nodes}
    node = nodes[graph.layers[layer].name]
    # Summed on the spot: what follows may overwrite the layer's output in place.
    with tapped.graph.inserting_after(node):
        sums = tapped.graph.call_function(channel_sums, (node, info.axes))
    output = next(iter(tapped.graph.find_nodes(op="output")))
    output.args = ((output.args[0], sums),)
    tapped.recompile()
    return tapped


class _Watched(nn.Module):
    """A module that cannot be traced, with a hook on one layer of it."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module, self._sums = module, torch.empty(0)
        self._layer = layer
        module.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UsageError(f"layer '{self._layer}' puts out no tensor; name a layer inside it")
        self._sums = channel_sums(output, None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._sums = torch.empty(0)
        logits = self.module(images)
        if not self._sums.numel():
            raise not_run(self._layer)
        return logits, self._sums
