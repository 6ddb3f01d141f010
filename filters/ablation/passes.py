"""Whole passes of a network with channels of some layers replaced: the plain way to ablate.

The module is never edited: `core.models.layers.replace_outputs` changes what its layers put
out, for one pass. `AblationPasses` is what every way of running many ablations offers (see
`cnnviz.filters.ablation.replay`).
Shapes: N images, G ablations, V ablations in all, C channels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cnnviz.core.device import in_batches
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.layers import replace_outputs
from cnnviz.filters.channels import Channels

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

IMAGES = 32

Consume = Callable[[slice, slice, Tensor], None]
"""Receives (images, ablations, logits (N, G, K)) of one part of a batch."""

Fills = Mapping[str, Tensor]
"""Layer name to what its channels are replaced with, (C,); layers that are missing get zero."""


class AblationPasses(Protocol):
    """A way to get the logits of V ablations; the empty ablation is the untouched network.

    Attributes:
        engine: `replay` or `full`.
        reason: why not `replay`; None if it is.
        images: how many images to send at a time.
    """

    engine: str
    reason: str | None
    images: int

    def run(self, images: Tensor, consume: Consume) -> None:
        """Every ablation of these images (N, 3, H, W), each handed out exactly once."""


def _on(layer: str, channels: Sequence[int], fills: Fills) -> Callable[[Tensor], Tensor]:
    """Replaces channels of a layer's output, as a function for `replace_outputs`."""

    def change(output: Tensor) -> Tensor:
        changed = output.clone()
        fill = fills.get(layer)
        values = 0.0 if fill is None else fill[list(channels)].to(output.dtype).view(1, -1, 1, 1)
        changed[:, list(channels)] = values
        return changed

    return change


def ablated_logits(model: "Model", images: Tensor, channels: Channels, fills: Fills) -> Tensor:
    """Logits (N, K) of a whole pass with channels replaced; the module is left as it was.

    Raises:
        CnnvizError: a layer's output did not come by, so that nothing of it was replaced.
    """
    silent = set(channels)

    def changer(layer: str, numbers: Sequence[int]) -> Callable[[Tensor], Tensor]:
        change = _on(layer, numbers, fills)

        def noted(output: Tensor) -> Tensor:
            silent.discard(layer)
            return change(output)

        return noted

    changes = {layer: changer(layer, numbers) for layer, numbers in channels.items()}
    with torch.inference_mode(), replace_outputs(model.module, changes):
        logits = model.logits(images)
    if silent:
        raise CnnvizError(
            f"the output of layer '{min(silent)}' of {model.name} cannot be replaced: its forward "
            "runs the layer unseen (compiled code?)"
        )
    return logits


class WholePasses:
    """One hooked pass of the whole network per ablation."""

    engine = "full"

    def __init__(
        self,
        model: "Model",
        ablations: Sequence[Channels],
        fills: Fills,
        *,
        reason: str | None = None,
        images: int | None = None,
    ) -> None:
        self.model = model
        self.ablations = ablations
        self.fills = fills
        self.reason = reason
        self.images = images or IMAGES

    def run(self, images: Tensor, consume: Consume) -> None:
        """Every ablation of these images, one at a time."""
        images = images.to(self.model.device)
        for number, channels in enumerate(self.ablations):

            def one(part: slice, number: int = number, channels: Channels = channels) -> None:
                logits = ablated_logits(self.model, images[part], channels, self.fills)
                consume(part, slice(number, number + 1), logits.unsqueeze(1))

            for _done, size in in_batches(len(images), self.images, one):
                self.images = size
