"""Measures of a layer's weights: norms, dead filters, near-duplicates, colour, Gabor fits.

A filter is all the weights of one output channel. Only weights are measured: a batch norm after the
layer may scale a strong filter down or a weak one up.

Legend: F filters, C input channels (of one group), H W rows and columns.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.geometry import pair
from cnnviz.core.models.layers import check_open, conv_layers, find_layer
from cnnviz.core.models.load import Model
from cnnviz.filters.kernels.gabor import can_fit, fit_gabors, gabor_share, shuffled
from cnnviz.filters.kernels.results import (
    DEAD_BELOW,
    DUPLICATE_ABOVE,
    Duplicate,
    GaborStats,
    KernelStats,
)

Array = NDArray[np.float32]

MAX_COLOURS = 3
"""Maximum number of input channels of kernels that Gabor filters are fitted to."""
_CHUNK = 512


def choose_layers(module: nn.Module, choice: str, model_name: str) -> list[str]:
    """The names of the layers meant by `first`, `all` or a layer's name."""
    check_open(module, model_name)
    names = conv_layers(module)
    if choice in ("first", "all"):
        if not names:
            raise CnnvizError(
                f"{model_name} has no convolutions, so it has no kernels to show; "
                f"cnnviz occlude and cnnviz saliency work on any model"
            )
        return names[:1] if choice == "first" else names
    layer = find_layer(module, choice, model_name)
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        inside = [name for name in names if name.startswith(f"{choice}.")]
        remedy = inside or names
        raise UsageError(
            f"layer '{choice}' is a {type(layer).__name__} and has no kernels; layers of "
            f"{model_name} that do: {_shorten(remedy) or 'none'}"
        )
    return [choice]


def _shorten(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def kernels_of(layer: nn.Conv2d | nn.ConvTranspose2d) -> Array:
    """(F, C, H, W) float32 on the CPU, one filter per output channel."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, per_group, *size = weight.shape
        grouped = weight.reshape(layer.groups, inputs // layer.groups, per_group, *size)
        weight = grouped.swapaxes(1, 2).reshape(-1, inputs // layer.groups, *size)
    kernels_FCHW: Array = weight.float().cpu().numpy().copy()
    if not np.isfinite(kernels_FCHW).all():
        raise CnnvizError("the layer's weights contain NaN or infinite values; check the weights")
    return kernels_FCHW


def kernel_stats(
    model: Model, layer: str = "first", *, gabor: bool = False, seed: int = 0
) -> tuple[KernelStats, ...]:
    """Measures the kernels of the `first` convolution, of a layer by name, or of `all`.

    Raises as `choose_layers`; see `examine` for the options.
    """
    names = choose_layers(model.module, layer, model.name)
    return tuple(examine(model.module, name, gabor=gabor, seed=seed) for name in names)


def examine(
    module: nn.Module,
    name: str,
    *,
    gabor: bool = False,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _steps: None,
) -> KernelStats:
    """Measures the kernels of a layer that `choose_layers` returned.

    Args:
        module: the network, which is not modified.
        name: the layer.
        gabor: whether to fit Gabor filters, if the kernels have few channels and are large enough.
        seed: for the shuffled kernels that the fits are compared with.
        advance: called with the number of filters just fitted.
    """
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)  # noqa: S101 (for mypy)
    kernels_FCHW = kernels_of(layer)
    norms_F: Array = np.sqrt(np.square(kernels_FCHW, dtype=np.float64).sum(axis=(1, 2, 3)))
    alive_F = norms_F > DEAD_BELOW * float(norms_F.max(initial=0))
    fits = gabor and gabor_steps(module, name) > 0
    count, channels, *sides = kernels_FCHW.shape
    return KernelStats(
        layer=name,
        type_=type(layer).__name__,
        filters=count,
        channels=channels,
        kernel=tuple(sides),
        groups=layer.groups,
        largest_weight=float(np.abs(kernels_FCHW).max(initial=0)),
        norms=tuple(norms_F.astype(np.float32).tolist()),
        dead=tuple(np.flatnonzero(~alive_F).tolist()),
        duplicates=near_duplicates(kernels_FCHW, alive_F, layer.groups),
        chromaticity=_chromaticity(kernels_FCHW, alive_F),
        kernels=kernels_FCHW,
        gabor=_gabor(kernels_FCHW, alive_F, seed, advance) if fits else None,
    )


def near_duplicates(
    kernels_FCHW: Array, alive_F: NDArray[np.bool_], groups: int = 1
) -> tuple[Duplicate, ...]:
    """All pairs of filters of one group that are alive, with |cosine| above `DUPLICATE_ABOVE`."""
    count, unit_FD = len(kernels_FCHW), _unit(kernels_FCHW)
    unit_FD[torch.from_numpy(~alive_F)] = 0
    pairs: list[Duplicate] = []
    per_group = count // groups
    for start in range(0, count, per_group):
        group_GD = unit_FD[start : start + per_group]
        for offset in range(0, per_group, _CHUNK):
            cosines = group_GD[offset : offset + _CHUNK] @ group_GD.T
            close = (cosines.abs() > DUPLICATE_ABOVE).triu(offset + 1)
            for i, j in close.nonzero().tolist():
                cosine = min(1.0, max(-1.0, float(cosines[i, j])))
                pairs.append(Duplicate((start + offset + i, start + j), cosine))
    return tuple(pairs)


def most_similar(kernels_FCHW: Array) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each filter's most similar other filter of the layer, and their |cosine|."""
    unit_FD = _unit(kernels_FCHW)
    cosines_FF = (unit_FD @ unit_FD.T).abs().fill_diagonal_(-1)
    cosine_F, twin_F = cosines_FF.max(dim=1)
    return twin_F.numpy(), cosine_F.numpy()


def _unit(kernels_FCHW: Array) -> torch.Tensor:
    """(F, D) kernels of length 1, float64; zero ones stay zero."""
    flat_FD = torch.from_numpy(kernels_FCHW.reshape(len(kernels_FCHW), -1)).double()
    unit_FD: torch.Tensor = flat_FD / flat_FD.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return unit_FD


def _chromaticity(kernels_FCHW: Array, alive_F: NDArray[np.bool_]) -> tuple[float, ...] | None:
    if kernels_FCHW.shape[1] != 3:
        return None
    kernels_FCHW = kernels_FCHW.astype(np.float64)
    energy_F = np.square(kernels_FCHW).sum(axis=(1, 2, 3))
    grey_F = 3 * np.square(kernels_FCHW.mean(axis=1)).sum(axis=(1, 2))
    share_F = 1 - np.divide(grey_F, energy_F, out=np.ones_like(grey_F), where=alive_F)
    return tuple(np.clip(share_F, 0, 1).astype(np.float32).tolist())


def _gabor(
    kernels_FCHW: Array, alive_F: NDArray[np.bool_], seed: int, advance: Callable[[int], None]
) -> GaborStats:
    kernels = kernels_FCHW.astype(np.float64)
    fits = fit_gabors(kernels, alive_F, advance)
    by_chance = fit_gabors(shuffled(kernels, seed), alive_F, advance)
    return GaborStats(gabor_share(fits), gabor_share(by_chance), fits, by_chance)


def gabor_steps(module: nn.Module, name: str) -> int:
    """The number of Gabor fits that `examine` makes for this layer."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)  # noqa: S101 (for mypy)
    channels = layer.in_channels // layer.groups
    height, width = pair(layer.kernel_size)
    fits = channels <= MAX_COLOURS and can_fit(channels, height, width)
    return 2 * layer.out_channels if fits else 0
