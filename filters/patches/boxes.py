"""From a unit to the patch of the image that it looks at.

The exact receptive field comes from the network's geometry, clipped to the image. Where it is most
of the image, the patch can be the part that carries the unit's gradient instead
(`effective_field`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cnnviz.core.device import in_batches
from cnnviz.core.errors import CnnvizError
from cnnviz.core.graph.receptive_field import ReceptiveField, receptive_fields
from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.load import Model
from cnnviz.filters.patches.choices import Crop
from cnnviz.filters.patches.effective_field import Box, box_of_energy, gradient_energy
from cnnviz.filters.patches.images import PatchImages
from cnnviz.filters.patches.plan import ScanPlan

MOST = 0.5
"""Share of the image above which a receptive field is too large for `Crop.EFFECTIVE`."""


@dataclass(frozen=True)
class Winner:
    """A place in a filter's top k: which unit on which image.

    Attributes:
        filter: the output channel.
        index: the image's place in the data set.
        score: what ranked it.
        unit: (row, column) in the filter's map.
    """

    filter: int
    index: int
    score: float
    unit: tuple[int, int]


class Cutter:
    """Gives each winner of a layer its box."""

    def __init__(self, model: Model, images: PatchImages, plan: ScanPlan, batch_size: int) -> None:
        """Works out the receptive fields.

        Raises:
            CnnvizError: they cannot be told, and the plan's crop needs them.
        """
        self._model, self._images = model, images
        self._crop, self._batch_size = plan.spec.crop, batch_size
        self._layouts = plan.layouts
        fields: Mapping[str, ReceptiveField] = {}
        reason = ""
        try:
            fields = receptive_fields(
                model.module, model.input_size, channels=model.preprocess.channels
            )
        except Untraceable as error:
            reason = str(error)
        # Of tokens the graph knows no rows and columns; but that they see everything.
        self._fields = {
            name: fields[name]
            for name, layout in plan.layouts.items()
            if name in fields and (fields[name].is_global or fields[name].units == layout.shape[1:])
        }
        unknown = [name for name in plan.layouts if name not in self._fields]
        if unknown and self._crop is Crop.RECEPTIVE_FIELD:
            reason = reason or f"the receptive field of layer '{unknown[0]}' is not known"
            raise CnnvizError(f"{reason}; --crop effective does without")

    def boxes(self, layer: str, winners: Sequence[Winner]) -> list[Box]:
        """Boxes in the working image, in the order of the winners."""
        if self._crop is Crop.RECEPTIVE_FIELD or not self._sees_most(layer):
            return self._exact(layer, winners)
        boxes: list[Box] = []

        def some(part: slice) -> None:
            effective = self._effective(layer, winners[part])
            exact = self._exact(layer, winners[part])
            boxes.extend(own or whole for own, whole in zip(effective, exact, strict=True))

        for _done, size in in_batches(len(winners), self._batch_size, some):
            self._batch_size = size
        return boxes

    def _sees_most(self, layer: str) -> bool:
        """Whether a unit in the middle of the layer's map sees most of the image."""
        field = self._fields.get(layer)
        if field is None:
            return True
        size = self._model.input_size
        seen = [min(length, side) for length, side in zip(field.size, size, strict=True)]
        return math.prod(seen) > MOST * math.prod(size)

    def _exact(self, layer: str, winners: Sequence[Winner]) -> list[Box]:
        size = self._model.input_size
        field = self._fields.get(layer)
        if field is None or field.units != self._layouts[layer].shape[1:]:
            return [(0, 0, *size)] * len(winners)
        return [field.box(*winner.unit, clipped_to=size) for winner in winners]

    def _effective(self, layer: str, winners: Sequence[Winner]) -> list[Box | None]:
        found = self._images.fetch(winner.index for winner in winners)
        pixels = torch.stack([found[winner.index].pixels for winner in winners])
        energy_AHW = gradient_energy(
            self._model,
            layer,
            self._layouts[layer],
            [winner.filter for winner in winners],
            [winner.unit for winner in winners],
            self._model.preprocess.normalise(pixels),
        )
        return [box_of_energy(energy_HW) for energy_HW in energy_AHW]
