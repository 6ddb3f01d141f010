"""Which layers have channels, how many, and how strongly each one speaks over a data set.

Only maps (N, C, H, W) have channels that can be ablated. Their number is read off a trial pass, not
off the module, so activations, norms, blocks and modules of the user's own count as well.
Shapes: N images, C channels, H W rows and columns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import (
    Form,
    Layout,
    Layouts,
    check_open,
    conv_layers,
    find_layer,
    named_layers,
    not_run,
    watch_outputs,
)
from cnnviz.filters.channels.spec import Channels, resolve

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


def choose_filters(
    model: "Model", texts: Sequence[str], layers: Sequence[str] = (), seed: int = 0
) -> tuple[Channels, dict[str, Layout]]:
    """The filters that specifications name, and how what their layers put out lies.

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
    layouts = Layouts(model)
    known = layouts.of([] if layers else conv_layers(model.module))
    layers = layers or list(known)
    if not layers and not any(":" in text for text in texts):
        raise UsageError(
            f"{model.name} has no convolution that can be watched; name a layer with --layer"
        )

    def count_channels(names: Sequence[str]) -> dict[str, int]:
        for name in names:
            find_layer(model.module, name, model.name)
        known.update(layouts.of([name for name in names if name not in known]))
        for name in names:
            if name not in known:
                raise not_run(name)
        return {name: known[name].shape[0] for name in names}

    every = list(named_layers(model.module))
    chosen = resolve(texts, every, list(known), count_channels, seed, layers)
    return chosen, {name: known[name] for name in chosen}


class LayerChannels:
    """Channel counts of a model's layers, each found out when first asked for.

    Raises:
        UsageError: the model is an archive, whose layers nobody can reach.
    """

    def __init__(self, model: "Model") -> None:
        check_open(model.module, model.name)
        self._model = model
        self._layouts = Layouts(model)
        self._known: dict[str, Layout | None] = {}

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
        return [name for name in names if self._known[name] is not None]

    def _try(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._known]
        if new:
            found = self._layouts.of(new)
            self._known.update({name: found.get(name) for name in new})

    def _count(self, name: str) -> int:
        layout = self._known[name]
        if layout is None:
            raise not_run(name)
        if layout.form is not Form.MAPS:
            raise UsageError(
                f"layer '{name}' puts out ({layout.form}), no maps (images, channels, rows, "
                "columns); name a convolution, or a layer between convolutions"
            )
        return layout.shape[0]


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
