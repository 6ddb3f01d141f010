"""Figures of feature maps: as grey tiles, or over the image.

Maps without negative values are black at zero and white at the largest value; others have zero at
mid-grey. Over the image, unit (row, column) of a map covers the pixels nearest to the centre of its
receptive field, and a token covers its patch.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cnnviz.core.choices import Scaling
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import bare, title
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_map, panels, photograph
from cnnviz.core.output.sheets import draw_sheet, grid
from cnnviz.filters.activations.options import MapOrder
from cnnviz.filters.activations.results import LayerActivation
from cnnviz.filters.kernels.figures import grey_levels


def draw_maps(
    layer: LayerActivation, channels: list[int], scaling: Scaling, order: MapOrder
) -> Figure:
    """Draws maps of a layer as grey tiles, in the order given."""
    maps_NHW = layer.maps_CHW.numpy()[channels]
    total, height, width = layer.maps_CHW.shape
    signed = bool((maps_NHW < 0).any())
    levels, scale = grey_levels(maps_NHW, scaling, "activation", "map", signed=signed)
    whole = len(channels) == total and order is MapOrder.CHANNEL
    chosen = f"{total} maps" if len(channels) == total else f"{len(channels)} of {total} maps"
    sorting = "by channel" if order is MapOrder.CHANNEL else "strongest first"
    heading = f"{layer.layer}\n{chosen} of {height}x{width}, {sorting}"
    numbers = None if whole else tuple(channels)
    return draw_sheet(grid(levels, "channel", numbers), heading, scale)


def draw_overlays(
    layer: LayerActivation, channels: Sequence[int], image: WorkingImage, alpha: float
) -> Figure:
    """Draws maps over the image, each with its own scale."""
    assert layer.units is not None  # noqa: S101 (the caller checks)
    high, wide = image.pixels.shape[1:]
    figure, cells = panels(len(channels), (high, wide))
    background, look = photograph(image), Look(alpha=alpha)
    row_H, column_W = layer.units
    for axes, channel in zip(cells, channels, strict=True):
        values_HW = layer.maps_CHW[channel].numpy()[row_H][:, column_W]
        draw_map(axes, values_HW, look, "activation", over=background, one_sided=True)
        title(axes, f"{layer.layer} channel {channel}")
        bare(axes)
    return figure
