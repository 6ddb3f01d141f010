"""What can be read off a layer's weights: kernels, norms, dead filters, near-duplicates, colour.

A filter is all the weights that make one output channel. These numbers look at weights alone; a
batch norm behind the layer may scale a strong filter to nothing or a weak one up.

Legend: F filters, C input channels (of one group), H W rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.geometry import pair
from cnnviz.core.models.layers import check_open, conv_layers, find_layer
from cnnviz.core.models.load import Model
from cnnviz.filters.kernels.gabor import GaborFit, can_fit, fit_gabor, gabor_share, shuffled

Array = NDArray[np.float32]

DEAD_BELOW = 1e-3
"""Share of the layer's largest norm below which a filter counts as dead."""
DUPLICATE_ABOVE = 0.95
"""|cosine| above which two filters count as near-duplicates."""
MOST_COLOURS = 3
"""Input channels up to which a kernel is a picture, and a Gabor fit means something."""
_CHUNK = 512


@dataclass(frozen=True)
class Duplicate:
    """Two filters that point the same way, or (cosine below 0) opposite ways."""

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class GaborStats:
    """How Gabor-like a layer's filters are.

    Attributes:
        fits: one per filter; None for dead and constant ones.
        share: of filters with R^2 above `gabor.GABOR_LIKE`.
        shuffled_fits: the same weights with each kernel's pixels shuffled: what chance gives.
        shuffled_share: of those, likewise.
    """

    fits: tuple[GaborFit | None, ...]
    share: float
    shuffled_fits: tuple[GaborFit | None, ...]
    shuffled_share: float


@dataclass(frozen=True, eq=False)
class KernelStats:
    """One layer's kernels and what they measure.

    Attributes:
        layer: dotted name.
        kind: class name of the layer.
        kernels: (F, C, H, W) float32.
        groups: filters i * F / groups … read the i-th group of input channels.
        norms: (F,) Euclidean norm of each filter.
        dead: filters whose norm is below `DEAD_BELOW` of the layer's largest.
        duplicates: pairs of living filters with |cosine| above `DUPLICATE_ABOVE` that read the
            same input channels.
        chromaticity: for 3 input channels, the share of each filter's energy that is colour: 0 for
            grey filters, 2/3 on average for random ones, 1 where the channels sum to zero
            everywhere; 0 for dead filters. None for other layers.
        gabor: the Gabor fits; None where none were asked for or the kernels are too small.
    """

    layer: str
    kind: str
    kernels: Array
    groups: int
    norms: Array
    dead: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]
    chromaticity: Array | None
    gabor: GaborStats | None = None


