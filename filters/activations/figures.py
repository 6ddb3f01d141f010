"""The pictures of feature maps: all of a layer as grey tiles, or some laid over the image.

Maps that are nowhere negative run from black (zero) to white (the largest value); others have zero
at mid-grey. A map laid over the image is put where its units look: unit (row, column) covers the
pixels nearest to the centre of its receptive field; a token's its own patch.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cnnviz.core.choices import Scaling
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import bare, title, to_uint8
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import draw_map, panels, photograph
from cnnviz.core.output.sheets import Scale, draw_sheet, grid
from cnnviz.filters.activations.choices import MapOrder
from cnnviz.filters.activations.maps import LayerActivation


def draw_maps(
    found: LayerActivation, channels: list[int], scaling: Scaling, order: MapOrder
) -> Figure:
    """Some maps of a layer as grey tiles, in the order given."""
    maps_NHW = found.maps_CHW.numpy()[channels]
    total, height, width = found.maps_CHW.shape
    signed = bool((maps_NHW < 0).any())
    largest_N11 = np.abs(maps_NHW).max(axis=(1, 2), keepdims=True)
    largest = float(largest_N11.max(initial=0))
    divisor = largest_N11 if scaling is Scaling.FILTER else np.full_like(largest_N11, largest)
    shares = maps_NHW / np.maximum(divisor, 1e-30)
    levels = to_uint8(0.5 + 0.5 * shares if signed else shares)
    low = -1.0 if signed else 0.0
    if scaling is Scaling.FILTER:
        scale = Scale(low, 1, "activation / the map's largest |activation|")
    else:
        scale = Scale(low * largest, largest if largest > 0 else 1.0, "activation")
    whole = len(channels) == total and order is MapOrder.CHANNEL
    chosen = f"{total} maps" if len(channels) == total else f"{len(channels)} of {total} maps"
    sorting = "by channel" if order is MapOrder.CHANNEL else "strongest first"
    heading = f"{found.layer}\n{chosen} of {height}x{width}, {sorting}"
    numbers = None if whole else tuple(channels)
    return draw_sheet(grid(levels, "channel", numbers), heading, scale)


def draw_overlays(
    found: LayerActivation, channels: Sequence[int], image: WorkingImage, alpha: float
) -> Figure:
    """Chosen maps over the image, each with its own scale."""
    assert found.units is not None  # noqa: S101 (the caller has checked)
    high, wide = image.pixels.shape[1:]
    figure, cells = panels(len(channels), (high, wide))
    beneath, look = photograph(image), Look(alpha=alpha)
    row_H, column_W = found.units
    for axes, channel in zip(cells, channels, strict=True):
        values_HW = found.maps_CHW[channel].numpy()[row_H][:, column_W]
        draw_map(axes, values_HW, look, "activation", over=beneath, one_sided=True)
        title(axes, f"{found.layer} channel {channel}")
        bare(axes)
    return figure
