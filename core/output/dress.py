"""What all figures have in common when they are written: a line that says of what, and the ground.

Figures are drawn in black on white. Dark ones are the same figures with ink and ground exchanged;
pictures and everything that is drawn over them stay as they are.
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cnnviz.core.output.drawing import FONT_SIZE, escape

INK, GROUND, FAINT = "#e6edf3", "#0d1117", "#7d8590"
STRIP = 0.2
"""Inches that the caption takes."""
DARKEST = 0.25
"""Lightness below which a colour is ink."""


def sign(figure: Figure, caption: str) -> Bbox:
    """Writes a small line, literally, on a strip below the figure.

    Returns:
        What is to be written of it, in inches: itself and the strip.
    """
    width, height = figure.get_size_inches()
    share = STRIP / height
    strip = Rectangle((0, -share), 1, 1.02 * share, transform=figure.transFigure, clip_on=False)
    strip.set(facecolor=figure.get_facecolor(), linewidth=0)
    strip.set_in_layout(False)
    figure.add_artist(strip)
    text = escape(caption, 160)
    line = figure.text(0.995, -0.9 * share, text, fontsize=FONT_SIZE - 3, ha="right", va="bottom")
    line.set(color=FAINT, in_layout=False)
    return Bbox([[0.0, -STRIP], [width, height]])


def darken(figure: Figure) -> None:
    """Exchanges ink and ground."""
    figure.set_facecolor(GROUND)
    for axes in figure.axes:
        if not axes.images:
            axes.set_facecolor(GROUND)
        axes.tick_params(which="both", color=INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
    for artist in _apart_from_pictures(figure):
        if isinstance(artist, Text):
            artist.set_color(_exchanged(artist.get_color()))
        elif isinstance(artist, Line2D):
            artist.set_color(_exchanged(artist.get_color()))
            artist.set_markerfacecolor(_exchanged(artist.get_markerfacecolor()))
            artist.set_markeredgecolor(_exchanged(artist.get_markeredgecolor()))
        elif isinstance(artist, Collection):
            artist.set_edgecolor(_exchanged(artist.get_edgecolor()))
            artist.set_facecolor(_exchanged(artist.get_facecolor()))
        elif isinstance(artist, Patch):
            artist.set_edgecolor(_exchanged(artist.get_edgecolor()))
        elif isinstance(artist, Legend):
            artist.get_frame().set_facecolor(GROUND)


def _apart_from_pictures(figure: Figure) -> Iterator[Artist]:
    """All artists but those that lie over a picture."""
    over = {
        id(artist)
        for axes in figure.axes
        if axes.images
        for artist in (*axes.texts, *axes.lines, *axes.collections, *axes.patches)
    }
    for artist in figure.findobj():
        if id(artist) not in over and not isinstance(artist, Axes):
            yield artist


def _exchanged(colour: Any) -> Any:
    """One colour or several, those near black in the ink of dark figures; others as they are."""
    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    found = to_rgba_array(colour)
    dark = (found[:, :3].max(1, initial=0) < DARKEST) & (found[:, 3] > 0)
    if not dark.any():
        return colour
    found[dark, :3] = to_rgb(INK)
    return found if len(found) > 1 else found[0]
