"""Figures of a saliency result.

Red is evidence for the class, blue is evidence against it. Gradients of single pixels spike, so
their colour scale ends at a high percentile, and the colour bar has an arrow there.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.drawing import bare, title, under
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_map, draw_picture, outline_pixels, panels, photograph
from cnnviz.gradients.options import Method
from cnnviz.gradients.results import ClassMap, SaliencyResult

CLIPPED_ABOVE = 99.5  # percentile of the magnitude
BAR_LABELS = {
    Method.GRADIENT: "|d logit / d normalised pixel|",
    Method.GRADIENT_X_INPUT: "gradient x normalised pixel",
    Method.GRAD_CAM: "weighted sum of the layer's maps",
}


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
    return {
        "overlay.png": _panels(result, look, photograph(result.working), lines),
        "heatmap.png": _panels(result, look, None),
    }


def draw_comparison(result: SaliencyResult, look: Look | None = None) -> Figure:
    """Draws a row for each class: image, saliency map, other map, and how far they agree."""
    look = look or Look()
    beneath, size = photograph(result.working), _size(result)
    pairs = [(entry, entry.comparison) for entry in result.targets if entry.comparison]
    figure, axes = panels(3 * len(pairs), size, columns=3)
    for row, (entry, other) in enumerate(pairs):
        left, middle, right = axes[3 * row : 3 * row + 3]
        draw_picture(left, beneath, size, grey=False)
        title(left, class_line(result, entry))
        _map(middle, result, entry, look, beneath)
        title(middle, f"{_method_line(result)}\n{other.seconds:.2f} s")
        other_HW = other.other_HW.numpy()
        draw_map(right, other_HW, look, other.other_unit, over=beneath, one_sided=True)
        value = other.rank_correlation
        shown = "none (a map is constant)" if value is None else f"{value:.2f}"
        title(right, f"{other.with_}\n{other.other_seconds:.2f} s, rank correlation {shown}")
        for cell in (left, middle, right):
            bare(cell)
    return figure


def _size(result: SaliencyResult) -> tuple[int, int]:
    height, width = result.working.pixels.shape[1:]
    return int(height), int(width)


def _panels(
    result: SaliencyResult,
    look: Look,
    over: NDArray[np.uint8] | None,
    lines: Sequence[str] = (),
) -> Figure:
    figure, axes = panels(len(result.targets), _size(result), columns=look.columns)
    for number, (cell, entry) in enumerate(zip(axes, result.targets, strict=True)):
        _map(cell, result, entry, look, over)
        if result.reading is not None:
            outline_pixels(cell, result.reading.of(entry.index).numpy(), _size(result))
        title(cell, f"{class_line(result, entry)}\n{_method_line(result)}")
        bare(cell)
        if lines:
            under(cell, lines[number])
    return figure


def unit(result: SaliencyResult) -> str:
    """Names the unit of the maps."""
    return BAR_LABELS[result.method]


def class_line(result: SaliencyResult, entry: ClassMap) -> str:
    """Names a map's class and its probability."""
    return f"{entry.class_}  {result.head.text(entry.reading)}"


def _method_line(result: SaliencyResult) -> str:
    method = f"{result.method} at {result.layer}" if result.layer else str(result.method)
    where = result.place or "mean over its pixels"
    return method if result.reading is None else f"{method}\n{where}"


def _map(
    axes: Axes, result: SaliencyResult, entry: ClassMap, look: Look, over: NDArray[np.uint8] | None
) -> None:
    limit, values_HW = look.scale, entry.map_HW.numpy()
    if limit is None and result.method is not Method.GRAD_CAM:
        limit = float(np.percentile(np.abs(values_HW), CLIPPED_ABOVE))
    draw_map(axes, values_HW, look, unit(result), over=over, one_sided=True, limit=limit)