def choose_layers(module: nn.Module, choice: str, model_name: str) -> list[str]:
    """Names of the layers that `first`, `all` or a layer's name stands for.

    Raises:
        CnnvizError: the network has no two-dimensional convolution.
        UsageError: no layer has that name, it has no kernels, or the network is an archive.
    """
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
    """(F, C, H, W) float32 on the host, a filter per output channel.

    Raises:
        CnnvizError: a weight is NaN or infinite.
    """
    weight = layer.weight.detach()
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, per_group, *size = weight.shape
        grouped = weight.reshape(layer.groups, inputs // layer.groups, per_group, *size)
        weight = grouped.swapaxes(1, 2).reshape(-1, inputs // layer.groups, *size)
    kernels_FCHW: Array = weight.float().cpu().numpy().copy()
    if not np.isfinite(kernels_FCHW).all():
        raise CnnvizError("the layer's weights hold NaN or infinite values; the model is broken")
    return kernels_FCHW


def kernel_stats(
    model: Model, layer: str = "first", *, gabor: bool = False, seed: int = 0
) -> tuple[KernelStats, ...]:
    """Measures the kernels of the first convolution, of the layer of that name, or of `all`.

    See `choose_layers` for what is raised, and `examine` for the options.
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
    """Measures the kernels of the layer of that name, one that `choose_layers` gave.

    Args:
        module: the network; only read.
        name: the layer.
        gabor: fit a Gabor filter to each kernel, where kernels are pictures and large enough.
        seed: of the shuffling that the Gabor fits are held against.
        advance: called with the number of filters just fitted.
    """
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)  # noqa: S101 (told to mypy)
    kernels_FCHW = kernels_of(layer)
    norms_F: Array = np.sqrt(np.square(kernels_FCHW, dtype=np.float64).sum(axis=(1, 2, 3)))
    alive_F = norms_F > DEAD_BELOW * float(norms_F.max(initial=0))
    fits = gabor and gabor_steps(module, name) > 0
    return KernelStats(
        layer=name,
        kind=type(layer).__name__,
        kernels=kernels_FCHW,
        groups=layer.groups,
        norms=norms_F.astype(np.float32),
        dead=tuple(np.flatnonzero(~alive_F).tolist()),
        duplicates=near_duplicates(kernels_FCHW, alive_F, layer.groups),
        chromaticity=_chromaticity(kernels_FCHW, alive_F),
        gabor=_gabor(kernels_FCHW, alive_F, seed, advance) if fits else None,
    )


def near_duplicates(
    kernels_FCHW: Array, alive_F: NDArray[np.bool_], groups: int = 1
) -> tuple[Duplicate, ...]:
    """All pairs of living filters of one group with |cosine| above `DUPLICATE_ABOVE`, in order."""
    count = len(kernels_FCHW)
    flat_FD = torch.from_numpy(kernels_FCHW.reshape(count, -1)).double()
    unit_FD = flat_FD / flat_FD.norm(dim=1, keepdim=True).clamp_min(1e-300)
    unit_FD[torch.from_numpy(~alive_F)] = 0
    found: list[Duplicate] = []
    per_group = count // groups
    for start in range(0, count, per_group):
        group_GD = unit_FD[start : start + per_group]
        for offset in range(0, per_group, _CHUNK):
            cosines = group_GD[offset : offset + _CHUNK] @ group_GD.T
            close = (cosines.abs() > DUPLICATE_ABOVE).triu(offset + 1)
            found += [
                Duplicate(start + offset + i, start + j, min(1.0, max(-1.0, float(cosines[i, j]))))
                for i, j in close.nonzero().tolist()
            ]
    return tuple(found)


def _chromaticity(kernels_FCHW: Array, alive_F: NDArray[np.bool_]) -> Array | None:
    if kernels_FCHW.shape[1] != 3:
        return None
    kernels_FCHW = kernels_FCHW.astype(np.float64)
    energy_F = np.square(kernels_FCHW).sum(axis=(1, 2, 3))
    grey_F = 3 * np.square(kernels_FCHW.mean(axis=1)).sum(axis=(1, 2))
    share_F = 1 - np.divide(grey_F, energy_F, out=np.ones_like(grey_F), where=alive_F)
    chromaticity_F: Array = np.clip(share_F, 0, 1).astype(np.float32)
    return chromaticity_F


def _gabor(
    kernels_FCHW: Array, alive_F: NDArray[np.bool_], seed: int, advance: Callable[[int], None]
) -> GaborStats:
    def fit(kernels: NDArray[np.float64]) -> tuple[GaborFit | None, ...]:
        fits: list[GaborFit | None] = []
        for kernel_CHW, alive in zip(kernels, alive_F, strict=True):
            fits.append(fit_gabor(kernel_CHW) if alive else None)
            advance(1)
        return tuple(fits)

    kernels = kernels_FCHW.astype(np.float64)
    fits, by_chance = fit(kernels), fit(shuffled(kernels, seed))
    return GaborStats(fits, gabor_share(fits), by_chance, gabor_share(by_chance))


def gabor_steps(module: nn.Module, name: str) -> int:
    """How far `examine` with Gabor fits will advance over this layer; 0 where it makes none."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)  # noqa: S101 (told to mypy)
    channels = layer.in_channels // layer.groups
    height, width = pair(layer.kernel_size)
    fits = channels <= MOST_COLOURS and can_fit(channels, height, width)
    return 2 * layer.out_channels if fits else 0
