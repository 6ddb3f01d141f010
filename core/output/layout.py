"""Boards: figures of cells in rows and columns, laid out by measured text before they are drawn.

All figures are boards. A cell is a picture or a plot with a title above it, and a colour bar and
text below it. Titles wrap at the width of their column, so nothing is clipped and nothing collides;
there is no layout pass, which takes longer than drawing. Lengths are in points (1/72 inch).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnviz.core.output.canvas import (
    CAPTION,
    MARGIN,
    Bar,
    Entry,
    Sheet,
    bar_height,
    draw_bar,
    draw_legend,
    legend_rows,
    new_figure,
)
from cnnviz.core.output.style import FONT_SIZE, SMALL
from cnnviz.core.output.text import LINE, balanced, wrap

GAP = 12.0
PANEL = 272.0
"""Width of a panel: next to an image the figure is 8 inches wide."""
MOST_COLUMNS = 4
"""Pictures in a row, unless the user says how many."""
Paint = Callable[[Axes], None]


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture or a plot.

    Attributes:
        paint: draws on axes of exactly the cell's size; None for a cell of text.
        width: of the axes.
        height: of the axes.
        title: the first line is the heading, the others are details.
        below: text under the picture.
        bar: of its colours.
        left: room for tick labels and a label at the left, as `below_axes` for those below.
        below_axes: room below the axes.
        right: room at the right.
        frame: whether the axes keep ticks and frame.
        polar: whether the axes are polar.
        spans: whether it reaches over the columns to its right, and does not widen its own.
    """

    paint: Paint | None
    width: float = PANEL
    height: float = PANEL
    title: str = ""
    below: str = ""
    bar: Bar | None = None
    left: float = 0.0
    below_axes: float = 0.0
    right: float = 0.0
    frame: bool = False
    polar: bool = False
    spans: bool = False

    @property
    def across(self) -> float:
        """Width with the room at both sides."""
        return self.left + self.width + self.right


def picture(
    paint: Paint,
    size: tuple[int, int],
    title: str = "",
    below: str = "",
    bar: Bar | None = None,
    width: float = PANEL,
) -> Cell:
    """A cell for a picture of H×W, as wide as a panel unless it is very high."""
    tall = size[0] / size[1]
    shown = width if tall <= 2 else 2 * width / tall
    height = max(shown * tall, 24.0)
    right = width - shown
    return Cell(paint, shown, height, title, below, bar, right=right)


def scaled(cell: Cell, share: float) -> Cell:
    """The cell with a picture of another size; its text stays as large."""
    return replace(cell, width=share * cell.width, height=share * cell.height, right=0.0)


def plot(
    paint: Paint,
    title: str = "",
    *,
    width: float = 210.0,
    height: float = 165.0,
    left: float = 42.0,
    bottom: float = 30.0,
    right: float = 8.0,
    bar: Bar | None = None,
    polar: bool = False,
) -> Cell:
    """A cell for a plot with ticks and labels."""
    return Cell(paint, width, height, title, "", bar, left, bottom, right, True, polar)


def words(text: str, width: float = 200.0, *, spans: bool = False) -> Cell:
    """A cell of text beside pictures."""
    return Cell(None, width, 0.0, below=text, spans=spans)


@dataclass
class _Row:
    """A row with its measures."""

    cells: Sequence[Cell | None]
    titles: list[tuple[list[str], list[str]]] = field(default_factory=list)
    belows: list[list[str]] = field(default_factory=list)
    bars: list[Bar | None] = field(default_factory=list)
    above: float = 0.0
    content: float = 0.0
    under: float = 0.0

    @property
    def height(self) -> float:
        return self.above + self.content + self.under


def in_rows(cells: Sequence[Cell], columns: int | None = None) -> list[list[Cell | None]]:
    """Cells in reading order; by default in as few rows as possible, of about equal lengths."""
    if columns is None:
        rows = max(1, math.ceil(len(cells) / MOST_COLUMNS))
        columns = max(1, math.ceil(len(cells) / rows))
    return [list(cells[start : start + columns]) for start in range(0, len(cells), columns)]


