"""What `summary.json` says of the feature maps of one picture: plain data, no NaN."""

from typing import Any

from cnnviz.core.output.numbers import digits
from cnnviz.filters.activations.maps import Activations, LayerActivation


def report(found: Activations) -> dict[str, Any]:
    """One entry of `results`."""
    return {
        "image": found.image.path,
        "layers": [_layer(found, layer) for layer in found.layers],
    }


def _layer(found: Activations, layer: LayerActivation) -> dict[str, Any]:
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


def _channel(
    found: Activations, layer: LayerActivation, index: int, sparsity: float
) -> dict[str, Any]:
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
