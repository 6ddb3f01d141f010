"""The feature maps of layers on one image, and how sparse and how strong each map is.

Shapes: C channels, H W rows and columns of the maps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError
from cnnviz.core.graph.receptive_field import ReceptiveField
from cnnviz.core.models.layers import Layouts, find_layer, not_run, note_repeats, watch_outputs
from cnnviz.core.models.load import Model
from cnnviz.filters.activations.results import Activations, Channel, LayerActivation, Units
from cnnviz.filters.channels import known_fields


class Observer:
    """Some layers of one model, observed on any number of images.

    Attributes:
        layers: names of the layers.
        units: by layer, the positions of its units in the image, if known.
        untraceable: why there are no receptive fields; None if there are.
    """

    def __init__(self, model: Model, layers: Sequence[str]) -> None:
        self._model = model
        self.layers = tuple(dict.fromkeys(layers))
        for name in self.layers:
            find_layer(model.module, name, model.name)
        fields, self.untraceable = known_fields(model)
        self._layouts = Layouts(model).of(self.layers)
        for name in self.layers:
            if name not in self._layouts:
                raise not_run(name)
        layouts = self._layouts.items()
        # The graph does not know the rows and columns of tokens.
        self._fields = {
            name: fields[name]
            for name, layout in layouts
            if name in fields and fields[name].units == layout.shape[1:]
        }
        self.units = {name: nearest_units(field) for name, field in self._fields.items()}
        for name, layout in layouts:
            if name not in self.units and layout.patches:
                pairs = zip(layout.shape[1:], model.input_size, strict=True)
                rows_H, columns_W = (_evenly(count, pixels) for count, pixels in pairs)
                self.units[name] = rows_H, columns_W
        note_repeats(model, self.layers)

    def observe(self, image: WorkingImage) -> Activations:
        """Computes the maps of one image."""
        model = self._model
        with torch.inference_mode(), watch_outputs(model.module, self.layers) as outputs:
            model.outputs(model.preprocess.normalise(image.pixels)[None])
        layers = []
        for name in self.layers:
            maps_CHW = self._layouts[name].maps(outputs[name])[0].float().cpu()
            if not maps_CHW.isfinite().all():
                raise CnnvizError(
                    f"layer '{name}' gives values that are not finite on '{image.path}' in "
                    f"{model.precision.value}; use --precision fp32, or check the weights"
                )
            layers.append(self._describe(name, maps_CHW, image))
        return Activations(image.path, tuple(layers), image)

    def _describe(self, name: str, maps_CHW: Tensor, image: WorkingImage) -> LayerActivation:
        channels, height, width = maps_CHW.shape
        sparsities = (maps_CHW == 0).double().mean((1, 2)).tolist()
        field = self._fields.get(name)
        return LayerActivation(
            layer=name,
            channels=channels,
            map=(height, width),
            sparsity=sum(sparsities) / channels,
            silent=tuple(i for i, share in enumerate(sparsities) if share == 1),
            strongest=tuple(maps_CHW.amax((1, 2)).argsort(descending=True, stable=True).tolist()),
            per_channel=tuple(
                _channel(index, map_HW, sparsities[index], field, image)
                for index, map_HW in enumerate(maps_CHW)
            ),
            maps_CHW=maps_CHW,
            units=self.units.get(name),
        )


def _channel(
    index: int, map_HW: Tensor, sparsity: float, field: ReceptiveField | None, image: WorkingImage
) -> Channel:
    unit = divmod(int(map_HW.argmax()), map_HW.shape[1])
    box = None if field is None else field.box(*unit, clipped_to=field.input_size)
    return Channel(
        channel=index,
        lowest=float(map_HW.min()),
        highest=float(map_HW.max()),
        mean=float(map_HW.double().mean()),
        sparsity=sparsity,
        peak_unit=unit,
        peak_box=box,
        peak_box_original=None if box is None else image.to_original(box),
    )


def feature_maps(model: Model, image: WorkingImage, layers: Sequence[str]) -> Activations:
    """Computes the maps of some layers on one image; raises as `Observer`."""
    return Observer(model, layers).observe(image)


def nearest_units(field: ReceptiveField) -> Units:
    """The unit whose receptive field's centre is nearest, for each row and column of the image.

    Returns:
        (H,) rows and (W,) columns of the layer's map; all zero for a layer without positions.
    """
    units = []
    for axis, pixels in zip((field.rows, field.columns), field.input_size, strict=True):
        count = len(axis.first)
        if math.isinf(axis.size) or math.isinf(axis.jump):
            units.append(_evenly(count, pixels))  # all units see everything
            continue
        start = axis.start + axis.size / 2
        centres = start + axis.jump * torch.arange(count, dtype=torch.float64)
        units.append(_nearest(centres, pixels))
    return units[0], units[1]


def _evenly(count: int, pixels: int) -> Tensor:
    """The nearest of `count` evenly spaced units, for each pixel."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * pixels / count
    return _nearest(centres, pixels)


def _nearest(centres: Tensor, pixels: int) -> Tensor:
    middles = torch.arange(pixels, dtype=torch.float64) + 0.5
    return (middles[:, None] - centres).abs().argmin(1)
