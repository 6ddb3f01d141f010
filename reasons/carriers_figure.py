"""The figure of carriers: for each layer its strongest filters, and where they see the region.

Shapes: h w rows and columns of a layer's map, H W of the working image.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import percent
from cnnviz.core.output.canvas import Entry
from cnnviz.core.output.drawing import ROW, label_axes, name_rows, names_width
from cnnviz.core.output.layout import Cell, board, picture, plot
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    draw_picture,
    enlarged,
    map_cell,
    outline_pixels,
    scales,
)
from cnnviz.core.output.style import BLUE, ORANGE, ink
from cnnviz.reasons.results import Carrier, Carriers, LayerCarriers, ReasonsResult

BARS, MAPS = 8, 3
"""Filters with bars, and with maps."""
WIDTH = 150.0
Pixels = NDArray[np.uint8]
Patches = Callable[[Carrier], Pixels | None]
"""The strongest patches of a filter in one picture; None if there are none."""


def draw_carriers(result: ReasonsResult, beneath: Pixels, patches: Patches | None) -> Figure:
    """Draws a row for each layer of each class.

    Args:
        result: of one image.
        beneath: the image, uint8 (h, w, 3).
        patches: of the filters that have maps; None without `--units`.
    """
    rows: list[Sequence[Cell | None]] = []
    for target in result.targets:
        if target.carriers is not None:
            rows += _rows(target.class_, target.carriers, beneath, patches)
    legend = [
        Entry("drop brought back: original activations in the occluded pass", BLUE, marker="-"),
        Entry("drop caused: occluded activations in the original pass", ORANGE, marker="-"),
    ]
    return board(rows, legend=legend)


def _rows(
    name: str, carried: Carriers, beneath: Pixels, patches: Patches | None
) -> list[Sequence[Cell | None]]:
    region_HW = carried.region_HW.numpy()
    size = (region_HW.shape[0], region_HW.shape[1])
    rows: list[Sequence[Cell | None]] = []
    for layer in carried.layers:
        maps = [enlarged(map_hw.numpy(), size, Look().display) for map_hw in layer.changes_Nhw]
        (scale, *_) = scales(maps, Look(), "original − occluded activation")
        cells = [_bars(layer)]
        for carrier, map_HW in zip(layer.filters[:MAPS], maps, strict=False):
            text = f"filter {carrier.name}: {_text(carrier)}"
            cells.append(
                map_cell(
                    map_HW,
                    scale,
                    Look(),
                    beneath,
                    "",
                    text,
                    width=WIDTH,
                    mark=lambda axes: outline_pixels(axes, region_HW, size),
                )
            )
        rows.append(cells)
        if patches is not None:
            strips = [patches(carrier) for carrier in layer.filters[:MAPS]]
            if any(strip is not None for strip in strips):
                rows.append([None, *map(_strip, strips)])
    heading = (
        f"{name}: occluding the outlined region takes {carried.drop:.2g} of the {carried.score}"
    )

    def outlined(axes: Axes) -> None:
        draw_picture(axes, beneath, size)
        outline_pixels(axes, region_HW, size)

    return [[picture(outlined, size, heading, width=WIDTH)], *rows]


def _text(carrier: Carrier) -> str:
    return f"brings back {percent(carrier.restored)}, causes {percent(carrier.taken)}"


def _strip(pixels: Pixels | None) -> Cell | None:
    if pixels is None:
        return None
    size = (pixels.shape[0], pixels.shape[1])
    return picture(lambda axes: draw_picture(axes, pixels, size), size, width=WIDTH)


def _bars(layer: LayerCarriers) -> Cell:
    shown = layer.filters[:BARS]
    names = [carrier.name for carrier in shown]

    def paint(axes: Axes) -> None:
        places = np.arange(len(shown))
        for offset, colour, values in (
            (-0.2, BLUE, [carrier.restored for carrier in shown]),
            (0.2, ORANGE, [carrier.taken for carrier in shown]),
        ):
            axes.barh(places + offset, [100 * v for v in values], height=0.4, color=colour)
        axes.axvline(0, color=ink(), linewidth=0.6)
        name_rows(axes, names)
        label_axes(axes, "% of the drop", "filter")

    title = (
        f"{layer.layer}\n{layer.of_filters} filters: together {percent(layer.restored)} back, "
        f"{percent(layer.taken)} caused; sums of single ones {percent(layer.restored_sum)}, "
        f"{percent(layer.taken_sum)}"
    )
    left = 14.0 + names_width(names)
    return plot(paint, title, width=190.0, height=ROW * max(len(shown), 4), left=left)
