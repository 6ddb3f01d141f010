"""What `summary.json` says of the feature maps of one picture: plain data, no NaN."""

from typing import Annotated

from typing_extensions import TypedDict

from cnnviz.core.output.entries import Box, Count, Place, Positive, Said, Share, Sides
from cnnviz.core.output.numbers import digits
from cnnviz.filters.activations.maps import Activations, LayerActivation


class Channel(TypedDict):
    """One channel's map."""

    channel: Count
    lowest: float
    highest: float
    mean: float
    sparsity: Annotated[Share, Said("share of exact zeros")]
    peak_unit: Place
    peak_box: Annotated[
        Box | None, Said("the pixels that the peak's unit sees; null where that is not known")
    ]
    peak_box_original: Annotated[Box | None, Said("the same in the file's own pixels")]


class Layer(TypedDict):
    """One layer's maps."""

    layer: str
    channels: Positive
    map: Sides
    sparsity: Share
    silent: Annotated[list[Count], Said("channels that are zero everywhere")]
    strongest: Annotated[list[Count], Said("all channels, by largest value")]
    per_channel: Annotated[list[Channel], Said(minItems=1)]


class Entry(TypedDict):
    """One picture."""

    image: str
    layers: Annotated[list[Layer], Said(minItems=1)]


def report(found: Activations) -> Entry:
    """One entry of `results`."""
    return {
        "image": found.image.path,
        "layers": [_layer(found, layer) for layer in found.layers],
    }


def _layer(found: Activations, layer: LayerActivation) -> Layer:
    channels, height, width = layer.maps_CHW.shape
    sparsities = layer.sparsities.tolist()
    return {
        "layer": layer.layer,
        "channels": channels,
        "map": [height, width],
        "sparsity": digits(sum(sparsities) / channels),
        "silent": [i for i, share in enumerate(sparsities) if share == 1],
        "strongest": layer.order(strongest=True),
        "per_channel": [_channel(found, layer, i, sparsities[i]) for i in range(channels)],
    }


def _channel(found: Activations, layer: LayerActivation, index: int, sparsity: float) -> Channel:
    values_HW = layer.maps_CHW[index]
    unit = divmod(int(values_HW.argmax()), values_HW.shape[1])
    box = None
    if layer.field is not None:
        size = layer.field.input_size
        box = list(layer.field.box(*unit, clipped_to=size))
    return {
        "channel": index,
        "lowest": digits(float(values_HW.min())),
        "highest": digits(float(values_HW.max())),
        "mean": digits(float(values_HW.double().mean())),
        "sparsity": digits(sparsity),
        "peak_unit": list(unit),
        "peak_box": box,
        "peak_box_original": None if box is None else list(found.image.to_original(box)),
    }
