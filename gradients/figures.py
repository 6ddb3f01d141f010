"""The pictures of a saliency result.

Red is what speaks for the class, blue what speaks against it. Gradients of single pixels spike, so
their colour scale ends at a high percentile, and the colour bar has an arrow where it does.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.drawing import bare, title, under
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import draw_map, draw_picture, outline_pixels, panels, photograph
from cnnviz.gradients.options import Method
from cnnviz.gradients.comparison import Comparison
from cnnviz.gradients.experiment import ClassMap, SaliencyResult

CLIPPED_ABOVE = 99.5  # percentile of the magnitude
BAR_LABELS = {
    Method.GRADIENT: "|d logit / d normalised pixel|",
    Method.GRADIENT_X_INPUT: "gradient x normalised pixel",
    Method.GRAD_CAM: "weighted sum of the layer's maps",
}


def draw(
    result: SaliencyResult, look: Look | None = None, lines: Sequence[str] = ()
) -> dict[str, Figure]:
    """`overlay.png` (maps over the image) and `heatmap.png` (maps alone), a panel per class.

    Args:
        result: what to draw.
        look: how.
        lines: what is said under each panel of the overlay; none for nothing.
    """
    look = look or Look()
    return {
        "overlay.png": _panels(result, look, photograph(result.image), lines),
        "heatmap.png": _panels(result, look, None),
    }


def draw_comparison(
    result: SaliencyResult, comparisons: tuple[Comparison, ...], look: Look | None = None
) -> Figure:
    """A row for each class: the picture, the saliency map, the other map, how far they agree."""
    look = look or Look()
    beneath = photograph(result.image)
    figure, axes = panels(3 * len(comparisons), _size(result), columns=3)
    rows = zip(axes[::3], axes[1::3], axes[2::3], result.maps, comparisons, strict=True)
    for left, middle, right, found, compared in rows:
        draw_picture(left, beneath, _size(result), grey=False)
        title(left, class_line(result, found))
        _map(middle, result, found.map_HW.numpy(), look, beneath)
        title(middle, f"{_method_line(result)}\n{compared.seconds:.2f} s")
        other_HW = compared.other_HW.numpy()
        draw_map(right, other_HW, look, compared.other_unit, over=beneath, one_sided=True)
        agreement = compared.rank_correlation
        shown = "none (a map is constant)" if agreement is None else f"{agreement:.2f}"
        title(
            right,
            f"{compared.other}\n{compared.other_seconds:.2f} s, rank correlation {shown}",
        )
        for cell in (left, middle, right):
            bare(cell)
    return figure


def _size(result: SaliencyResult) -> tuple[int, int]:
    height, width = result.image.pixels.shape[1:]
    return int(height), int(width)


def _panels(
    result: SaliencyResult,
    look: Look,
    over: NDArray[np.uint8] | None,
    lines: Sequence[str] = (),
) -> Figure:
    figure, axes = panels(len(result.maps), _size(result), columns=look.columns)
    for number, (cell, found) in enumerate(zip(axes, result.maps, strict=True)):
        _map(cell, result, found.map_HW.numpy(), look, over)
        if result.reading is not None:
            outline_pixels(cell, result.reading.of(found.target).numpy(), _size(result))
        title(cell, f"{class_line(result, found)}\n{_method_line(result)}")
        bare(cell)
        if lines:
            under(cell, lines[number])
    return figure


def class_line(result: SaliencyResult, found: ClassMap) -> str:
    """A map's class and its probability."""
    return f"{result.labels[found.target]}  {result.head.text(found.probability)}"


def _method_line(result: SaliencyResult) -> str:
    method = f"{result.method} at {result.layer}" if result.layer else str(result.method)
    where = result.place or "mean over its pixels"
    return method if result.reading is None else f"{method}\n{where}"


def _map(
    axes: Axes,
    result: SaliencyResult,
    values_HW: NDArray[np.float32],
    look: Look,
    over: NDArray[np.uint8] | None,
) -> None:
    limit = look.scale
    if limit is None and result.method is not Method.GRAD_CAM:
        limit = float(np.percentile(np.abs(values_HW), CLIPPED_ABOVE))
    label = BAR_LABELS[result.method]
    draw_map(axes, values_HW, look, label, over=over, one_sided=True, limit=limit)
