"""Sheets: many small pictures of one size in one array, with their numbers along the edges.

A sheet is drawn as one image on one pair of axes, so thousands of tiles cost no more than a few.
Rows and columns are numbered: in a grid the tile in row `32` and column `+5` is number 37.
Shapes: N tiles, H W rows and columns.
"""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.drawing import add_colorbar, escape, new_figure, title
from cnnviz.core.output.style import FONT_SIZE

Pixels = NDArray[np.uint8]

WIDTH = 8.0  # inches of an ordinary sheet
LARGEST = 40.0  # inches of the longer side of a sheet with very many tiles
DPI = 150
_MOST_TICKS = 40
_MOST_LABELS = 512  # tiles; more numbers would be illegible
_SHARP = 24  # pixels of a tile's longer side from which it is not enlarged
_ROOMY = 1200  # pixels of a matrix's longer side from which it is not enlarged


def tile_columns(count: int, height: int, width: int, aspect: float = 1.5) -> int:
    """The columns of a grid of `count` tiles that is about `aspect` times as wide as high."""
    return max(1, min(count, round(math.sqrt(count * aspect * height / width))))


def tiles(
    pictures: Pixels, columns: int, gap: int = 1, background: int = 255, scale: int = 1
) -> Pixels:
    """Puts pictures of one size into one array, row by row.

    Args:
        pictures: (N, H, W) grey or (N, H, W, 3) colour.
        columns: tiles in a row; the last row may be short.
        gap: pixels between tiles and around them, after enlargement.
        background: grey level of gaps and of missing tiles.
        scale: whole-number enlargement by repetition (nearest neighbour).

    Returns:
        (R*(H*scale+gap)+gap, columns*(W*scale+gap)+gap[, 3]) for R rows.
    """
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = large.shape[:3]
    rows = -(-count // columns)
    missing = np.full((rows * columns - count, *large.shape[1:]), background, np.uint8)
    padding = [(0, 0), (0, gap), (0, gap)] + [(0, 0)] * (large.ndim - 3)
    padded = np.pad(np.concatenate([large, missing]), padding, constant_values=background)
    grid = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2)
    sheet = grid.reshape(rows * (height + gap), columns * (width + gap), *large.shape[3:])
    edge = [(gap, 0), (gap, 0)] + [(0, 0)] * (large.ndim - 3)
    return np.pad(sheet, edge, constant_values=background)


@dataclass(frozen=True)
class Scale:
    """The meaning of grey levels: black is `low`, white is `high`."""

    low: float
    high: float
    label: str


@dataclass(frozen=True, eq=False)
class Sheet:
    """A grid of tiles and how to read it.

    Attributes:
        pixels: the tiles put together, uint8 grey (h, w) or RGB (h, w, 3).
        rows: numbers of the rows, top to bottom.
        columns: numbers of the columns, left to right.
        pitch: rows and columns of pixels from one tile to the next.
        relative: whether column numbers are added to the row's (a grid), or are independent (a
            matrix).
        labels: the number of each tile, if it does not follow from row and column.
        row_name: what rows count.
        column_name: what columns count.
    """

    pixels: Pixels
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    pitch: tuple[int, int]
    relative: bool
    labels: tuple[int, ...]
    row_name: str
    column_name: str


