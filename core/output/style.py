"""The style of all figures: matplotlib parameters, light or dark, colours, and the caption.

A run applies `style` while it draws and writes its figures. Figures are black on white; dark ones
have light text and lines on a dark ground. Pictures, and what is drawn over them, are the same.
"""

from contextlib import AbstractContextManager
from typing import Any

from matplotlib import rc_context, rcParams, rcParamsDefault
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

FONT_SIZE = 9.0
INK, GROUND, FAINT = "#e6edf3", "#0d1117", "#7d8590"
DARKEST = 0.25
"""Largest component of a colour that is too dark for a dark ground."""
STRIP = 0.2
"""Inches that the caption takes."""

BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
"""Colours that people with any kind of colour-blindness can tell apart (Okabe and Ito 2008)."""
HARM, GAIN = "#b2182b", "#2166ac"
"""The ends of the diverging colour map: worse and better."""

WRITING: dict[Any, Any] = {
    "svg.hashsalt": "cnnviz",  # the same figure gives the same file
    # Pictures that matplotlib joins before it writes them lose the weight of the map over them.
    "image.composite_image": False,
}
"""Parameters for writing a figure to a file."""
_INKED = (
    *("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
    *("patch.edgecolor", "boxplot.boxprops.color", "boxplot.whiskerprops.color"),
    *("boxplot.capprops.color", "boxplot.flierprops.markeredgecolor"),
)
DARK: dict[Any, Any] = {
    **dict.fromkeys(_INKED, INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), GROUND),
}


def style(*, dark: bool = False) -> AbstractContextManager[None]:
    """Applies the parameters to all figures that are made in the context."""
    return rc_context(DARK if dark else {name: rcParamsDefault[name] for name in DARK})


def ink(colour: str = "black") -> str:
    """The colour, or the ink of dark figures if it could not be seen on a dark ground."""
    dark = rcParams["text.color"] == INK
    return INK if dark and max(to_rgb(colour)) < DARKEST else colour


def sign(figure: Figure, caption: str) -> Bbox:
    """Writes a caption on a strip below the figure; returns the whole as a box in inches."""
    width, height = figure.get_size_inches()
    share = STRIP / height
    strip = Rectangle((0, -share), 1, 1.02 * share, transform=figure.transFigure, clip_on=False)
    strip.set(facecolor=figure.get_facecolor(), linewidth=0, in_layout=False)
    figure.add_artist(strip)
    line = figure.text(
        0.995, -0.9 * share, caption, fontsize=FONT_SIZE - 3, ha="right", va="bottom"
    )
    line.set(color=FAINT, in_layout=False)
    return Bbox([[0.0, -STRIP], [width, height]])
