"""A network whose last layers have forgotten what they learned, for a while.

A map that stays the same then does not show what was learned (Adebayo et al. 2018, "Sanity Checks
for Saliency Maps", the cascade from the top).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import named_layers, trial_outputs
from cnnviz.core.models.load import Model

LAST = 3
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def last_layers(model: Model, count: int = LAST) -> tuple[str, ...]:
    """The convolutions and linear layers that run last; none of an archive."""
    layers = named_layers(model.module)
    names = [name for name, layer in layers.items() if isinstance(layer, _WEIGHTED)]
    try:
        return tuple(trial_outputs(model, names))[-count:]
    except UsageError:
        return ()


@contextmanager
def rerandomised(model: Model, layers: tuple[str, ...], seed: int = 0) -> Iterator[None]:
    """Draws their weights anew, normal with the mean and deviation that they have."""
    generator = torch.Generator().manual_seed(seed)
    found = named_layers(model.module)
    weights: list[nn.Parameter] = [found[name].weight for name in layers]  # type: ignore[misc]
    before = [weight.data for weight in weights]
    try:
        for weight, old in zip(weights, before, strict=True):
            drawn = torch.randn(old.shape, generator=generator).to(old.device, torch.float32)
            spread = old.float().std(correction=0)
            weight.data = (drawn * spread + old.float().mean()).to(old.dtype)
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.data = old
