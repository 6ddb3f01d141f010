"""Where in the image a unit really gets its value from.

Deep units can see most of the image, but the gradient of a unit with respect to the input is
concentrated in a small part of that (Luo, Li, Urtasun, Zemel 2016, "Understanding the Effective
Receptive Field in Deep Convolutional Neural Networks"). The box here leaves out, on each of its
four sides, at most 2.5 % of the gradient's energy, and so carries at least 90 % of it.

Shapes: A units, one per image; H W rows and columns of the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnnviz.core.models.layers import Layout, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import frozen, gradients

Box = tuple[int, int, int, int]
"""y0, x0, y1, x1; the last row and column are not in it."""

SHARE = 0.9
_PER_SIDE = (1 - SHARE) / 4


def gradient_energy(
    model: Model,
    layer: str,
    layout: Layout,
    filters: Sequence[int],
    units: Sequence[tuple[int, int]],
    images_A3HW: Tensor,
) -> Tensor:
    """Squared gradient of each unit with respect to its image, summed over colours.

    Args:
        model: the network.
        layer: whose units.
        layout: how what it puts out lies.
        filters: one per image.
        units: (row, column) in the filter's map; one per image.
        images_A3HW: normalised.

    Returns:
        (A, H, W) float64 on the CPU.
    """
    chosen: list[Tensor] = []

    def take(output: Tensor) -> Tensor:
        maps = layout.maps(output)
        picks = [(n, f, *unit) for n, (f, unit) in enumerate(zip(filters, units, strict=True))]
        chosen[:] = [torch.stack([maps[pick] for pick in picks]).sum()]
        return output

    leaf = images_A3HW.to(model.device, model.precision.dtype).requires_grad_()
    with frozen(model.module), replace_outputs(model.module, {layer: take}):
        model.outputs(leaf * 1)  # networks may begin with an operation in place
        (gradient,) = gradients(chosen[0], [leaf], model.name)
    if gradient is None:
        return torch.zeros(len(leaf), *leaf.shape[2:], dtype=torch.float64)
    return gradient.detach().cpu().double().square().sum(1)


def box_of_energy(energy_HW: Tensor) -> Box | None:
    """The box that carries at least 90 % of the energy; None where there is none at all."""
    total = float(energy_HW.sum())
    if not total > 0:
        return None
    sides = []
    for axis in (1, 0):
        profile = energy_HW.sum(axis) / total
        first = int((profile.cumsum(0) <= _PER_SIDE).sum())
        last = len(profile) - int((profile.flip(0).cumsum(0) <= _PER_SIDE).sum())
        sides.append((first, last))
    (y0, y1), (x0, x1) = sides
    return y0, x0, y1, x1
