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
from cnnviz.core.output.layout import Cell, board, picture, plot, words
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    draw_picture,
    enlarged,
    outline_pixels,
    paint_map,
    scales,
)
from cnnviz.core.output.style import BLUE, ORANGE, ink
from cnnviz.core.output.text import number
from cnnviz.reasons.results import Carrier, Carriers, LayerCarriers, ReasonsResult

BARS, MAPS = 7, 3
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

    def outlined(axes: Axes) -> None:
        draw_picture(axes, beneath, size)
        outline_pixels(axes, region_HW, size)

    text = (
        f"{name}: {carried.score} {carried.before:.2f}, and {carried.after:.2f} with the outlined "
        f"region occluded (fill: {carried.fill}; another fill gives other filters). Which filters "
        "carry this drop? On the right, for the strongest filters of each layer, the activation "
        "with the original region minus that with it occluded: red where the original is higher."
    )
    rows: list[Sequence[Cell | None]] = [
        [picture(outlined, size, width=WIDTH), words(text, 2.5 * WIDTH, spans=True)]
    ]
    near = _around(region_HW)
    for layer in carried.layers:
        strongest = list(zip(layer.filters, layer.changes_Nhw, strict=True))[:MAPS]
        maps = [enlarged(map_hw.numpy(), size, Look().display) for _carrier, map_hw in strongest]
        cells = [
            _near(carrier, map_HW, near, region_HW, beneath)
            for (carrier, _map), map_HW in zip(strongest, maps, strict=True)
        ]
        rows.append([_bars(layer), *cells])
        if patches is not None:
            strips = [patches(carrier) for carrier, _map in strongest]
            if any(strip is not None for strip in strips):
                rows.append([None, *map(_strip, strips)])
    return rows


def _around(region_HW: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns of the region and half of its side around it."""
    found = []
    for axis, side in enumerate(region_HW.shape):
        inside = np.flatnonzero(region_HW.any(1 - axis))
        first, last = int(inside[0]), int(inside[-1]) + 1
        more = (last - first) // 2
        found.append(slice(max(0, first - more), min(side, last + more)))
    return found[0], found[1]


def _near(
    carrier: Carrier,
    map_HW: NDArray[np.float32],
    near: tuple[slice, slice],
    region_HW: NDArray[np.bool_],
    beneath: Pixels,
) -> Cell:
    """The part of a filter's map around the region, in colours that end at its largest value."""
    shown_hw, finer = map_HW[near], (beneath.shape[0] / len(map_HW))
    rows, columns = (slice(round(s.start * finer), round(s.stop * finer)) for s in near)
    below = np.ascontiguousarray(beneath[rows, columns])
    (scale,) = scales([shown_hw], Look(), "")
    size = (shown_hw.shape[0], shown_hw.shape[1])

    def paint(axes: Axes) -> None:
        paint_map(axes, shown_hw, scale, Look().display, below)
        outline_pixels(axes, region_HW[near], size)

    largest = number(float(np.abs(shown_hw).max(initial=0.0)))
    text = (
        f"filter {carrier.name}: brings back {percent(carrier.restored)}, causes "
        f"{percent(carrier.taken)} (largest change {largest})"
    )
    return picture(paint, size, below=text, width=WIDTH)


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
        f"{layer.layer}\nall {layer.of_filters} filters bring back {percent(layer.restored)} and "
        f"cause {percent(layer.taken)}; one by one, summed: {percent(layer.restored_sum)} and "
        f"{percent(layer.taken_sum)}"
    )
    left = 14.0 + names_width(names)
    return plot(paint, title, width=190.0, height=ROW * max(len(shown), 4), left=left)
