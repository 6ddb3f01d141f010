"""The figure of interactions: pairs of cells as arcs over the photograph, drops, and the matrix.

Shapes: L cells, H W rows and columns of the working image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from cnnviz.core.output.canvas import Entry
from cnnviz.core.output.layout import Cell, board, picture
from cnnviz.core.output.options import Display, Look
from cnnviz.core.output.overlays import draw_picture, map_cell, scales
from cnnviz.core.output.style import BLUE, RED
from cnnviz.reasons.results import Interactions, Pair, ReasonsResult, Relation

COLOURS = {Relation.REDUNDANT: RED, Relation.CONJUNCTIVE: BLUE}
ARCS = 6
"""Pairs of either kind over the photograph."""
CELLS = Look(display=Display.CELLS)
Pixels = NDArray[np.uint8]


def draw_pairs(result: ReasonsResult, beneath: Pixels) -> Figure:
    """Draws a row for each class: arcs, what each cell alone takes, and all pairs.

    Args:
        result: of one image.
        beneath: the image, uint8 (h, w, 3).
    """
    size = result.occlusion.measured.size
    rows = [
        _row(target.class_, target.interactions, size, beneath)
        for target in result.targets
        if target.interactions is not None
    ]
    legend = [
        Entry(f"{relation.value} (occluding both takes {more} than each alone)", colour, marker="-")
        for (relation, colour), more in zip(COLOURS.items(), ("more", "less"), strict=True)
    ]
    return board(rows, legend=[*legend, Entry("named pair in the matrix", "#333333", marker="o")])


def _row(name: str, pairs: Interactions, size: tuple[int, int], beneath: Pixels) -> list[Cell]:
    drops_HW = np.zeros(size, np.float32)
    for (y0, x0, y1, x1), drop in zip(pairs.boxes, pairs.drops, strict=True):
        drops_HW[y0:y1, x0:x1] = drop
    (drops,) = scales([drops_HW], CELLS, f"drop of the {pairs.score} with the cell occluded")
    counts = ", ".join(f"{kind.value}: {len(pairs.named(kind))}" for kind in COLOURS)
    shown = [pair for kind in COLOURS for pair in pairs.named(kind)[:ARCS]]
    some = f"; the {ARCS} most certain of each" if len(shown) < len(pairs.pairs) else ""
    return [
        picture(
            lambda axes: _arcs(axes, pairs, shown, size, beneath),
            size,
            f"{name}: pairs of cells\n{counts} (of {pairs.of_pairs:,}){some}",
        ),
        map_cell(drops_HW, drops, CELLS, beneath, "Each cell alone"),
        _matrix(pairs),
    ]


def _arcs(
    axes: Axes, pairs: Interactions, shown: Sequence[Pair], size: tuple[int, int], beneath: Pixels
) -> None:
    """The strongest pairs, the thicker the more certain, with the cells that they join."""
    draw_picture(axes, beneath, size)
    most = max((pair.certain for pair in shown), default=1.0)
    for pair in reversed(shown):  # the most certain on top
        colour, width = COLOURS[pair.relation], 1.2 + 2.8 * pair.certain / most
        ends = [
            ((x0 + x1) / 2, (y0 + y1) / 2)
            for y0, x0, y1, x1 in (pairs.boxes[pair.first], pairs.boxes[pair.second])
        ]
        around = [Stroke(linewidth=width + 2.0, foreground="white"), Normal()]
        arc = FancyArrowPatch(
            *ends, arrowstyle="-", connectionstyle="arc3,rad=0.25", shrinkA=0, shrinkB=0
        )
        arc.set(color=colour, linewidth=width, path_effects=around)
        axes.add_patch(arc)
        axes.plot(
            *zip(*ends, strict=True), "o", color=colour, markersize=6, markeredgecolor="white"
        )
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0))


def _matrix(pairs: Interactions) -> Cell:
    """A tile for each cell at its place in the image; in it the cell's pairs with all others."""
    rows, columns = pairs.grid
    tiles = pairs.beyond_FLL.mean(0).view(rows, columns, rows, columns)
    values_HW = tiles.permute(0, 2, 1, 3).reshape(rows * rows, columns * columns).float().numpy()
    named = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for pair in pairs.pairs:
        named[pair.first, pair.second] = named[pair.second, pair.first] = True
    dots = named.view(rows, columns, rows, columns).permute(0, 2, 1, 3)
    y, x = np.nonzero(dots.reshape(values_HW.shape).numpy())

    def mark(axes: Axes) -> None:
        for place in range(1, rows):
            axes.axhline(place * rows, color="#888888", linewidth=0.8)
        for place in range(1, columns):
            axes.axvline(place * columns, color="#888888", linewidth=0.8)
        cells = np.arange(rows * columns)
        down, right = cells // columns, cells % columns
        own = down * rows + down + 0.5, right * columns + right + 0.5
        axes.plot(own[1], own[0], "x", color="#888888", markersize=3)
        axes.plot(x + 0.5, y + 0.5, "o", color="#333333", markersize=1.3)

    (scale,) = scales([values_HW], CELLS, f"drop of the {pairs.score} beyond that of each alone")
    title = "All pairs\neach tile: one cell (×) with every other one"
    return map_cell(values_HW, scale, CELLS, None, title, mark=mark)
