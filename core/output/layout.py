"""Boards: figures of cells in rows and columns, laid out by measured text before they are drawn.

All figures are boards. A cell is a picture or a plot with a title above it, and a colour bar and
text below it. Titles wrap at the width of their column, so nothing is clipped and nothing collides;
there is no layout pass, which takes longer than drawing. Lengths are in points (1/72 inch).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox, TransformedBbox
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.output.style import FAINT, FONT_SIZE, HARM, SMALL
from cnnviz.core.output.text import LINE, Written, number, shortened, text_width, wrap

MARGIN, GAP = 10.0, 12.0
CAPTION = 14.0
"""The strip at the bottom of every figure."""
BAR, BAR_WIDTH = 7.0, 190.0
SWATCH = 14.0
PANEL = 272.0
"""Width of a panel: with an image beside it the figure is 8 inches wide."""
Paint = Callable[[Axes], None]


@dataclass(frozen=True, eq=False)
class Bar:
    """A colour bar.

    Attributes:
        colours: from the lowest to the highest value, (N, 3) in [0, 1]; (R, N, 3) for R strips.
        low: the lowest value.
        high: the highest value.
        label: what the colours measure.
        beyond: whether there are values below and above the ends.
        mark: a value that has a tick of its own, and its name.
    """

    colours: NDArray[np.floating]
    low: float
    high: float
    label: str
    beyond: tuple[bool, bool] = (False, False)
    mark: tuple[float, str] | None = None

    def ticks(self) -> list[tuple[float, str]]:
        """Places along the bar, 0 to 1, and their texts."""
        span = self.high - self.low
        signs = ("≤ " * self.beyond[0], "≥ " * self.beyond[1])
        found = [(0.0, signs[0] + number(self.low)), (1.0, signs[1] + number(self.high))]
        inner = 0.0 if self.low < 0 < self.high else (self.low + self.high) / 2
        text = number(inner)
        if self.mark is not None:
            inner, text = self.mark[0], f"{number(self.mark[0])} {self.mark[1]}".rstrip()
        place = (inner - self.low) / span if span > 0 else 0.5
        return [*found, (place, text)]


@dataclass(frozen=True)
class Entry:
    """An entry of a legend: a patch, hatched or not, a line (`-`) or a marker, and its text."""

    text: str
    colour: str = "none"
    hatch: str = ""
    marker: str = ""
    edge: str = ""


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
        spans: whether it reaches into the columns to its right, and does not widen its own.
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


def in_rows(cells: Sequence[Cell], columns: int) -> list[list[Cell | None]]:
    """Cells in reading order; the last row may be short."""
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
    width = max(sum(widths) + gap * (columns - 1), 160.0)
    top = wrap(heading, FONT_SIZE, width, 3) if heading else []
    entries = _legend_rows(legend, width)
    foot = CAPTION + (_bar_height(shared, width) if shared else 0.0)
    foot += len(entries) * SMALL * 1.7 + (6.0 if entries else 0.0)
    body = sum(row.height for row in measured) + gap * (len(measured) - 1)
    head = len(top) * FONT_SIZE * LINE + (6.0 if top else 0.0)
    figure = new_figure(width + 2 * MARGIN, head + body + foot + 2 * MARGIN)
    sheet = _Sheet(figure)
    sheet.lines(top, MARGIN, sheet.height - MARGIN, FONT_SIZE)
    y = sheet.height - MARGIN - head
    for row in measured:
        _draw_row(sheet, row, widths, gap, y)
        y -= row.height + gap
    y = CAPTION + MARGIN / 2
    _draw_legend(sheet, entries, y)
    if shared:
        y += len(entries) * SMALL * 1.7 + (6.0 if entries else 0.0)
        _draw_bar(sheet, shared, MARGIN, y + _bar_height(shared, width), width)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in points, rounded to whole pixels."""
    dpi = rcParams["figure.dpi"]
    sides = [max(1, round(length * dpi / 72)) / dpi for length in (width, height)]
    figure = Figure(figsize=(sides[0], sides[1]))
    FigureCanvasAgg(figure)
    return figure


def sign(figure: Figure, caption: str, mark: str = "") -> None:
    """Writes a caption at the bottom of a figure, and a warning at its top, in free strips."""
    sheet = _Sheet(figure)
    size = SMALL - 1.5
    text = shortened(caption, size, sheet.width - 2 * MARGIN)
    x = sheet.width - MARGIN - text_width(text, size)
    sheet.text(x, CAPTION / 4, text, size).set_color(FAINT)
    if mark:
        mark = shortened(mark, size, sheet.width - 2 * MARGIN)
        sheet.text(MARGIN, sheet.height - 0.85 * MARGIN, mark, size).set_color(HARM)


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """The figure's pixels, (h, w, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return np.asarray(Image.fromarray(drawn).convert("RGB"))


class _Sheet:
    """A figure in points, from its lower left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = (72 * side for side in figure.get_size_inches())
        self._dot = 72 / figure.dpi

    def box(
        self, x: float, y: float, width: float, height: float
    ) -> tuple[float, float, float, float]:
        """Left, bottom, width, height as shares of the figure, on whole pixels."""
        left, bottom, across, down = (
            round(length / self._dot) * self._dot for length in (x, y, width, height)
        )
        return (
            left / self.width, bottom / self.height, across / self.width, down / self.height
        )  # fmt: skip

    def axes(self, x: float, y: float, cell: Cell) -> Axes:
        """The axes of a cell."""
        box = self.box(x, y, cell.width, cell.height)
        axes = self.figure.add_axes(box, projection="polar" if cell.polar else None)
        if not cell.frame:
            axes.set_axis_off()
        return axes

    def text(self, x: float, y: float, text: str, size: float) -> "Written":
        """A line of text, its base line at y."""
        shown = text.replace("$", r"\$")
        line = Written(x / self.width, y / self.height, shown, fontsize=size, va="baseline")
        line.set_transform(self.figure.transFigure)
        self.figure.add_artist(line)
        return line

    def lines(
        self, lines: Sequence[str], x: float, top: float, size: float, **looks: float
    ) -> float:
        """Lines of text below each other, the first one below `top`; returns the new top."""
        for line in lines:
            top -= size * LINE
            written = self.text(x, top + 0.3 * size, line, size)
            written.set(**looks)
        return top


