"""Figures are made, written and listed, but not rendered: it takes longer than most analyses."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnnviz.core.choices import typeset
from cnnviz.core.output import run_folder

_RENDER = run_folder.pixels_of


def skip_rendering() -> None:
    """PNG files of figures hold one pixel, from now on."""
    run_folder.pixels_of = _one_pixel


def _one_pixel(figure: Figure) -> np.ndarray:
    return np.zeros((1, 1, 3), np.uint8)


def misplaced(figure: Figure) -> list[str]:
    """Texts that leave the figure, that cover each other, or that have a hyphen for a minus."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts, undrawn = figure.findobj(Text), _undrawn(figure)
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts
        if text.get_text().strip() and text.get_visible() and id(text) not in undrawn
    ]
    width, height = figure.bbox.width, figure.bbox.height
    found = [
        f"outside: {text!r}"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    found += [f"hyphen: {text!r}" for text, _ in boxes if typeset(text) != text]
    for place, (text, box) in enumerate(boxes):
        for other, there in boxes[:place]:
            across = min(box.x1, there.x1) - max(box.x0, there.x0)
            down = min(box.y1, there.y1) - max(box.y0, there.y0)
            if across > 1.5 and down > 0.25 * min(box.height, there.height):
                found.append(f"{text!r} covers {other!r}")
    return found


def _undrawn(figure: Figure) -> set[int]:
    """Ids of labels that are not drawn: those of ticks beyond the ends, and of hidden axes."""
    undrawn = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            drawn = axis._update_ticks() if axes.axison and axes.get_visible() else []
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if tick not in drawn:
                    undrawn |= {id(tick.label1), id(tick.label2)}
            if not axes.axison:
                undrawn |= {id(axis.label), id(axis.offsetText)}
    return undrawn


@contextmanager
def rendered() -> Iterator[None]:
    """Renders figures while the block runs; tests have the marker `pictures` for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "pixels_of", _RENDER)
        yield
