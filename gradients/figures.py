"""Figures of a saliency result.

Red is evidence for the class, blue is evidence against it. Gradients of single pixels spike, so
their colour scale ends at a high percentile, and the colour bar says so.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.layout import Cell, board, in_rows
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    input_cell,
    map_cell,
    outline_pixels,
    photograph,
    scales,
)
from cnnviz.gradients.results import ClassMap, SaliencyResult

CLIPPED_ABOVE = 99.5  # percentile of the magnitude
Pixels = NDArray[np.uint8]


def draw(
    result: SaliencyResult, look: Look | None = None, lines: Sequence[str] = ()
) -> dict[str, Figure]:
    """Draws `overlay.png` (maps over the image) and `heatmap.png` (maps alone), a panel per class.

    Args:
        result: what to draw.
        look: how.
        lines: a line under each panel of the overlay, or none.
    """
    look = look or Look()
    beneath, columns = photograph(result.working), look.columns
    over = [_input(result, beneath), *_maps(result, look, beneath, lines)]
    return {
        "overlay.png": board(in_rows(over, columns)),
        "heatmap.png": board(in_rows(_maps(result, look, None), columns)),
    }


def preview(result: SaliencyResult) -> Figure | None:
    """The figure that a notebook shows."""
    return draw(result)["overlay.png"] if result.working else None


def draw_comparison(result: SaliencyResult, look: Look | None = None) -> Figure:
    """Draws a row for each class: image, saliency map, other map, and how far they agree."""
    look = look or Look()
    beneath = photograph(result.working)
    pairs = [(entry, entry.comparison) for entry in result.targets if entry.comparison]
    others = [other.other_HW.numpy() for _, other in pairs]
    ends = scales(others, look, pairs[0][1].other_unit)
    rows = []
    for (_, other), other_HW, scale, cell in zip(
        pairs, others, ends, _maps(result, look, beneath), strict=True
    ):
        value = other.rank_correlation
        shown = "none (a map is constant)" if value is None else f"{value:.2f}"
        title = f"{other.with_}\n{other.other_seconds:.2f} s, rank correlation {shown}"
        compared = map_cell(other_HW, scale, look, beneath, title)
        rows.append([_input(result, beneath), cell, compared])
    return board(rows)


def _size(result: SaliencyResult) -> tuple[int, int]:
    height, width = result.working.pixels.shape[1:]
    return int(height), int(width)


def _input(result: SaliencyResult, beneath: Pixels) -> Cell:
    return input_cell(beneath, _size(result))


def _maps(
    result: SaliencyResult, look: Look, over: Pixels | None, lines: Sequence[str] = ()
) -> list[Cell]:
    """A cell for each class."""
    size, maps = _size(result), [entry.map_HW.numpy() for entry in result.targets]
    ends = None
    if not result.method.of_layer:
        ends = [float(np.percentile(np.abs(map_HW), CLIPPED_ABOVE)) for map_HW in maps]
    shown = scales(maps, look, result.unit, one_sided=True, ends=ends)
    cells = []
    for place, (entry, map_HW, scale) in enumerate(zip(result.targets, maps, shown, strict=True)):

        def mark(axes: Axes, entry: ClassMap = entry) -> None:
            if result.reading is not None:
                outline_pixels(axes, result.reading.of(entry.index).numpy(), size)

        title = f"{class_line(result, entry)}\n{_method_line(result)}"
        if other := entry.comparison:
            title += f", {other.seconds:.2f} s"
        below = lines[place] if lines else ""
        cells.append(map_cell(map_HW, scale, look, over, title, below, mark=mark))
    return cells


def class_line(result: SaliencyResult, entry: ClassMap) -> str:
    """Names a map's class and its probability."""
    return f"{entry.class_}  {result.head.text(entry.reading)}"


def _method_line(result: SaliencyResult) -> str:
    method = f"{result.method} at {result.layer}" if result.layer else str(result.method)
    where = result.place or "mean over its pixels"
    return method if result.reading is None else f"{method}\n{where}"
