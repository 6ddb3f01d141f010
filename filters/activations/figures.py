"""Figures of feature maps: as grey tiles beside the image, or over the image.

Negative values are drawn as zero, as the ReLU behind most layers does, unless they are requested.
Maps without negative values are black at zero and white at the largest value; others have zero at
mid-grey. Over the image, unit (row, column) of a map covers the pixels nearest to the centre of its
receptive field, and a token covers its patch.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from cnnviz.core.choices import Scaling
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.layout import board, in_rows
from cnnviz.core.output.options import Ends, Look
from cnnviz.core.output.overlays import (
    input_cell,
    map_cell,
    photograph,
    scales,
)
from cnnviz.core.output.sheets import grid, sheet_cell
from cnnviz.filters.activations.options import ActivationsSpec, MapOrder
from cnnviz.filters.activations.results import Activations, LayerActivation
from cnnviz.filters.kernels.figures import grey_levels

MOST_SHOWN = 64
"""Maps in a notebook."""


def preview(result: Activations) -> Figure | None:
    """The figure that a notebook shows: the strongest maps of the first layer."""
    if result.working is None:
        return None
    layer = result.layers[0]
    channels = layer.order(strongest=True)[:MOST_SHOWN]
    return draw_maps(layer, channels, ActivationsSpec(top=MOST_SHOWN), result.working)


def draw_maps(
    layer: LayerActivation, channels: list[int], spec: ActivationsSpec, image: WorkingImage
) -> Figure:
    """Draws the image and maps of a layer as grey tiles, in the order given."""
    maps_NHW = layer.maps_CHW.numpy()[channels]
    total, height, width = layer.maps_CHW.shape
    signed = bool((maps_NHW < 0).any()) and spec.signed
    clipped = "" if signed or not (maps_NHW < 0).any() else ", negative values as 0 (--signed)"
    maps_NHW = maps_NHW if signed else maps_NHW.clip(min=0)
    levels, bar = grey_levels(maps_NHW, spec.normalize, "activation", "map", signed=signed)
    chosen = f"{total} maps" if len(channels) == total else f"{len(channels)} of {total} maps"
    sorting = "by channel" if spec.sorting is MapOrder.CHANNEL else "strongest first"
    heading = f"{layer.layer}\n{chosen} of {height}x{width}, {sorting}{clipped}"
    sheet = sheet_cell(grid(levels, "channel", tuple(channels)), heading, bar)
    return board([[input_cell(photograph(image), _size(image)), sheet]])


def _size(image: WorkingImage) -> tuple[int, int]:
    return int(image.pixels.shape[1]), int(image.pixels.shape[2])


def draw_overlays(
    layer: LayerActivation, channels: Sequence[int], image: WorkingImage, spec: ActivationsSpec
) -> Figure:
    """Draws the image and maps over it, with one scale or each with its own (`--normalize`)."""
    assert layer.units is not None  # noqa: S101 (the caller checks)
    size, background = _size(image), photograph(image)
    ends = Ends.OWN if spec.normalize is Scaling.FILTER else Ends.SHARED
    look = Look(alpha=spec.alpha, scale=ends)
    row_H, column_W = layer.units
    maps = [layer.maps_CHW[channel].numpy()[row_H][:, column_W] for channel in channels]
    if not spec.signed:
        maps = [values_HW.clip(min=0) for values_HW in maps]
    cells = [input_cell(background, size)]
    for channel, values_HW, scale in zip(
        channels, maps, scales(maps, look, "activation", one_sided=True), strict=True
    ):
        nothing = "" if values_HW.any() else ", zero everywhere"
        title = f"channel {channel}{nothing}\n{layer.layer}"
        cells.append(map_cell(values_HW, scale, look, background, title))
    return board(in_rows(cells))
