"""Drawing that all analyses share: figures without a screen, text, colour bars, pixels, bars.

Figures are made without pyplot, so nothing is global and nothing needs a display. Text from users
(labels, file names) goes through `escape`, since matplotlib reads `$` as mathematics.
Shapes: C channels, H W rows and columns.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap as MatplotlibColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import Colormap
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.style import FONT_SIZE, HARM, ink

MOST_BARS = 40
LONGEST = 28
PLAIN = "#4a6fa5"
MATPLOTLIB_NAMES = {Colormap.DIVERGING: "RdBu_r"}  # the others have the same name there


@cache
def _drawable() -> frozenset[int]:
    """The code points for which the figures' font has a glyph."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def escape(text: str, longest: int = 60) -> str:
    """Text that matplotlib draws literally, on one line, without missing glyphs, not too long."""
    glyphs = _drawable()
    shown = "".join(c if c.isprintable() and ord(c) in glyphs else "\ufffd" for c in text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, laid out so that nothing is clipped."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> None:
    """Removes ticks and frame from axes that show a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def title(axes: Axes, text: str, size: float = FONT_SIZE) -> None:
    """Puts a title above axes; `text` is drawn literally, line by line."""
    lines = [escape(line) for line in text.split("\n")]
    axes.set_title("\n".join(lines), fontsize=size)


def under(axes: Axes, text: str, longest: int = 46) -> None:
    """Puts text below axes that show a picture, wrapped between words; drawn literally."""
    lines = textwrap.wrap(text, longest)
    axes.set_xlabel("\n".join(escape(line) for line in lines), fontsize=FONT_SIZE - 1)


def beside(axes: Axes, text: str, longest: int = 100) -> None:
    """Fills axes with lines of text, next to a row of pictures; drawn literally."""
    bare(axes)
    shown = "\n".join(escape(line, longest) for line in text.split("\n"))
    axes.text(0.0, 0.5, shown, fontsize=FONT_SIZE - 1, va="center", ha="left", linespacing=1.25)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def add_colorbar(mappable: ScalarMappable, axes: Axes, label: str) -> Colorbar:
    """Adds a colour bar with a label that says what the colours measure."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)  # noqa: S101 (told to mypy: no subfigures here)
    bar = figure.colorbar(mappable, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(escape(label, 90), fontsize=FONT_SIZE - 1)
    bar.ax.tick_params(labelsize=FONT_SIZE - 2)
    bar.outline.set_linewidth(0.5)
    return bar


def symmetric_limit(values: NDArray[np.floating]) -> float:
    """The largest magnitude, for a symmetric colour scale; tiny if all values are zero."""
    return max(float(np.abs(values).max(initial=0.0)), 1e-12)


def cmap_of(choice: Colormap) -> MatplotlibColormap:
    """The matplotlib colour map of a choice."""
    return colormaps[MATPLOTLIB_NAMES.get(choice, choice.value)]


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


@dataclass(frozen=True)
class Column:
    """A column of bars.

    Attributes:
        name: its heading.
        values: a share of each thing; None if unknown.
        alarm: shares above it are red, and a line marks it.
        unknown: the text for an unknown share.
    """

    name: str
    values: Sequence[float | None]
    alarm: float | None = None
    unknown: str = ""


def draw_bars(names: Sequence[str], columns: Sequence[Column], heading: str, what: str) -> Figure:
    """Draws a row of bars for each thing, the first at the top; at most `MOST_BARS` rows.

    Args:
        names: of the things.
        columns: their measures.
        heading: above all columns.
        what: what the things are, in the plural.
    """
    shown = min(len(names), MOST_BARS)
    figure = new_figure(1.5 + 2.1 * len(columns), 1.2 + 0.24 * shown)
    places = np.arange(shown)
    cells = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(cells, columns, strict=True):
        values = column.values[:shown]
        limit = 1.0 if column.alarm is None else column.alarm
        colours = [HARM if (value or 0.0) > limit else PLAIN for value in values]
        axes.barh(places, [value or 0.0 for value in values], color=colours, height=0.7)
        for place, value in zip(places, values, strict=True):
            text = column.unknown if value is None else f"{value:.2f}"
            axes.text(1.02, place, text, fontsize=FONT_SIZE - 2, va="center")
        axes.set_xlim(0, 1.32)
        axes.set_xticks([0, 0.5, 1])
        axes.tick_params(labelsize=FONT_SIZE - 2, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        title(axes, column.name)
        if column.alarm is not None:
            axes.axvline(column.alarm, color=ink(), linewidth=0.6, linestyle=":")
    labels = [escape(name, LONGEST) for name in names[:shown]]
    cells[0].set_yticks(places, labels, fontsize=FONT_SIZE - 1)
    cells[0].invert_yaxis()
    more = len(names) - shown
    figure.suptitle(heading + (f"; {more} more {what}" if more else ""), fontsize=FONT_SIZE)
    return figure
