"""Sheets: many small pictures of one size in one array, with their numbers under them.

A sheet is drawn as one image on one pair of axes, each tile enlarged by a whole number, so
thousands of tiles cost no more than a few. In a grid the number of a tile is below it; a matrix has
its rows and columns numbered along the edges. Shapes: N tiles, H W rows and columns.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.canvas import Bar
from cnnviz.core.output.drawing import label_axes
from cnnviz.core.output.layout import GAP, PANEL, Cell, board, picture, plot, words
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_picture, map_cell, scales, show
from cnnviz.core.output.style import SMALL
from cnnviz.core.output.text import Written, text_width

Pixels = NDArray[np.uint8]

WIDTH = 2 * PANEL + GAP
"""Points of an ordinary sheet."""
MOST_ROWS = 25
"""Rows of a matrix on one page, if it has fewer columns."""
PER_PAGE, CONTACT = 10, 130.0
"""Images on a page of a contact sheet, and points of their width."""
STRIP = 9.0
"""Points below each tile for its number."""
_MOST_TICKS = 40
_MOST_NAMES = 512  # tiles; more numbers would be illegible


def tile_columns(count: int, height: int, width: int, aspect: float = 1.5) -> int:
    """The columns of a grid of `count` tiles that is about `aspect` times as wide as high."""
    return max(1, min(count, round(math.sqrt(count * aspect * height / width))))


def tiles(
    pictures: Pixels,
    columns: int,
    gap: int = 1,
    background: int = 255,
    scale: int = 1,
    strip: int = 0,
) -> Pixels:
    """Puts pictures of one size into one array, row by row.

    Args:
        pictures: (N, H, W) grey or (N, H, W, 3) colour.
        columns: tiles in a row; the last row may be short.
        gap: pixels between tiles and around them, after enlargement.
        background: grey level of gaps and of missing tiles.
        scale: whole-number enlargement by repetition (nearest neighbour).
        strip: further pixels below each tile.

    Returns:
        (R*(H*scale+gap+strip)+gap, columns*(W*scale+gap)+gap[, 3]) for R rows.
    """
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = large.shape[:3]
    rows = -(-count // columns)
    missing = np.full((rows * columns - count, *large.shape[1:]), background, np.uint8)
    padding = [(0, 0), (0, gap + strip), (0, gap)] + [(0, 0)] * (large.ndim - 3)
    padded = np.pad(np.concatenate([large, missing]), padding, constant_values=background)
    grid = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2)
    sheet = grid.reshape(rows * (height + gap + strip), columns * (width + gap), *large.shape[3:])
    edge = [(gap, 0), (gap, 0)] + [(0, 0)] * (large.ndim - 3)
    return np.pad(sheet, edge, constant_values=background)


@dataclass(frozen=True, eq=False)
class Sheet:
    """Tiles and how to read them.

    Attributes:
        pictures: uint8, (N, H, W) grey or (N, H, W, 3) colour, row by row.
        columns: tiles in a row.
        numbers: of the tiles of a grid, or of the rows of a matrix.
        row_name: what a tile, or a row of a matrix, is.
        column_name: what the columns of a matrix are; empty for a grid.
    """

    pictures: Pixels
    columns: int
    numbers: tuple[int, ...]
    row_name: str
    column_name: str = ""

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-len(self.pictures) // self.columns)

    def pages(self) -> Iterator["Sheet"]:
        """The sheet in pages: a matrix of many rows is split so that it stays legible."""
        most = max(MOST_ROWS, round(1.2 * self.columns))
        if not self.column_name or self.rows <= most:
            yield self
            return
        for start in range(0, self.rows, most):
            shown = slice(start * self.columns, (start + most) * self.columns)
            numbers = self.numbers[start : start + most]
            yield replace(self, pictures=self.pictures[shown], numbers=numbers)


def grid(
    pictures: Pixels, what: str, numbers: tuple[int, ...] | None = None, aspect: float = 1.3
) -> Sheet:
    """Pictures (N, H, W[, 3]) in reading order.

    Args:
        pictures: one for each number.
        what: what they are: "filter", "channel".
        numbers: of the pictures; by default 0, 1, 2, ….
        aspect: desired ratio of width and height.
    """
    count, height, width = pictures.shape[:3]
    across = _columns(count, tile_columns(count, height, width, aspect))
    return Sheet(pictures, across, numbers or tuple(range(count)), what)


def matrix(pictures: Pixels, row_name: str, column_name: str) -> Sheet:
    """Pictures (R, C, H, W) as R rows of C tiles."""
    rows, columns = pictures.shape[:2]
    flat = pictures.reshape(rows * columns, *pictures.shape[2:])
    return Sheet(flat, columns, tuple(range(rows)), row_name, column_name)


def _columns(count: int, ideal: int) -> int:
    """The tiles in a row: near the ideal, with the last row as full as possible."""
    nearby = range(max(1, ideal * 3 // 4), max(1, ideal * 4 // 3) + 1)
    return min(nearby, key=lambda columns: (-count % columns, abs(columns - ideal)))


def sheet_cell(sheet: Sheet, title: str, bar: Bar | None, width: float = WIDTH) -> Cell:
    """A sheet as a cell of a figure, at least one dot for each pixel."""
    dots = rcParams["figure.dpi"] / 72
    high, wide = sheet.pictures.shape[1:3]
    is_matrix = bool(sheet.column_name)
    named = not is_matrix and len(sheet.pictures) <= _MOST_NAMES
    gap = (1 if high * wide > 1 else 0) if is_matrix else 2 + round(dots)
    scale = max(1, int((width * dots - gap * (sheet.columns + 1)) / (sheet.columns * wide)))
    strip = round(STRIP * dots) if named else 0
    ground = round(255 * min(to_rgb(rcParams["figure.facecolor"])))
    pixels = tiles(sheet.pictures, sheet.columns, gap, ground, scale, strip)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    pitch = high * scale + gap + strip, wide * scale + gap

    def paint(axes: Axes) -> None:
        show(axes, pixels, (pixels.shape[0], pixels.shape[1]))
        if named:
            _name_tiles(axes, sheet, pitch, gap, strip)
        else:
            _number_edges(axes, sheet, pitch)

    return plot(
        paint,
        title,
        width=pixels.shape[1] / dots,
        height=pixels.shape[0] / dots,
        left=0.0 if named else 34.0,
        bottom=26.0 if is_matrix else 2.0,
        right=0.0,
        bar=bar,
    )


def _name_tiles(axes: Axes, sheet: Sheet, pitch: tuple[int, int], gap: int, strip: int) -> None:
    axes.set_axis_off()
    for place, number in enumerate(sheet.numbers):
        row, column = divmod(place, sheet.columns)
        x, y = gap + column * pitch[1], (row + 1) * pitch[0] - 0.15 * strip
        axes.add_artist(
            Written(x, y, str(number), fontsize=SMALL - 1.5, va="baseline", clip_on=False)
        )


def _number_edges(axes: Axes, sheet: Sheet, pitch: tuple[int, int]) -> None:
    step = _step(sheet.rows)
    firsts = sheet.numbers if sheet.column_name else sheet.numbers[:: sheet.columns]
    places = range(0, sheet.rows, step)
    axes.set_yticks([(i + 0.5) * pitch[0] for i in places], [str(firsts[i]) for i in places])
    step = _step(sheet.columns)
    places = range(0, sheet.columns, step) if sheet.column_name else range(0)
    axes.set_xticks([(i + 0.5) * pitch[1] for i in places], [str(i) for i in places])
    label_axes(axes, sheet.column_name, sheet.row_name)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


Contact = tuple[Pixels, NDArray[np.floating], str]
"""An image on a contact sheet: its photograph (h, w, 3), its map (H, W) and a text."""


def contact_sheets(
    shown: Iterable[Contact], count: int, look: Look, label: str
) -> Iterator[Figure]:
    """Draws many images in pages, a row for each: the photograph, the map over it, and a text."""
    pages, images = -(-count // PER_PAGE), iter(shown)
    for page in range(pages):
        part = list(islice(images, PER_PAGE))
        found = scales([values_HW for _, values_HW, _ in part], look, label)
        rows = []
        for (photo, values_HW, text), scale in zip(part, found, strict=True):
            size = (values_HW.shape[0], values_HW.shape[1])
            left = picture(
                lambda axes, photo=photo, size=size: draw_picture(axes, photo, size),  # type: ignore[misc]
                size,
                width=CONTACT,
            )
            right = map_cell(values_HW, scale, look, photo, width=CONTACT)
            wide = max(text_width(line, SMALL + 0.5) for line in text.splitlines())
            rows.append([left, right, words(text, min(wide + 4.0, 1.6 * CONTACT))])
        which = f", page {page + 1} of {pages}" if pages > 1 else ""
        yield board(rows, heading=f"{count} images{which}")


def _step(count: int) -> int:
    """The distance between labelled numbers: 1, 2, 5, 10 and so on."""
    step, turn, grow = 1, 0, (2, 2.5, 2)
    while count / step > _MOST_TICKS:
        step = int(step * grow[turn % 3])
        turn += 1
    return step
