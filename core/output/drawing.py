"""Drawing that all analyses share: pixels of images, axes of plots, bars.

Figures are made without pyplot, so nothing is global and nothing needs a display.
Shapes: C channels, H W rows and columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import typeset
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.layout import board, plot
from cnnviz.core.output.style import HARM, SMALL, ink
from cnnviz.core.output.text import escape, shortened_inside, text_width

MOST_BARS = 40
LONGEST = 150.0
"""Points of the longest name of a row of bars."""
ROW = 17.0
"""Points of a row of bars."""
PLAIN = "#4a6fa5"


def to_uint8(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Converts values in [0, 1] to 0…255, rounded."""
    levels: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return levels


def image_pixels(image: WorkingImage) -> NDArray[np.uint8]:
    """The working image as uint8 (H, W, 3); of other channels than RGB, those that are drawn."""
    return to_uint8(in_colour(image.pixels.numpy(), image.bands))


def in_colour(pixels: NDArray[np.float32], bands: tuple[int, ...]) -> NDArray[np.float32]:
    """Channels (…, C, H, W) as red, green and blue (…, H, W, 3); a single one as grey."""
    three = bands if len(bands) == 3 else bands * 3
    return np.moveaxis(pixels[..., list(three), :, :], -3, -1)


def label_axes(axes: Axes, xlabel: str = "", ylabel: str = "") -> None:
    """Labels the axes of a plot, with the sizes that its cell has room for."""
    axes.set_xlabel(escape(xlabel, 90), fontsize=SMALL, labelpad=2.0)
    axes.set_ylabel(escape(ylabel, 60), fontsize=SMALL, labelpad=2.0)
    axes.tick_params(labelsize=SMALL - 1, length=2.5, pad=2.5)
    axes.spines[["top", "right"]].set_visible(False)


def name_rows(axes: Axes, names: Sequence[str], size: float = SMALL) -> None:
    """Writes the name of each row of bars, the first one at the top; see `names_width`."""
    shown = [shortened_inside(name, size, LONGEST).replace("$", r"\$") for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=size)
    axes.set_ylim(len(names) - 0.5, -0.5)


def names_width(names: Sequence[str], size: float = SMALL) -> float:
    """The room that the names of rows of bars take, in points."""
    return 8.0 + max(text_width(shortened_inside(name, size, LONGEST), size) for name in names)


@dataclass(frozen=True)
class Column:
    """A column of bars.

    Attributes:
        name: its heading.
        values: a share of each thing; None if unknown.
        alarm: shares above it are red, and a line marks it.
        unknown: the text for an unknown share.
        text: a share as text.
    """

    name: str
    values: Sequence[float | None]
    alarm: float | None = None
    unknown: str = ""
    text: Callable[[float], str] = "{:.2f}".format


def draw_bars(names: Sequence[str], columns: Sequence[Column], heading: str, what: str) -> Figure:
    """Draws a row of bars for each thing, the first at the top; at most `MOST_BARS` rows."""
    shown, more = names[:MOST_BARS], len(names) - MOST_BARS
    known = [c for c in columns if any(v is not None for v in c.values)]
    columns = known or columns[:1]
    left = names_width(shown)
    cells = [
        plot(
            lambda axes, column=column, first=not place: _bars(  # type: ignore[misc]
                axes, column, shown, named=first
            ),
            column.name,
            width=96.0,
            height=ROW * max(len(shown), 3),
            left=0.0 if place else left,
            bottom=16.0,
            right=34.0,
        )
        for place, column in enumerate(columns)
    ]
    return board([cells], heading=heading + (f"; {more} more {what}" if more > 0 else ""))


def _bars(axes: Axes, column: Column, names: Sequence[str], *, named: bool) -> None:
    values = column.values[: len(names)]
    limit = 1.0 if column.alarm is None else column.alarm
    colours = [HARM if (value or 0.0) > limit else PLAIN for value in values]
    axes.barh(range(len(names)), [value or 0.0 for value in values], color=colours, height=0.7)
    for place, value in enumerate(values):
        text = column.unknown if value is None else column.text(value)
        axes.text((value or 0.0) + 0.04, place, typeset(text), fontsize=SMALL - 1, va="center")
    name_rows(axes, names if named else [""] * len(names))
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], [column.text(place) for place in (0, 0.5, 1)])
    label_axes(axes)
    if column.alarm is not None:
        axes.axvline(column.alarm, color=ink(), linewidth=0.6, linestyle=":")
