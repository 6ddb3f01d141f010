"""Panels: maps over their image, side by side in one figure.

All analyses draw maps of an image here, so that the image looks the same under every map: in the
file's pixels, grey under a map, so that every colour is the map's.
Shapes: H W rows and columns of the working image, h w of the picture drawn below.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap as Colours
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cnnviz.core.choices import LUMINANCE, Colormap
from cnnviz.core.data.images import WorkingImage, file_crop
from cnnviz.core.output.drawing import (
    add_colorbar,
    cmap_of,
    image_pixels,
    new_figure,
    symmetric_limit,
)
from cnnviz.core.output.options import Look
from cnnviz.core.output.style import FONT_SIZE

PANEL_WIDTH = 3.6  # inches
MOST_COLUMNS = 4
SMALL = 96  # pixels per side, below which the image under a map is smoothed
# Arrows of a colour bar, by whether there are values below and above it; matplotlib's names.
CUT_OFF = {
    (False, False): "neither",
    (True, False): "min",
    (False, True): "max",
    (True, True): "both",
}


def photograph(image: WorkingImage) -> NDArray[np.uint8]:
    """The picture below maps of an image, uint8 (h, w, 3): its crop in the file's pixels."""
    crop = file_crop(image)
    return image_pixels(image) if crop is None else crop


def grid_of_axes(
    count: int,
    cell: tuple[float, float],
    *,
    columns: int = MOST_COLUMNS,
    extra: tuple[float, float] = (0.0, 0.0),
    narrowest: float = 0.0,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in reading order; the last row may be short.

    Args:
        count: number of axes, at least one.
        cell: width and height of each, in inches.
        columns: maximum number of axes in a row.
        extra: width and height of the figure in addition to its cells, in inches.
        narrowest: minimum width of the figure.
        sharey: whether all have the same vertical scale.
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    width, height = cell[0] * columns + extra[0], cell[1] * rows + extra[1]
    figure = new_figure(max(width, narrowest), height)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def panels(
    count: int, size: tuple[int, int], *, columns: int | None = None, legend: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels for pictures of H×W, each with room for two lines and a bar.

    Args:
        count: number of panels, at least one.
        size: H and W.
        columns: maximum number of panels in a row; None for 4.
        legend: inches for a legend to the right of all panels.
    """
    height = PANEL_WIDTH * 0.78 * size[0] / size[1] + 0.55
    columns = columns or MOST_COLUMNS
    return grid_of_axes(count, (PANEL_WIDTH, height), columns=columns, extra=(legend, 0.0))


def draw_picture(
    axes: Axes, pixels: NDArray[np.uint8], size: tuple[int, int], *, grey: bool = True
) -> None:
    """Draws a picture (h, w, 3) on H×W units of the axes, smoothed if its pixels are large."""
    smooth = "bicubic" if min(pixels.shape[:2]) < SMALL else "antialiased"
    shown = pixels @ np.array(LUMINANCE) / 255 if grey else pixels
    extent = _extent(size)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation=smooth, extent=extent)


def draw_map(
    axes: Axes,
    values_HW: NDArray[np.floating],
    look: Look,
    label: str,
    *,
    over: NDArray[np.uint8] | None = None,
    one_sided: bool = False,
    limit: float | None = None,
) -> None:
    """Draws a map with its colour bar, alone or over a picture.

    Args:
        axes: the panel.
        values_HW: one value per pixel of the working image.
        look: colours, and the weight of the map over the picture.
        label: what the colours measure.
        over: the picture, uint8 (h, w, 3).
        one_sided: whether diverging colours start at zero if no value is negative.
        limit: magnitude at which the colours end, with an arrow on the bar if values exceed it;
            if it is `look.scale`, they end there regardless of the values.
    """
    if over is not None:
        draw_picture(axes, over, (values_HW.shape[0], values_HW.shape[1]))
    norm, colours = _scale(values_HW, look, one_sided, limit)
    axes.imshow(
        values_HW,
        cmap=colours,
        norm=norm,
        alpha=1.0 if over is None else look.alpha,
        interpolation="nearest",
        extent=_extent((values_HW.shape[0], values_HW.shape[1])),
    )
    add_colorbar(ScalarMappable(norm, colours), axes, label)


def outline_pixels(axes: Axes, inside_hw: NDArray[np.bool_], size: tuple[int, int]) -> None:
    """Draws a line around pixels (h, w) of the picture, on the H×W units of the axes."""
    if inside_hw.all():
        return
    padded = np.pad(inside_hw, 1).astype(float)
    rows, columns = (
        (np.arange(n + 2) - 0.5) * (s / n) for n, s in zip(inside_hw.shape, size, strict=True)
    )
    for colour, thick in (("white", 2.4), ("black", 1.0)):
        axes.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=thick)
    axes.set_xlim(0, size[1])
    axes.set_ylim(size[0], 0)


def hatch_pixels(axes: Axes, inside_HW: NDArray[np.bool_], colour: str, hatch: str) -> None:
    """Hatches pixels of a map, and draws a line around them."""
    if not inside_HW.any():
        return
    padded = np.pad(inside_HW, 1).astype(float)
    rows, columns = (np.arange(n + 2) - 0.5 for n in inside_HW.shape)
    marked = axes.contourf(columns, rows, padded, levels=[0.5, 1.5], colors="none", hatches=[hatch])
    marked.set(edgecolor=colour, linewidth=0.0)
    axes.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=1.2)
    axes.set_xlim(0, inside_HW.shape[1])
    axes.set_ylim(inside_HW.shape[0], 0)


def legend(figure: Figure, hatched: Sequence[tuple[str, str, str]]) -> None:
    """Adds a legend below all panels for kinds of hatching: (text, colour, hatch)."""
    handles = [
        Patch(facecolor="none", edgecolor=colour, hatch=hatch, label=text)
        for text, colour, hatch in hatched
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=FONT_SIZE - 1,
        frameon=False,
    )


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The corners in units of the axes, regardless of the picture's resolution."""
    return 0.0, float(size[1]), float(size[0]), 0.0


def _scale(
    values_HW: NDArray[np.floating], look: Look, one_sided: bool, limit: float | None
) -> tuple[Normalize, Colours]:
    low, high = float(values_HW.min()), float(values_HW.max())
    fixed = limit is not None and limit == look.scale
    limit = symmetric_limit(values_HW) if limit is None else max(limit, 1e-12)
    colours = cmap_of(look.colormap).copy()
    diverging = look.colormap is Colormap.DIVERGING
    if one_sided and low >= 0 and (diverging or fixed):
        bottom, top = 0.0, limit
        if diverging:
            colours = ListedColormap(colours(np.linspace(0.5, 1, 256)))
    elif diverging or fixed:
        bottom, top = -limit, limit
    else:
        bottom, top = max(low, -limit), min(high, limit)
    arrows = CUT_OFF[low < bottom, high > top]
    colours.colorbar_extend = arrows  # type: ignore[assignment]  # the stubs say bool
    return Normalize(bottom, max(top, bottom + 1e-12)), colours
