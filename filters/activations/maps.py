"""A layer's feature maps of one picture, and how sparse and how strong each of them is.

Shapes: C channels, H W rows and columns of the maps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.receptive_field import ReceptiveField, receptive_fields
from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.layers import find_layer, replace_outputs
from cnnviz.core.models.load import Model


@dataclass(frozen=True, eq=False)
class LayerActivation:
    """What one layer makes of one picture.

    Attributes:
        layer: dotted name.
        maps_CHW: float32, on the CPU.
        field: the units' receptive fields; None where the network cannot be traced.
    """

    layer: str
    maps_CHW: Tensor
    field: ReceptiveField | None

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
        self.fields: dict[str, ReceptiveField] = {}
        self.untraceable: str | None = None
        try:
            self.fields = receptive_fields(model.module, model.input_size)
        except Untraceable as error:
            self.untraceable = str(error)
        self._channels = {
            name: maps.shape[0]
            for name, maps in self._maps(torch.zeros(1, 3, *model.input_size)).items()
        }

    def channels(self, layer: str) -> int:
        """How many maps the layer has."""
        return self._channels[layer]

    def observe(self, image: WorkingImage) -> Activations:
        """The maps of one picture.

        Raises:
            CnnvizError: a map is not finite.
        """
        maps = self._maps(self._model.preprocess.normalise(image.pixels)[None])
        found = []
        for name in self.layers:
            if not maps[name].isfinite().all():
                raise CnnvizError(
                    f"layer '{name}' gives values that are not finite on '{image.path}' in "
                    f"{self._model.precision.value}; use --precision fp32, or check the weights"
                )
            found.append(LayerActivation(name, maps[name], self.fields.get(name)))
        return Activations(image, tuple(found), self.untraceable)

    def _maps(self, pixels_13HW: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> Tensor:
            # A copy: the next layer may work in place.
            outputs[name] = output.detach().float().clone()
            return output

        changes = {name: lambda output, name=name: keep(name, output) for name in self.layers}
        with replace_outputs(self._model.module, changes), torch.inference_mode():
            self._model.logits(pixels_13HW)
        return {name: self._as_maps(name, outputs.get(name)) for name in self.layers}

    def _as_maps(self, name: str, output: Tensor | None) -> Tensor:
        if output is None:
            raise UsageError(f"layer '{name}' of {self._model.name} does not run; name another")
        output = output.cpu()
        if output.dim() == 2:  # a linear layer: maps of one unit
            output = output[:, :, None, None]
        if output.dim() != 4:
            shape = "x".join(map(str, output.shape[1:]))
            raise UsageError(
                f"layer '{name}' of {self._model.name} puts out {shape}, not channels of maps; "
                f"name a convolution or what follows one"
            )
        return output[0]


def feature_maps(model: Model, image: WorkingImage, layers: Sequence[str]) -> Activations:
    """What some layers make of one picture; see `Observer` for what is raised."""
    return Observer(model, layers).observe(image)


def parse_filters(text: str, channels: int, layer: str) -> list[int]:
    """`3,17` or `0-15` or both mixed, as channel numbers in that order, each once.

    Raises:
        UsageError: it is no such list, or a number is out of range.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"'{text}' is no list of filters; --filters takes 3,17 or 0-15")
        found += range(int(first), int(last if dash else first) + 1)
    wrong = next((index for index in found if index >= channels), None)
    if wrong is not None:
        raise UsageError(
            f"no filter {wrong} in layer '{layer}'; it has {channels}, numbered 0 to {channels - 1}"
        )
    if not found:
        raise UsageError(f"'{text}' names no filter; --filters takes 3,17 or 0-15")
    return list(dict.fromkeys(found))


def nearest_units(field: ReceptiveField) -> tuple[Tensor, Tensor]:
    """For each row and column of the image, the unit whose receptive field's centre is nearest.

    Returns:
        (H,) rows and (W,) columns of the layer's map; all zero for a layer without places.
    """
    found = []
    for axis, pixels in zip((field.rows, field.columns), field.input_size, strict=True):
        count = len(axis.first)
        if math.isinf(axis.size) or math.isinf(axis.jump):
            # All units see everything: spread them evenly.
            centres = (torch.arange(count, dtype=torch.float64) + 0.5) * pixels / count
        else:
            start = axis.start + axis.size / 2
            centres = start + axis.jump * torch.arange(count, dtype=torch.float64)
        middles = torch.arange(pixels, dtype=torch.float64) + 0.5
        found.append((middles[:, None] - centres).abs().argmin(1))
    return found[0], found[1]