def grid(
    pictures: Pixels, what: str, numbers: tuple[int, ...] | None = None, aspect: float = 1.3
) -> Sheet:
    """Pictures (N, H, W[, 3]) in reading order.

    Args:
        pictures: one for each number.
        what: what they are: "filter", "channel".
        numbers: of the pictures; by default 0, 1, 2, …. Given numbers are written on each tile, if
            there are few enough to be legible.
        aspect: desired ratio of width and height.
    """
    count, height, width = pictures.shape[:3]
    across = _columns(count, tile_columns(count, height, width, aspect))
    scale = max(1, _SHARP // max(height, width))
    gap = _gap(height * scale)
    shown = numbers or tuple(range(count))
    return Sheet(
        pixels=tiles(pictures, across, gap=gap, scale=scale),
        rows=shown[::across],
        columns=tuple(range(across)),
        pitch=(height * scale + gap, width * scale + gap),
        relative=True,
        labels=numbers if numbers and count <= _MOST_LABELS else (),
        row_name=what,
        column_name="" if numbers else "+",
    )


def matrix(pictures: Pixels, row_name: str, column_name: str) -> Sheet:
    """Pictures (R, C, H, W) as R rows of C tiles."""
    rows, columns, height, width = pictures.shape
    scale = max(1, min(4, _ROOMY // (max(rows, columns) * max(height, width))))
    gap = 1 if max(height, width) * scale > 1 else 0
    return Sheet(
        pixels=tiles(
            pictures.reshape(rows * columns, height, width), columns, gap=gap, scale=scale
        ),
        rows=tuple(range(rows)),
        columns=tuple(range(columns)),
        pitch=(height * scale + gap, width * scale + gap),
        relative=False,
        labels=(),
        row_name=row_name,
        column_name=column_name,
    )


def _columns(count: int, ideal: int) -> int:
    """The tiles in a row: near the ideal, with the last row as full as possible."""
    nearby = range(max(1, ideal * 3 // 4), max(1, ideal * 4 // 3) + 1)
    return min(nearby, key=lambda columns: (-count % columns, abs(columns - ideal)))


def _gap(side: int) -> int:
    return 1 if side < 24 else 2 if side < 80 else 4


def draw_sheet(sheet: Sheet, heading: str, scale: Scale | None) -> Figure:
    """Draws a sheet as a figure, with at least one dot per pixel up to a printable size."""
    height, width = sheet.pixels.shape[:2]
    across = min(max(WIDTH, width / DPI), LARGEST)
    down = across * height / width
    if down > LARGEST:
        across, down = across * LARGEST / down, LARGEST
    across = max(across, 2.5)
    figure = new_figure(across + (1.1 if scale else 0.5), max(down, 0.6) + 0.8)
    axes = figure.subplots()
    draw_on(axes, sheet, heading, scale)
    return figure


def draw_on(axes: Axes, sheet: Sheet, heading: str, scale: Scale | None) -> None:
    """Draws a sheet on axes: numbers, heading, and a bar for the meaning of grey levels."""
    axes.imshow(sheet.pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    title(axes, heading)
    down, right = sheet.pitch
    _ticks(axes, "y", sheet.rows, down, sheet.row_name, plus=False)
    _ticks(axes, "x", sheet.columns, right, sheet.column_name, plus=sheet.relative)
    _number_tiles(axes, sheet)
    axes.tick_params(length=0, pad=2, labelsize=FONT_SIZE - 3)
    axes.spines[:].set_visible(False)
    if scale is not None:
        bar = ScalarMappable(Normalize(scale.low, scale.high), "gray")
        add_colorbar(bar, axes, scale.label).ax.set_box_aspect(30)


def _number_tiles(axes: Axes, sheet: Sheet) -> None:
    down, right = sheet.pitch
    size = min(FONT_SIZE - 2, max(2.5, 40 / len(sheet.columns)))
    box = {"facecolor": "black", "alpha": 0.55, "pad": 0.4, "linewidth": 0}
    for place, number in enumerate(sheet.labels):
        row, column = divmod(place, len(sheet.columns))
        axes.text(
            column * right + 0.04 * right + 1,
            row * down + 0.04 * down + 1,
            str(number),
            fontsize=size,
            color="white",
            va="top",
            ha="left",
            bbox=box,
        )


def _ticks(
    axes: Axes, axis: str, numbers: tuple[int, ...], pitch: int, name: str, *, plus: bool
) -> None:
    step = _step(len(numbers))
    places = [(i + 0.5) * pitch for i in range(0, len(numbers), step)]
    labels = [f"+{n}" if plus else str(n) for n in numbers[::step]]
    if plus and not name:
        places, labels = [], []
    (axes.set_yticks if axis == "y" else axes.set_xticks)(places, labels)
    if name and not plus:
        set_label = axes.set_ylabel if axis == "y" else axes.set_xlabel
        set_label(escape(name), fontsize=FONT_SIZE - 1)


def _step(count: int) -> int:
    """The distance between labelled numbers: 1, 2, 5, 10 and so on."""
    step, turn, grow = 1, 0, (2, 2.5, 2)
    while count / step > _MOST_TICKS:
        step = int(step * grow[turn % 3])
        turn += 1
    return step
