"""The style of all figures: matplotlib parameters, size, light or dark, colours, and the caption.

A run applies `style` while it draws and writes its figures. Figures are black on white; dark ones
have light text and lines on a dark ground. Photographs, and maps over them, are the same. The
layout of a figure is in points; how many pixels a point has follows from the requested width.
"""

from contextlib import AbstractContextManager
from typing import Any

from matplotlib import rc_context, rcParams, rcParamsDefault
from matplotlib.colors import to_rgb

FONT_SIZE = 10.0
SMALL = 8.0
WIDTH = 1200
"""Pixels of a figure of one panel: the image and a map."""
DPI = 150
"""Dots per inch at that width."""
INK, GROUND, FAINT = "#e6edf3", "#0d1117", "#7d8590"
DARKEST = 0.25
"""Largest component of a colour that is too dark for a dark ground."""

BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
"""Colours that people with any kind of colour-blindness can tell apart (Okabe and Ito 2008)."""
HARM, GAIN = "#b2182b", "#2166ac"
"""The ends of the diverging colour map: worse and better."""

WRITING: dict[Any, Any] = {"svg.hashsalt": "cnnviz"}  # the same figure gives the same file
"""Parameters for writing a figure to a file."""
PLAIN: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_SIZE,
    **dict.fromkeys(("axes.labelsize", "legend.fontsize"), FONT_SIZE - 1),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), SMALL),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("xtick.major.pad", "ytick.major.pad"), 2.5),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.linewidth": 0.6,
    "axes.labelpad": 2.0,
    "hatch.linewidth": 0.6,
}
_INKED = (
    *("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
    *("patch.edgecolor", "boxplot.boxprops.color", "boxplot.whiskerprops.color"),
    *("boxplot.capprops.color", "boxplot.flierprops.markeredgecolor"),
)
DARK: dict[Any, Any] = {
    **dict.fromkeys(_INKED, INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), GROUND),
}


def style(*, dark: bool = False, width: int = WIDTH) -> AbstractContextManager[None]:
    """Applies the parameters to all figures that are made in the context.

    Args:
        dark: whether figures are light on dark.
        width: pixels of a figure of one panel; larger figures are wider in proportion.
    """
    colours = DARK if dark else {name: rcParamsDefault[name] for name in DARK}
    return rc_context({**PLAIN, **colours, "figure.dpi": DPI * width / WIDTH})


def ink(colour: str = "black") -> str:
    """The colour, or the ink of dark figures if it could not be seen on a dark ground."""
    dark = rcParams["text.color"] == INK
    return INK if dark and max(to_rgb(colour)) < DARKEST else colour
