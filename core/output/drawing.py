"""Drawing that all analyses share: colours, grids of tiles, figures without a screen.

Figures are made without pyplot, so nothing is global and nothing needs a display. Text that comes
from users (labels, file names) goes through `escape`, since matplotlib would read `$` as
mathematics. Grids of many small pictures are one array and one image, not thousands of axes.
Shapes: N tiles, H W rows and columns.
"""

import math
import textwrap
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cnnviz.core.choices import Colormap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap as MatplotlibColormap
    from numpy.typing import NDArray

    from cnnviz.core.data.images import WorkingImage

FONT_SIZE = 9.0


MATPLOTLIB_NAMES = {Colormap.DIVERGING: "RdBu_r"}  # the others have the same name there


@cache
def _drawable() -> frozenset[int]:
    """Code points that the figures' font has a glyph for."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())


def escape(text: str, longest: int = 60) -> str:
    """Text as matplotlib shall show it: literally, on one line, no glyph it lacks, not too long."""
    glyphs = _drawable()
    shown = "".join(c if c.isprintable() and ord(c) in glyphs else "\ufffd" for c in text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return shown.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, laid out so that nothing is clipped."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: "Axes") -> None:
    """Takes ticks and frame off axes that show a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def title(axes: "Axes", text: str, size: float = FONT_SIZE) -> None:
    """Puts a title over axes; `text` is shown literally, line by line."""
    lines = [escape(line) for line in text.split("\n")]
    axes.set_title("\n".join(lines), fontsize=size)


def under(axes: "Axes", text: str, longest: int = 46) -> None:
    """Puts a line under axes that show a picture, broken between words; shown literally."""
    lines = textwrap.wrap(text, longest)
    axes.set_xlabel("\n".join(escape(line) for line in lines), fontsize=FONT_SIZE - 1)


def beside(axes: "Axes", text: str, longest: int = 100) -> None:
    """Fills axes with lines of text, for a row of pictures to the right; shown literally."""
    bare(axes)
    shown = "\n".join(escape(line, longest) for line in text.split("\n"))
    axes.text(0.0, 0.5, shown, fontsize=FONT_SIZE - 1, va="center", ha="left", linespacing=1.25)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def add_colorbar(mappable: "ScalarMappable", axes: "Axes", label: str) -> "Colorbar":
    """A colour bar beside axes that says in words what the colours measure."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)  # noqa: S101 (told to mypy: no subfigures here)
    bar = figure.colorbar(mappable, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label(escape(label, 90), fontsize=FONT_SIZE - 1)
    bar.ax.tick_params(labelsize=FONT_SIZE - 2)
    bar.outline.set_linewidth(0.5)
    return bar


def symmetric_limit(values: "NDArray[np.floating]") -> float:
    """The largest magnitude, for a colour scale from minus to plus it; tiny where all is zero."""
    return max(float(np.abs(values).max(initial=0.0)), 1e-12)


def cmap_of(choice: Colormap) -> "MatplotlibColormap":
    """The matplotlib colour map of that choice."""
    return colormaps[MATPLOTLIB_NAMES.get(choice, choice.value)]


def to_uint8(pixels: "NDArray[np.floating]") -> "NDArray[np.uint8]":
    """Values in [0, 1] to 0…255, rounded."""
    levels: NDArray[np.uint8] = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return levels


def image_pixels(image: "WorkingImage") -> "NDArray[np.uint8]":
    """The working image as uint8 (H, W, 3): as it is on disk, or the channels that are drawn."""
    return to_uint8(in_colour(image.pixels.numpy(), image.bands))


def in_colour(pixels: "NDArray[np.float32]", bands: tuple[int, ...]) -> "NDArray[np.float32]":
    """Channels (…, C, H, W) as red, green and blue (…, H, W, 3); one of them as grey."""
    three = bands if len(bands) == 3 else bands * 3
    return np.moveaxis(pixels[..., list(three), :, :], -3, -1)


def tile_columns(count: int, height: int, width: int, aspect: float = 1.5) -> int:
    """How many columns make a grid of `count` tiles about `aspect` times as wide as high."""
    return max(1, min(count, round(math.sqrt(count * aspect * height / width))))


def tiles(
    pictures: "NDArray[np.uint8]", columns: int, gap: int = 1, background: int = 255, scale: int = 1
) -> "NDArray[np.uint8]":
    """Puts equal pictures into one array, row by row.

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
