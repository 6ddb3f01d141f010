"""The pictures of feature maps: all of a layer as grey tiles, or some laid over the image.

Maps that are nowhere negative run from black (zero) to white (the largest value); others have zero
at mid-grey. A map laid over the image is put where its units look: unit (row, column) covers the
pixels nearest to the centre of its receptive field.
"""

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import Colormap
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import (
    add_colorbar,
    bare,
    cmap_of,
    new_figure,
    symmetric_limit,
    title,
    to_uint8,
)
from cnnviz.core.output.sheets import Scale, draw_sheet, grid
from cnnviz.filters.activations.choices import MapOrder, Scaling
from cnnviz.filters.activations.maps import LayerActivation, nearest_units

LUMINANCE = np.array([0.299, 0.587, 0.114])
PANEL_WIDTH = 3.4  # inches
MOST_COLUMNS = 4


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
    heading = f"{found.layer}: {chosen} of {height}x{width}, {sorting}"
    numbers = None if whole else tuple(channels)
    return draw_sheet(grid(levels, "channel", numbers), heading, scale)


def draw_overlays(
    found: LayerActivation, channels: list[int], image: WorkingImage, alpha: float
) -> Figure:
    """Chosen maps over the image, each with its own scale."""
    assert found.field is not None  # noqa: S101 (the caller has checked)
    columns = min(len(channels), MOST_COLUMNS)
    rows = -(-len(channels) // columns)
    high, wide = image.pixels.shape[1:]
    figure = new_figure(PANEL_WIDTH * columns, rows * (PANEL_WIDTH * 0.8 * high / wide + 0.5))
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    grey_HW = image.pixels.numpy().transpose(1, 2, 0) @ LUMINANCE
    row_H, column_W = nearest_units(found.field)
    for axes, channel in zip(cells, channels, strict=False):
        values_HW = found.maps_CHW[channel].numpy()[row_H][:, column_W]
        axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        norm, cmap = _colours(values_HW)
        axes.imshow(values_HW, cmap=cmap, norm=norm, alpha=alpha, interpolation="nearest")
        add_colorbar(ScalarMappable(norm, cmap), axes, "activation")
        title(axes, f"{found.layer} channel {channel}")
    for axes in cells:
        bare(axes)
    for axes in cells[len(channels) :]:
        axes.set_visible(False)
    return figure


def _colours(values_HW: NDArray[np.float32]) -> tuple[Normalize, ListedColormap]:
    limit = symmetric_limit(values_HW)
    diverging = cmap_of(Colormap.DIVERGING)
    low = 0.0 if float(values_HW.min()) >= 0 else -limit
    colours = diverging(np.linspace(0.5 if low == 0 else 0.0, 1, 256))
    return Normalize(low, limit), ListedColormap(colours)
