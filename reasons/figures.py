"""Figures of reasons: regions over the photograph, each in its colour.

Shapes: H W rows and columns of the working image, h w of the picture below.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cnnviz.core.choices import typeset
from cnnviz.core.output.layout import Cell, board, in_rows, picture
from cnnviz.core.output.options import Display, Look
from cnnviz.core.output.overlays import input_cell, map_cell, paint_kinds, scales
from cnnviz.core.output.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, SMALL, YELLOW
from cnnviz.reasons.carriers_figure import Patches, draw_carriers
from cnnviz.reasons.pairs_figure import draw_pairs
from cnnviz.reasons.results import ClassReasons, Reason, ReasonsResult, Shapley

COLOURS = (PURPLE, SKY, ORANGE, GREEN, YELLOW, BLUE, RED)
OPACITY = 0.4
WRITTEN = 16
"""Parts whose values are written over the image, at most."""
Pixels = NDArray[np.uint8]


def draw(
    result: ReasonsResult, beneath: Pixels, patches: Patches | None = None
) -> dict[str, Figure]:
    """Draws all figures of an image, by file name.

    Args:
        result: what to draw.
        beneath: the image, uint8 (h, w, 3).
        patches: the strongest patches of a filter.
    """
    figures = {"reasons.png": _regions(result, beneath)}
    if any(target.shapley for target in result.targets):
        figures["shapley.png"] = _shares(result, beneath)
    if any(target.interactions for target in result.targets):
        figures["pairs.png"] = draw_pairs(result, beneath)
    if any(target.carriers for target in result.targets):
        figures["filters.png"] = draw_carriers(result, beneath, patches)
    return figures


def _regions(result: ReasonsResult, beneath: Pixels) -> Figure:
    """A row for each class: the image, its reasons over it, the region that is needed."""
    size = result.occlusion.measured.size
    cells: list[Cell] = []
    for target in result.targets:
        first = input_cell(beneath, size, f"p({target.class_}) = {target.reading:.2f}")
        several = len(target.reasons) != 1
        title = f"{len(target.reasons)} reason{'s' * several}"
        texts = [f"{n}: {_text(reason)}" for n, reason in enumerate(target.reasons, start=1)]
        cells += [first, _painted(target, target.reasons, size, beneath, title, "\n".join(texts))]
        if target.needed is not None:
            title = "Sufficient and necessary"
            cells.append(
                _painted(target, [target.needed], size, beneath, title, _text(target.needed))
            )
    return board(in_rows(cells, 3))


def _shares(result: ReasonsResult, beneath: Pixels) -> Figure:
    """A row for each class: the image, and the Shapley value of each part over it."""
    size, look = result.occlusion.measured.size, Look(display=Display.CELLS, alpha=0.6)
    found = [(target, target.shapley) for target in result.targets if target.shapley]
    maps = [
        np.array([part.value for part in shapley.parts], np.float32)[shapley.labels_HW.numpy()]
        for _target, shapley in found
    ]
    cells: list[Cell] = []
    for (target, shapley), values_HW, scale in zip(
        found, maps, scales(maps, look, "Shapley value (log-odds)"), strict=True
    ):
        errors = [part.error for part in shapley.parts if part.error is not None]
        worst = f"standard error up to {max(errors, default=0):.2f}"
        title = f"Shapley values of {len(shapley.parts)} parts ({shapley.segments})"
        below = (
            f"Log-odds: {shapley.all:.2f} of the image, {shapley.none:.2f} without any part; "
            "the values sum to the difference"
        )
        detail = (
            f"{shapley.permutations} random orders, {worst}" if shapley.permutations else "exact"
        )
        cells.append(input_cell(beneath, size, f"p({target.class_}) = {target.reading:.2f}"))
        cells.append(
            map_cell(
                *(values_HW, scale, look, beneath, f"{title}\n{detail}", below),
                mark=partial(_write_values, shapley=shapley),
            )
        )
    return board(in_rows(cells, 2))


def _write_values(axes: Axes, shapley: Shapley) -> None:
    """Outlines the parts, and writes the values of a few into them."""
    labels_HW = shapley.labels_HW.numpy()
    for part in range(len(shapley.parts)):
        _outline(axes, labels_HW == part, (0.5, 0.5, 0.5), 0.6)
    if len(shapley.parts) > WRITTEN:
        return
    for number, each in enumerate(shapley.parts):
        rows, columns = np.nonzero(labels_HW == number)
        place = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        text = axes.text(
            *(columns[place] + 0.5, rows[place] + 0.5, typeset(f"{each.value:+.2f}")),
            fontsize=SMALL,
            ha="center",
            va="center",
            color="black",
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _outline(
    axes: Axes, inside_HW: NDArray[np.bool_], colour: tuple[float, ...], thick: float = 1.4
) -> None:
    """Draws a white line, and a coloured one on it, along the edges of pixels."""
    height, width = inside_HW.shape
    padded = np.pad(inside_HW, 1).astype(np.int8)
    lines = []
    for row, column in np.argwhere(np.diff(padded[:, 1:-1], axis=0)):
        lines.append(((column, row), (column + 1, row)))
    for row, column in np.argwhere(np.diff(padded[1:-1], axis=1)):
        lines.append(((column, row), (column, row + 1)))
    for each, points in (("white", 1.8 * thick), (colour, thick)):
        axes.add_collection(LineCollection(lines, colors=[each], linewidths=points))
    axes.set(xlim=(0, width), ylim=(height, 0))


def _text(reason: Reason) -> str:
    return (
        f"{100 * reason.share:.1f} % of the image: p = {reason.alone:.2f} alone, "
        f"{reason.without:.2f} without it"
    )


def _painted(
    target: ClassReasons,
    reasons: Sequence[Reason],
    size: tuple[int, int],
    beneath: Pixels,
    title: str,
    below: str,
) -> Cell:
    """The photograph with each region in its colour."""
    kinds_HW = np.zeros(size, np.intp)
    for number, reason in enumerate(reasons, start=1):
        kinds_HW[target.mask(reason, size).numpy()] = number
    rgba = [(0.0, 0.0, 0.0, 0.0)]
    rgba += [(*to_rgb(COLOURS[n % len(COLOURS)]), OPACITY) for n in range(len(reasons))]

    def paint(axes: Axes) -> None:
        paint_kinds(axes, kinds_HW, np.array(rgba, np.float32), beneath)
        for number in range(1, len(rgba)):
            _outline(axes, kinds_HW == number, rgba[number][:3])

    return picture(paint, size, title, below)
