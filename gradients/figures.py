"""The pictures of a saliency result.

Red is what speaks for the class, blue what speaks against it. Gradients of single pixels spike, so
their colour scale ends at a high percentile, and the colour bar has an arrow where it does.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap as Colours
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import Colormap
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import add_colorbar, bare, cmap_of, new_figure, title, to_uint8
from cnnviz.gradients.choices import Method
from cnnviz.gradients.comparison import Comparison
from cnnviz.gradients.experiment import ClassMap, SaliencyResult

PANEL_WIDTH = 3.6  # inches
MOST_COLUMNS = 4
CLIPPED_ABOVE = 99.5  # percentile of the magnitude
LUMINANCE = np.array([0.299, 0.587, 0.114])
BAR_LABELS = {
    Method.GRADIENT: "|d logit / d normalised pixel|",
    Method.GRADIENT_X_INPUT: "gradient x normalised pixel",
    Method.GRAD_CAM: "weighted sum of the layer's maps",
}


@dataclass(frozen=True)
class Look:
    """How maps are drawn.

    Attributes:
        colormap: diverging (symmetric about zero) or one that runs from smallest to largest.
        alpha: weight of the map over the image, 0…1.
    """

    colormap: Colormap = Colormap.DIVERGING
    alpha: float = 0.5


def draw(result: SaliencyResult, look: Look | None = None) -> dict[str, Figure]:
    """`overlay.png` (maps over the image) and `heatmap.png` (maps alone), a panel per class."""
    look = look or Look()
    return {
        "overlay.png": _panels(result, look, over_image=True),
        "heatmap.png": _panels(result, look, over_image=False),
    }


def draw_comparison(
    result: SaliencyResult, comparisons: tuple[Comparison, ...], look: Look | None = None
) -> Figure:
    """A row for each class: the picture, the saliency map, the other map, how far they agree."""
    look = look or Look()
    figure, axes = _axes(len(comparisons), 3, result.image)
    rows = zip(axes, result.maps, comparisons, strict=True)
    for (left, middle, right), found, compared in rows:
        left.imshow(_pixels(result.image), interpolation="nearest")
        title(left, _class_line(result, found))
        _map(middle, result, found.map_HW.numpy(), look, BAR_LABELS[result.method], True)
        title(middle, f"{_method_line(result)}\n{compared.seconds:.2f} s")
        _map(right, result, compared.other_HW.numpy(), look, compared.other_unit, True)
        agreement = compared.rank_correlation
        shown = "none (a map is constant)" if agreement is None else f"{agreement:.2f}"
        title(
            right,
            f"{compared.other}\n{compared.other_seconds:.2f} s, rank correlation {shown}",
        )
        for cell in (left, middle, right):
            bare(cell)
    return figure


def _axes(rows: int, columns: int, image: WorkingImage) -> tuple[Figure, list[list[Axes]]]:
    height, width = image.pixels.shape[1:]
    row = PANEL_WIDTH * 0.78 * height / width + 0.6
    figure = new_figure(PANEL_WIDTH * columns, row * rows)
    cells = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in cells]


def _panels(result: SaliencyResult, look: Look, over_image: bool) -> Figure:
    columns = min(len(result.maps), MOST_COLUMNS)
    figure, axes = _axes(-(-len(result.maps) // columns), columns, result.image)
    cells = [cell for row in axes for cell in row]
    for cell, found in zip(cells, result.maps, strict=False):
        _map(cell, result, found.map_HW.numpy(), look, BAR_LABELS[result.method], over_image)
        title(cell, f"{_class_line(result, found)}\n{_method_line(result)}")
        bare(cell)
    for cell in cells[len(result.maps) :]:
        cell.set_visible(False)
    return figure


def _class_line(result: SaliencyResult, found: ClassMap) -> str:
    return f"{result.labels[found.target]}  p = {found.probability:.3f}"


def _method_line(result: SaliencyResult) -> str:
    return f"{result.method} at {result.layer}" if result.layer else str(result.method)


def _pixels(image: WorkingImage) -> NDArray[np.uint8]:
    return to_uint8(image.pixels.numpy().transpose(1, 2, 0))


def _map(
    axes: Axes,
    result: SaliencyResult,
    values_HW: NDArray[np.float32],
    look: Look,
    unit: str,
    over_image: bool,
) -> None:
    clips = result.method is not Method.GRAD_CAM and unit == BAR_LABELS[result.method]
    norm, extend = _scale(values_HW, look.colormap, clips)
    cmap: Colours = cmap_of(look.colormap).copy()
    if look.colormap is Colormap.DIVERGING and norm.vmin == 0:
        cmap = ListedColormap(cmap(np.linspace(0.5, 1, 256)))
    cmap.colorbar_extend = extend  # type: ignore[assignment]  # the stubs say bool
    if over_image:
        grey_HW = result.image.pixels.numpy().transpose(1, 2, 0) @ LUMINANCE
        axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    alpha = look.alpha if over_image else 1.0
    axes.imshow(values_HW, cmap=cmap, norm=norm, alpha=alpha, interpolation="nearest")
    add_colorbar(ScalarMappable(norm, cmap), axes, unit)


def _scale(
    values_HW: NDArray[np.float32], colormap: Colormap, clips: bool
) -> tuple[Normalize, str]:
    """The colour scale, and at which ends of it values are cut off (matplotlib's word for it)."""
    low, high = float(values_HW.min()), float(values_HW.max())
    limit = max(abs(low), abs(high), 1e-12)
    if clips:
        limit = max(float(np.percentile(np.abs(values_HW), CLIPPED_ABOVE)), 1e-12)
    if colormap is Colormap.DIVERGING:
        bottom, top = (0.0 if low >= 0 else -limit), limit
        norm = Normalize(bottom, top)
    else:
        bottom, top = max(low, -limit), min(high, limit)
        norm = Normalize(bottom, max(top, bottom + 1e-12))
    if low < bottom:
        return norm, "both" if high > top else "min"
    return norm, "max" if high > top else "neither"
