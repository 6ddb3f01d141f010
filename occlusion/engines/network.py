"""The network as both engines run it, and the scores that they return.

`prepare` makes a folded channels-last copy of the network, once per experiment, however many images
follow; with a layer, the copy also returns that layer's channel sums. A network that cannot be
traced runs as a plain channels-last copy. The user's module is never modified.
Shapes: N images, C channels, H W rows and columns, P positions, K classes.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import UsageError
from cnnviz.core.graph.fold import fold
from cnnviz.core.graph.split import trace_part
from cnnviz.core.graph.trace import Graph, Untraceable, describe, trace
from cnnviz.core.models.layers import not_run
from cnnviz.core.models.variants import check_same, laid_out, random_image
from cnnviz.occlusion.engines.winograd import speed_up


@dataclass(frozen=True, eq=False)
class Scores:
    """The network's outputs for all positions of one image, on its device."""

    base_logits_K: Tensor  # float32 logits of the original image
    logits_PK: Tensor  # float32 logits at each position
    # with a layer, the sum of its strongest map on the original image
    base_activation: float | None = None
    activation_P: Tensor | None = None  # the same map's sum at each position
    activation_channel: int | None = None  # the channel of that map: the one with the largest sum
    # the difference for which the incremental engine was abandoned, if it was
    given_up: float | None = None

    def of(self, positions_N: Tensor) -> "Scores":
        """The scores of some positions."""
        index = positions_N.to(self.logits_PK.device)
        sums_P = self.activation_P
        return replace(
            self,
            logits_PK=self.logits_PK[index],
            activation_P=None if sums_P is None else sums_P[index],
        )


class ScoreSheet:
    """The scores of a run in progress, filled in batch by batch.

    Attributes:
        channel_1: the watched layer's strongest map on the original image; None without a layer.
            It stays on the device, for which nothing here waits.
    """

    def __init__(self, positions: int, base_logits_1K: Tensor, base_sums_1C: Tensor | None) -> None:
        self.channel_1 = None if base_sums_1C is None else base_sums_1C.argmax(1)
        self._base_logits_K, self._base_sums_1C = base_logits_1K[0], base_sums_1C
        device, classes = base_logits_1K.device, base_logits_1K.shape[1]
        self._logits_PK = torch.empty(positions, classes, device=device)
        self._sums_P = None if base_sums_1C is None else torch.empty(positions, device=device)

    def write(self, where: slice | Tensor, logits_NK: Tensor, sums_N: Tensor | None) -> None:
        """Stores a batch: its positions, their logits and, with a layer, the sums of `channel`."""
        self._logits_PK[where] = logits_NK
        if self._sums_P is not None and sums_N is not None:
            self._sums_P[where] = sums_N

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is in it, for `filled`."""
        held = (self._base_logits_K[None], self._logits_PK, self._base_sums_1C, self._sums_P)
        return tuple(tensor for tensor in held if tensor is not None)

    @classmethod
    def filled(cls, tensors: tuple[Tensor, ...]) -> "ScoreSheet":
        """The sheet whose `tensors` these are."""
        base_logits_1K, logits_PK, *sums = tensors
        sheet = cls(0, base_logits_1K, sums[0] if sums else None)
        sheet._logits_PK, sheet._sums_P = logits_PK, sums[1] if sums else None
        return sheet

    def watched(self, sums_NC: Tensor | None) -> Tensor | None:
        """Of a layer's sums, those (N,) of the map that is watched."""
        if sums_NC is None or self.channel_1 is None:
            return None
        return sums_NC.index_select(1, self.channel_1)[:, 0]

    def scores(self) -> Scores:
        """The complete scores, once every position is written."""
        if self._base_sums_1C is None or self.channel_1 is None:
            return Scores(self._base_logits_K, self._logits_PK)
        base, channel = float(self._base_sums_1C.max()), int(self.channel_1)
        return Scores(self._base_logits_K, self._logits_PK, base, self._sums_P, channel)


@dataclass(frozen=True, eq=False)
class Network:
    """A prepared network."""

    # images (N, 3, H, W) to logits (N, K), or to (logits, sums (N, C)) with a layer
    module: nn.Module
    # the folded graph with its description; None if the network cannot be traced
    graph: Graph | None
    reason: str | None  # why there is no graph
    layer: str | None  # the layer whose channel sums are returned too
    device: torch.device
    dtype: torch.dtype  # the floating-point format of weights and activations
    # memory format of images: channels last, unless the network does not support it
    layout: torch.memory_format = torch.channels_last
    repeat: int = 1  # number of passes to average, for stochastic networks

    def run(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns float32 logits (N, K), and the layer's sum over positions per channel (N, C)."""
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
    """Traces and folds a copy of the module for images of `channels` and `size` (H, W)."""
    image = random_image((channels, *size), device, dtype)

    def prepared(traced: fx.GraphModule) -> Graph:
        with torch.no_grad():
            folded = fold(traced, keep=(layer,) if layer else ())
            speed_up(folded)
        graph = describe(folded, size, channels=channels, device=device, dtype=dtype)
        check_same(module, folded, image)
        return graph

    reason = ""
    for traced in (trace, partial(trace_part, image_1CHW=image)):
        try:
            with torch.inference_mode(False):
                graph = prepared(traced(module))
        except Untraceable as error:
            reason = str(error) or reason
            if layer is not None:
                break
        else:
            tapped = _with_sums(graph, layer) if layer is not None else graph.module
            return Network(tapped, graph, None, layer, device, dtype)
    plain, layout = laid_out(module, image, speed_up)
    watched = _Watched(plain, layer) if layer else plain
    return Network(watched, None, reason, layer, device, dtype, layout)


def channel_sums(value: Tensor, axes: tuple[int, int] | None) -> Tensor:
    """Sums over all positions, per image and channel, float32 (N, C).

    Without known axes, (N, C, …) is summed over the axes after the channels, and tokens (N, L, C)
    over L.
    """
    if axes is None:
        axes_summed = (1,) if value.dim() == 3 else tuple(range(2, value.dim()))
    else:
        axes_summed = axes
    return value.float().sum(axes_summed).flatten(1) if axes_summed else value.float()


def _with_sums(graph: Graph, layer: str) -> fx.GraphModule:
    """The same graph, returning (logits, channel sums of the layer)."""
    if layer not in graph.layers:
        raise not_run(layer)
    info = graph.info[graph.layers[layer]]
    if info.shape is None:
        raise _no_tensor(layer)
    tapped = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
    nodes = {node.name: node for node in tapped.graph.nodes}
    node = nodes[graph.layers[layer].name]
    # Summed immediately: later operations may overwrite the layer's output in place.
    with tapped.graph.inserting_after(node):
        sums = tapped.graph.call_function(channel_sums, (node, info.axes))
    output = next(iter(tapped.graph.find_nodes(op="output")))
    output.args = ((output.args[0], sums),)
    tapped.recompile()
    return tapped


def _no_tensor(layer: str) -> UsageError:
    return UsageError(f"the output of layer '{layer}' is not a tensor; name a layer inside it")


class _Watched(nn.Module):
    """A module that cannot be traced, with a hook on one of its layers."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module, self._sums = module, torch.empty(0)
        self._layer = layer
        module.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise _no_tensor(self._layer)
        self._sums = channel_sums(output, None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self._sums = torch.empty(0)
        logits = self.module(images)
        if not self._sums.numel():
            raise not_run(self._layer)
        return logits, self._sums