def board(
    rows: Sequence[Sequence[Cell | None]],
    *,
    heading: str = "",
    legend: Sequence[Entry] = (),
    gap: float = GAP,
) -> Figure:
    """Draws rows of cells as a figure.

    A colour bar that all cells share is drawn once below all, one that a row shares once below its
    first cell, and one that a column shares once below the column.

    Args:
        rows: cells, or None for an empty place.
        heading: a line above all.
        legend: entries below all.
        gap: between cells.
    """
    columns = max(len(row) for row in rows)
    filled = [[*row, *[None] * (columns - len(row))] for row in rows]
    widths = [
        max((cell.across for row in filled if (cell := row[c]) and not cell.spans), default=0.0)
        for c in range(columns)
    ]
    shared, bars = _bars(filled)
    measured = [_measure(row, shown, widths) for row, shown in zip(filled, bars, strict=True)]
    reach = [
        sum(widths[:place]) + gap * place + cell.across
        for row in filled
        for place, cell in enumerate(row)
        if cell and cell.spans
    ]
    width = max(sum(widths) + gap * (columns - 1), 160.0, *reach)
    top = wrap(heading, FONT_SIZE, width, 3) if heading else []
    entries = legend_rows(legend, width)
    foot = CAPTION + (bar_height(shared, width) if shared else 0.0)
    foot += len(entries) * SMALL * 1.7 + (6.0 if entries else 0.0)
    body = sum(row.height for row in measured) + gap * (len(measured) - 1)
    head = len(top) * FONT_SIZE * LINE + (6.0 if top else 0.0)
    figure = new_figure(width + 2 * MARGIN, head + body + foot + 2 * MARGIN)
    sheet = Sheet(figure)
    sheet.lines(top, MARGIN, sheet.height - MARGIN, FONT_SIZE)
    y = sheet.height - MARGIN - head
    for row in measured:
        _draw_row(sheet, row, widths, gap, y)
        y -= row.height + gap
    y = CAPTION + MARGIN / 2
    draw_legend(sheet, entries, y)
    if shared:
        y += len(entries) * SMALL * 1.7 + (6.0 if entries else 0.0)
        draw_bar(sheet, shared, MARGIN, y + bar_height(shared, width), width)
    return figure


def _measure(row: Sequence[Cell | None], bars: list[Bar | None], widths: Sequence[float]) -> _Row:
    measured = _Row(row, bars=bars)
    for cell, bar, own in zip(row, bars, widths, strict=True):
        title, below, heading = [], [], []
        width = cell.across if cell and cell.spans else own
        if cell is not None:
            first, _, rest = cell.title.partition("\n")
            heading = wrap(first, FONT_SIZE, width, 3) if first else []
            title = [
                line for part in rest.splitlines() for line in balanced(part, SMALL, width, 4)
            ][:4]
            size = SMALL if cell.paint else SMALL + 0.5
            below = wrap(cell.below, size, width, 4 if cell.paint else 16) if cell.below else []
        measured.titles.append((heading, title))
        measured.belows.append(below)
        above = len(heading) * FONT_SIZE * LINE + len(title) * SMALL * LINE
        measured.above = max(measured.above, above + (4.0 if above else 0.0))
        if cell is None:
            continue
        if cell.paint is None:
            measured.content = max(measured.content, cell.height, len(below) * (SMALL + 1) * LINE)
            continue
        measured.content = max(measured.content, cell.height)
        under = cell.below_axes + (3.0 + len(below) * SMALL * LINE if below else 0.0)
        under += bar_height(bar, width) if bar else 0.0
        measured.under = max(measured.under, under)
    return measured


def _draw_row(sheet: Sheet, row: _Row, widths: Sequence[float], gap: float, top: float) -> None:
    x = MARGIN
    for cell, (heading, title), below, bar, width in zip(
        row.cells, row.titles, row.belows, row.bars, widths, strict=True
    ):
        if cell is not None and cell.paint is None:
            sheet.lines(below, x, top - row.above, SMALL + 0.5)
        elif cell is not None and cell.paint is not None:
            high = len(heading) * FONT_SIZE * LINE + len(title) * SMALL * LINE
            y = sheet.lines(heading, x, top - row.above + 4.0 + high, FONT_SIZE)
            sheet.lines(title, x, y, SMALL, alpha=0.75)
            base = top - row.above - cell.height
            axes = sheet.axes(x + cell.left, base, cell.width, cell.height, polar=cell.polar)
            if not cell.frame:
                axes.set_axis_off()
            cell.paint(axes)
            base -= cell.below_axes
            if bar:
                draw_bar(sheet, bar, x + cell.left, base, width - cell.left - cell.right)
                base -= bar_height(bar, width)
            sheet.lines(below, x, base - 3.0, SMALL)
        x += width + gap


def _bars(rows: Sequence[Sequence[Cell | None]]) -> tuple[Bar | None, list[list[Bar | None]]]:
    """The bar that all cells share, or those that each cell has."""
    bars = [[cell.bar if cell else None for cell in row] for row in rows]
    kinds = list(dict.fromkeys(bar for row in bars for bar in row if bar))
    cells = sum(cell is not None and cell.bar is not None for row in rows for cell in row)
    if len(kinds) == 1 and cells > 1:
        return kinds[0], [[None] * len(row) for row in rows]
    for row in bars:
        for place, bar in enumerate(row):
            if bar is not None and bar in row[:place]:
                row[place] = None
    for upper, lower in pairwise(bars):
        for place, bar in enumerate(upper):
            if bar is not None and bar is lower[place]:
                upper[place] = None
    return None, bars
