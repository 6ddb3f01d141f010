"""From a unit to the patch of the image that it sees.

A patch is the unit's exact receptive field, clipped to the image. If that is most of the image, the
patch can be the part where the unit's gradient is instead (`Crop.EFFECTIVE`): the gradient of a
deep unit with respect to the input is concentrated in a small part of its receptive field (Luo, Li,
Urtasun, Zemel 2016, "Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks"). That box leaves out at most 2.5 % of the gradient's energy on each of its four sides, so
it carries at least 90 %.

Shapes: A units, one per image; C channels, H W rows and columns of the image.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.images import Preprocess, WorkingImage
from cnnviz.core.device import in_batches
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.layers import Layout, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import ReluRule, frozen, gradients
from cnnviz.filters.channels import known_fields
from cnnviz.filters.patches.options import Crop
from cnnviz.filters.patches.scan import ScanPlan

Box = tuple[int, int, int, int]
"""y0, x0, y1, x1; the last row and column are excluded."""

MAX_EXACT = 0.5
"""Share of the image above which a receptive field is too large for `Crop.EFFECTIVE`."""
SHARE = 0.9
_PER_SIDE = (1 - SHARE) / 4
KEPT, THREADS = 256, 4


class PatchImages:
    """Working images of a data set by index; the last few hundred are kept in memory."""

    def __init__(self, data: ImageData, preprocess: Preprocess) -> None:
        self._data, self._preprocess = data, preprocess
        self._kept: OrderedDict[int, WorkingImage] = OrderedDict()

    def _read(self, index: int) -> WorkingImage:
        return self._data.working(index, self._preprocess)

    def fetch(self, indices: Iterable[int]) -> dict[int, WorkingImage]:
        """Reads these images; a CnnvizError if one can no longer be read."""
        needed = list(dict.fromkeys(indices))
        images = {index: self._kept[index] for index in needed if index in self._kept}
        missing = [index for index in needed if index not in images]
        with ThreadPoolExecutor(THREADS) as pool:
            images.update(zip(missing, pool.map(self._read, missing), strict=True))
        for index in needed:
            self._kept[index] = images[index]
            self._kept.move_to_end(index)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return images


@dataclass(frozen=True)
class Winner:
    """An entry of a filter's top k: a unit (row, column) on the image of that index."""

    filter: int
    index: int
    score: float
    unit: tuple[int, int]


class Cutter:
    """Determines the box of each winner of a layer."""

    def __init__(self, model: Model, images: PatchImages, plan: ScanPlan, batch_size: int) -> None:
        self._model, self._images = model, images
        self._crop, self._batch_size = plan.spec.crop, batch_size
        self._layouts = plan.layouts
        fields, reason = known_fields(model)
        # The graph does not know rows and columns of tokens, only that they see everything.
        self._fields = {
            name: fields[name]
            for name, layout in plan.layouts.items()
            if name in fields and (fields[name].is_global or fields[name].units == layout.shape[1:])
        }
        unknown = [name for name in plan.layouts if name not in self._fields]
        if unknown and self._crop is Crop.RECEPTIVE_FIELD:
            reason = reason or f"the receptive field of layer '{unknown[0]}' is not known"
            raise CnnvizError(f"{reason}; use --crop effective, which does not need it")

    def boxes(self, layer: str, winners: Sequence[Winner]) -> list[Box]:
        """The winners' boxes in the working image."""
        if self._crop is Crop.RECEPTIVE_FIELD or not self._sees_most(layer):
            return self._exact(layer, winners)
        boxes: list[Box] = []

        def cut(part: slice) -> None:
            effective = self._effective(layer, winners[part])
            exact = self._exact(layer, winners[part])
            boxes.extend(box or whole for box, whole in zip(effective, exact, strict=True))

        for _done, size in in_batches(len(winners), self._batch_size, cut):
            self._batch_size = size
        return boxes

    def _sees_most(self, layer: str) -> bool:
        """Whether a unit in the middle of the layer's map sees most of the image."""
        field = self._fields.get(layer)
        if field is None:
            return True
        size = self._model.input_size
        seen = [min(length, side) for length, side in zip(field.size, size, strict=True)]
        return math.prod(seen) > MAX_EXACT * math.prod(size)

    def _exact(self, layer: str, winners: Sequence[Winner]) -> list[Box]:
        size = self._model.input_size
        field = self._fields.get(layer)
        if field is None or field.units != self._layouts[layer].shape[1:]:
            return [(0, 0, *size)] * len(winners)
        return [field.box(*winner.unit, clipped_to=size) for winner in winners]

    def _effective(self, layer: str, winners: Sequence[Winner]) -> list[Box | None]:
        images = self._images.fetch(winner.index for winner in winners)
        pixels = torch.stack([images[winner.index].pixels for winner in winners])
        energy_AHW = gradient_energy(
            self._model,
            layer,
            self._layouts[layer],
            [winner.filter for winner in winners],
            [winner.unit for winner in winners],
            self._model.preprocess.normalise(pixels),
        )
        return [box_of_energy(energy_HW) for energy_HW in energy_AHW]


def gradient_energy(
    model: Model,
    layer: str,
    layout: Layout,
    filters: Sequence[int],
    units: Sequence[tuple[int, int]],
    images_ACHW: Tensor,
) -> Tensor:
    """Squared `unit_gradients`, summed over channels: (A, H, W) float64 on the CPU."""
    gradient_ACHW = unit_gradients(model, layer, layout, filters, units, images_ACHW)
    return gradient_ACHW.double().square().sum(1)


def unit_gradients(
    model: Model,
    layer: str,
    layout: Layout,
    filters: Sequence[int],
    units: Sequence[tuple[int, int]],
    images_ACHW: Tensor,
    *,
    guided: bool = False,
) -> Tensor:
    """Gradient of each unit with respect to its image; zero where it does not reach.

    Args:
        model: the network.
        layer: the units' layer.
        layout: of its output.
        filters: one per image.
        units: (row, column) in the filter's map; one per image.
        images_ACHW: normalised.
        guided: whether a ReLU passes positive gradients only.

    Returns:
        (A, C, H, W) float32 on the CPU.
    """
    chosen: list[Tensor] = []

    def take(output: Tensor) -> Tensor:
        maps = layout.maps(output)
        picks = [(n, f, *unit) for n, (f, unit) in enumerate(zip(filters, units, strict=True))]
        chosen[:] = [torch.stack([maps[pick] for pick in picks]).sum()]
        return output

    leaf = images_ACHW.to(model.device, model.precision.dtype).requires_grad_()
    with frozen(model.module), replace_outputs(model.module, {layer: take}):
        model.outputs(leaf * 1)  # the first operation may be in place
        with ReluRule() if guided else nullcontext():
            (gradient,) = gradients(chosen[0], [leaf], model.name)
    return (torch.zeros_like(leaf) if gradient is None else gradient).detach().cpu().float()


def box_of_energy(energy_HW: Tensor) -> Box | None:
    """The box that carries at least 90 % of the energy; None if there is no energy."""
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