def _measure(row: Sequence[Cell | None], bars: list[Bar | None], widths: Sequence[float]) -> _Row:
    measured = _Row(row, bars=bars)
    for cell, bar, own in zip(row, bars, widths, strict=True):
        title, below, heading = [], [], []
        width = cell.across if cell and cell.spans else own
        if cell is not None:
            first, _, rest = cell.title.partition("\n")
            heading = wrap(first, FONT_SIZE, width, 3) if first else []
            title = wrap(rest, SMALL, width, 4) if rest else []
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
        under += _bar_height(bar, width) if bar else 0.0
        measured.under = max(measured.under, under)
    return measured


def _draw_row(sheet: _Sheet, row: _Row, widths: Sequence[float], gap: float, top: float) -> None:
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
            axes = sheet.axes(x + cell.left, base, cell)
            cell.paint(axes)
            base -= cell.below_axes
            if bar:
                _draw_bar(sheet, bar, x + cell.left, base, width - cell.left - cell.right)
                base -= _bar_height(bar, width)
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


def _bar_height(bar: Bar, width: float) -> float:
    return 8.0 + BAR + SMALL * LINE + len(wrap(bar.label, SMALL, width, 3)) * SMALL * LINE + 4.0


def _draw_bar(sheet: _Sheet, bar: Bar, x: float, top: float, width: float) -> None:
    """Draws a bar below `top`: its colours, its numbers, what they measure."""
    across = min(BAR_WIDTH, width)
    y = top - 8.0 - BAR
    left, bottom, wide, high = sheet.box(x, y, across, BAR)
    box = TransformedBbox(Bbox.from_bounds(left, bottom, wide, high), sheet.figure.transFigure)
    strip = BboxImage(box, interpolation="nearest")
    colours = bar.colours if bar.colours.ndim == 3 else bar.colours[None]
    strip.set_data(np.clip(np.rint(255 * colours), 0, 255).astype(np.uint8))
    sheet.figure.add_artist(strip)
    frame = Rectangle((left, bottom), wide, high, fill=False, linewidth=0.4)
    frame.set(transform=sheet.figure.transFigure, edgecolor=FAINT)
    sheet.figure.add_artist(frame)
    base = y - SMALL * LINE
    taken: list[tuple[float, float]] = []
    for place, text in bar.ticks():
        wide = text_width(text, SMALL)
        start = min(max(place * across - wide / 2, 0.0), across - wide)
        if all(start > end + 4 or start + wide < begin - 4 for begin, end in taken):
            taken.append((start, start + wide))
            sheet.text(x + start, base, text, SMALL)
            if 0 < place < 1:
                _tick(sheet, x + place * across, y)
    sheet.lines(wrap(bar.label, SMALL, width, 3), x, base - 1.5, SMALL)


def _tick(sheet: _Sheet, x: float, y: float) -> None:
    line = Line2D([x / sheet.width] * 2, [(y - 2) / sheet.height, y / sheet.height])
    line.set(linewidth=0.6, color=rcParams["text.color"])
    sheet.figure.add_artist(line)


def _legend_rows(entries: Sequence[Entry], width: float) -> list[list[tuple[Entry, str, float]]]:
    """The entries of each row, with their texts and widths."""
    rows: list[list[tuple[Entry, str, float]]] = []
    room = 0.0
    for entry in entries:
        text = shortened(entry.text, SMALL, width - SWATCH - 6)
        wide = SWATCH + 5 + text_width(text, SMALL) + 16.0
        if not rows or wide - 16.0 > room:
            rows.append([])
            room = width
        rows[-1].append((entry, text, wide))
        room -= wide
    return rows


def _draw_legend(
    sheet: _Sheet, rows: Sequence[Sequence[tuple[Entry, str, float]]], y: float
) -> None:
    for number_, row in enumerate(reversed(rows)):
        x, base = MARGIN, y + number_ * SMALL * 1.7
        for entry, text, wide in row:
            _draw_swatch(sheet, entry, x, base - 1.0)
            sheet.text(x + SWATCH + 5, base, text, SMALL)
            x += wide


def _draw_swatch(sheet: _Sheet, entry: Entry, x: float, y: float) -> None:
    across, down = sheet.width, sheet.height
    if entry.marker:
        ends = [x, x + SWATCH] if entry.marker == "-" else [x + SWATCH / 2]
        line = Line2D([end / across for end in ends], [(y + 3.5) / down] * len(ends))
        shape = "" if entry.marker == "-" else entry.marker
        line.set(color=entry.colour if entry.colour != "none" else entry.edge, linewidth=1.6)
        line.set(marker=shape, markersize=5.5, markerfacecolor=entry.colour)
        if entry.edge:
            line.set_markeredgecolor(entry.edge)
        sheet.figure.add_artist(line)
        return
    patch = Rectangle((x / across, y / down), SWATCH / across, 8.0 / down)
    patch.set(transform=sheet.figure.transFigure, facecolor=entry.colour, linewidth=0.6)
    patch.set(edgecolor=entry.edge or (entry.colour if entry.hatch == "" else FAINT))
    if entry.hatch:
        patch.set(facecolor="none", edgecolor=entry.colour, hatch=entry.hatch)
    sheet.figure.add_artist(patch)
