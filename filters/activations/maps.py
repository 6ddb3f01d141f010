"""A layer's feature maps of one picture, and how sparse and how strong each of them is.

Shapes: C channels, H W rows and columns of the maps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError
from cnnviz.core.graph.receptive_field import ReceptiveField, receptive_fields
from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.layers import Layouts, find_layer, not_run, note_repeats, watch_outputs
from cnnviz.core.models.load import Model

Units = tuple[Tensor, Tensor]
"""For each row (H,) and each column (W,) of the image, the unit of a layer that stands there."""


@dataclass(frozen=True, eq=False)
class LayerActivation:
    """What one layer makes of one picture.

    Attributes:
        layer: dotted name.
        maps_CHW: float32, on the CPU.
        field: the units' receptive fields; None where they are not known.
        units: for each row and for each column of the image, the unit there; None where that is
            not known.
    """

    layer: str
    maps_CHW: Tensor
    field: ReceptiveField | None
    units: Units | None

    @property
    def strengths(self) -> Tensor:
        """(C,) the largest value of each map."""
        return self.maps_CHW.amax((1, 2))

    @property
    def sparsities(self) -> Tensor:
        """(C,) share of exact zeros in each map."""
        return (self.maps_CHW == 0).double().mean((1, 2))

    def order(self, *, strongest: bool) -> list[int]:
        """Channel numbers, counting up or from the largest peak down; ties by number."""
        if not strongest:
            return list(range(len(self.maps_CHW)))
        return self.strengths.argsort(descending=True, stable=True).tolist()


@dataclass(frozen=True, eq=False)
class Activations:
    """What some layers make of one picture.

    Attributes:
        image: the working image.
        layers: in the order asked for.
        untraceable: why there are no receptive fields, if there are none.
    """

    image: WorkingImage
    layers: tuple[LayerActivation, ...]
    untraceable: str | None


class Observer:
    """Some layers of one model, looked at on any number of pictures.

    Attributes:
        layers: their names.
        fields: their receptive fields, where they are known.
        units: where their units stand, where that is known.
        untraceable: why there are none, if there are none.
    """

    def __init__(self, model: Model, layers: Sequence[str]) -> None:
        """Looks the layers up.

        Raises:
            UsageError: no such layer, or it puts out no maps.
        """
        self._model = model
        self.layers = tuple(dict.fromkeys(layers))
        for name in self.layers:
            find_layer(model.module, name, model.name)
        fields: dict[str, ReceptiveField] = {}
        self.untraceable: str | None = None
        try:
            fields = receptive_fields(
                model.module, model.input_size, channels=model.preprocess.channels
            )
        except Untraceable as error:
            self.untraceable = str(error)
        self._layouts = Layouts(model).of(self.layers)
        for name in self.layers:
            if name not in self._layouts:
                raise not_run(name)
        layouts = self._layouts.items()
        # Of tokens the graph knows no rows and columns.
        self.fields = {
            name: fields[name]
            for name, layout in layouts
            if name in fields and fields[name].units == layout.shape[1:]
        }
        self.units = {name: nearest_units(field) for name, field in self.fields.items()}
        for name, layout in layouts:
            if name not in self.units and layout.patches:
                pairs = zip(layout.shape[1:], model.input_size, strict=True)
                rows_H, columns_W = (_evenly(count, pixels) for count, pixels in pairs)
                self.units[name] = rows_H, columns_W
        note_repeats(model, self.layers)

    def observe(self, image: WorkingImage) -> Activations:
        """The maps of one picture.

        Raises:
            CnnvizError: a map is not finite.
        """
        model = self._model
        with torch.inference_mode(), watch_outputs(model.module, self.layers) as outputs:
            model.outputs(model.preprocess.normalise(image.pixels)[None])
        found = []
        for name in self.layers:
            maps_CHW = self._layouts[name].maps(outputs[name])[0].float().cpu()
            if not maps_CHW.isfinite().all():
                raise CnnvizError(
                    f"layer '{name}' gives values that are not finite on '{image.path}' in "
                    f"{model.precision.value}; use --precision fp32, or check the weights"
                )
            field, units = self.fields.get(name), self.units.get(name)
            found.append(LayerActivation(name, maps_CHW, field, units))
        return Activations(image, tuple(found), self.untraceable)


def feature_maps(model: Model, image: WorkingImage, layers: Sequence[str]) -> Activations:
    """What some layers make of one picture; see `Observer` for what is raised."""
    return Observer(model, layers).observe(image)


def nearest_units(field: ReceptiveField) -> Units:
    """For each row and column of the image, the unit whose receptive field's centre is nearest.

    Returns:
        (H,) rows and (W,) columns of the layer's map; all zero for a layer without places.
    """
    found = []
    for axis, pixels in zip((field.rows, field.columns), field.input_size, strict=True):
        count = len(axis.first)
        if math.isinf(axis.size) or math.isinf(axis.jump):
            found.append(_evenly(count, pixels))  # all units see everything
            continue
        start = axis.start + axis.size / 2
        centres = start + axis.jump * torch.arange(count, dtype=torch.float64)
        found.append(_nearest(centres, pixels))
    return found[0], found[1]


def _evenly(count: int, pixels: int) -> Tensor:
    """The nearest of `count` units spread evenly, for each pixel."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * pixels / count
    return _nearest(centres, pixels)


def _nearest(centres: Tensor, pixels: int) -> Tensor:
    middles = torch.arange(pixels, dtype=torch.float64) + 0.5
    return (middles[:, None] - centres).abs().argmin(1)
