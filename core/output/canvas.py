"""A figure in points: text, axes, colour bars and legends, each at its place.

`layout.py` decides where things go. Lengths are in points (1/72 inch), from the lower left corner.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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

from cnnviz.core.output.style import FAINT, HARM, SMALL
from cnnviz.core.output.text import LINE, Written, number, shortened, text_width, wrap

MARGIN, CAPTION = 10.0, 14.0
"""Around every figure; the strip at its bottom."""
BAR, BAR_WIDTH = 7.0, 190.0
SWATCH = 14.0


@dataclass(frozen=True, eq=False)
class Bar:
    """A colour bar.

    Attributes:
        colours: from the lowest to the highest value, (N, 3) in [0, 1]; (R, N, 3) for R strips.
        low: the lowest value.
        high: the highest value.
        label: what the colours measure.
        beyond: whether there are values below and above the ends.
        mark: a value with a separate tick, and its name.
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


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in points, rounded to whole pixels."""
    dpi = rcParams["figure.dpi"]
    sides = [max(1, round(length * dpi / 72)) / dpi for length in (width, height)]
    figure = Figure(figsize=(sides[0], sides[1]))
    FigureCanvasAgg(figure)
    return figure


def sign(figure: Figure, caption: str, mark: str = "") -> None:
    """Writes a caption at the bottom of a figure, and a warning at its top, in free strips."""
    sheet = Sheet(figure)
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


class Sheet:
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

    def axes(self, x: float, y: float, width: float, height: float, *, polar: bool) -> Axes:
        """New axes of that size."""
        box = self.box(x, y, width, height)
        return self.figure.add_axes(box, projection="polar" if polar else None)

    def text(self, x: float, y: float, text: str, size: float) -> Written:
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


def bar_height(bar: Bar, width: float) -> float:
    """The height of a bar with its numbers and its label."""
    return 8.0 + BAR + SMALL * LINE + len(wrap(bar.label, SMALL, width, 3)) * SMALL * LINE + 4.0


def draw_bar(sheet: Sheet, bar: Bar, x: float, top: float, width: float) -> None:
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


def _tick(sheet: Sheet, x: float, y: float) -> None:
    line = Line2D([x / sheet.width] * 2, [(y - 2) / sheet.height, y / sheet.height])
    line.set(linewidth=0.6, color=rcParams["text.color"])
    sheet.figure.add_artist(line)


def legend_rows(entries: Sequence[Entry], width: float) -> list[list[tuple[Entry, str, float]]]:
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


def draw_legend(sheet: Sheet, rows: Sequence[Sequence[tuple[Entry, str, float]]], y: float) -> None:
    """Draws rows of entries, the last one at y."""
    for number_, row in enumerate(reversed(rows)):
        x, base = MARGIN, y + number_ * SMALL * 1.7
        for entry, text, wide in row:
            _draw_swatch(sheet, entry, x, base - 1.0)
            sheet.text(x + SWATCH + 5, base, text, SMALL)
            x += wide


def _draw_swatch(sheet: Sheet, entry: Entry, x: float, y: float) -> None:
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
