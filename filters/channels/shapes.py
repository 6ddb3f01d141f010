"""Which layers have channels, how many, and how strongly each one speaks over a data set.

Only maps (N, C, H, W) have channels that can be ablated. Their number is read off a trial pass, not
off the module, so activations, norms, blocks and modules of the user's own count as well.
Shapes: N images, C channels, H W rows and columns.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnnviz.core.errors import UsageError
from cnnviz.core.graph.trace import Untraceable, describe, trace
from cnnviz.core.models.layers import (
    check_open,
    conv_layers,
    find_layer,
    named_layers,
    not_run,
    trial_outputs,
    watch_outputs,
)
from cnnviz.filters.channels.spec import Channels, resolve

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

CHANNELS_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)

MapShape = tuple[int, int, int]
"""(filters, rows, columns) of what a layer puts out for one image."""


def as_maps(output: Tensor, layer: str, model_name: str) -> Tensor:
    """A layer's output as maps (N, C, H, W); vectors (N, C) count as maps of a single unit.

    Raises:
        UsageError: it is neither.
    """
    if output.dim() == 2:
        return output[:, :, None, None]
    if output.dim() != 4:
        shape = "x".join(map(str, output.shape[1:]))
        raise UsageError(
            f"layer '{layer}' of {model_name} puts out {shape}, not channels of maps; "
            f"name a convolution or what follows one"
        )
    return output


def map_shapes(model: "Model", layers: Sequence[str]) -> dict[str, MapShape]:
    """What each of these layers puts out; without those that do not run in a forward pass.

    Raises:
        UsageError: a layer puts out something else than maps or a vector.
    """
    shapes = {}
    for name, output in trial_outputs(model, layers).items():
        _, channels, rows, columns = as_maps(output, name, model.name).shape
        shapes[name] = (channels, rows, columns)
    return {name: shapes[name] for name in layers if name in shapes}


def choose_filters(
    model: "Model", texts: Sequence[str], layers: Sequence[str] = (), seed: int = 0
) -> tuple[Channels, dict[str, MapShape]]:
    """The filters that specifications name, and what their layers put out.

    Args:
        model: the network.
        texts: `all`, `3,7-12` (in each layer), `random:10` (from all layers together), or a
            specification with a layer of its own (`channels.spec`).
        layers: names, or patterns with `*`; all convolutions that run if empty.
        seed: of the random draw.

    Raises:
        UsageError: a layer or filter does not exist or does not run.
    """
    check_open(model.module, model.name)
    convolutions = [] if layers else conv_layers(model.module)
    shapes = map_shapes(model, convolutions)
    layers = layers or list(shapes)
    if not layers and not any(":" in text for text in texts):
        raise UsageError(
            f"{model.name} has no convolution that can be watched; name a layer with --layer"
        )

    def count_channels(names: Sequence[str]) -> dict[str, int]:
        for name in names:
            find_layer(model.module, name, model.name)
        shapes.update(map_shapes(model, [name for name in names if name not in shapes]))
        for name in names:
            if name not in shapes:
                raise not_run(name)
        return {name: shapes[name][0] for name in names}

    every = list(named_layers(model.module))
    chosen = resolve(texts, every, list(shapes), count_channels, seed, layers)
    return chosen, {name: shapes[name] for name in chosen}


class LayerChannels:
    """Channel counts of a model's layers, each found out when first asked for.

    Raises:
        UsageError: the model is an archive, whose layers nobody can reach.
    """

    def __init__(self, model: "Model") -> None:
        check_open(model.module, model.name)
        self._model = model
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._axes: Mapping[str, tuple[int, int] | None] | None = None

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        """The number of output channels of each named layer.

        Raises:
            UsageError: there is no such layer, it does not run, or it puts out no channel maps.
        """
        for name in names:
            find_layer(self._model.module, name, self._model.name)
        self._try(names)
        return {name: self._count(name) for name in names}

    def convolutions(self) -> list[str]:
        """The convolutions that run in a forward pass."""
        names = conv_layers(self._model.module)
        self._try(names)
        return [name for name in names if self._shapes[name] is not None]

    def _try(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._shapes]
        if not new:
            return
        outputs = trial_outputs(self._model, new)
        for name in new:
            self._shapes[name] = tuple(outputs[name].shape) if name in outputs else None

    def _count(self, name: str) -> int:
        shape = self._shapes[name]
        if shape is None:
            raise not_run(name)
        if len(shape) != 4:
            raise UsageError(
                f"layer '{name}' puts out {shape}, no maps (images, channels, rows, columns); "
                f"name a convolution, or a layer between convolutions"
            )
        module = find_layer(self._model.module, name, self._model.name)
        if not isinstance(module, CHANNELS_SECOND) and self._places().get(name) == (1, 2):
            raise UsageError(
                f"layer '{name}' puts out {shape} with its channels last; "
                f"name the convolution before it, or the block around it"
            )
        return shape[1]

    def _places(self) -> Mapping[str, tuple[int, int] | None]:
        """Layer name to its axes of rows and columns; empty where nobody can tell."""
        if self._axes is None:
            model = self._model
            try:
                graph = describe(
                    trace(model.module),
                    model.input_size,
                    channels=model.preprocess.channels,
                    device=model.device,
                    dtype=model.precision.dtype,
                )
                self._axes = {name: graph.info[node].axes for name, node in graph.layers.items()}
            except Untraceable:
                self._axes = {}
        return self._axes


@dataclass(frozen=True)
class ChannelStrength:
    """What a layer's channels put out over a data set.

    Attributes:
        mean: (C,) float32, over all images and positions; on the model's device.
        magnitude: (C,) float32, the mean absolute value.
    """

    mean: Tensor
    magnitude: Tensor


def channel_strengths(
    model: "Model",
    batches: Iterable[Tensor],
    layers: Sequence[str],
    progress: Callable[[int], None] = lambda _images: None,
) -> dict[str, ChannelStrength]:
    """One pass over images (N, 3, H, W), at least one, that averages each channel of `layers`."""
    exact = torch.float32 if model.device.type == "mps" else torch.float64
    sums: dict[str, Tensor] = {}
    units = dict.fromkeys(layers, 0)
    for images in batches:
        with torch.inference_mode(), watch_outputs(model.module, layers) as outputs:
            model.outputs(images)
            for name in layers:
                values = outputs[name].to(exact)
                both = torch.stack([values.sum((0, 2, 3)), values.abs().sum((0, 2, 3))])
                sums[name] = sums[name] + both if name in sums else both
                units[name] += values[:, 0].numel()
        progress(len(images))
    return {name: ChannelStrength(*(sums[name] / units[name]).to(torch.float32)) for name in layers}
