"""Regions of an image that can be switched on and off, and arcs between pairs of its cells.

A click on a name in the legend shows or hides it, and pointing at an arc shows its numbers; both
are Bokeh's, without a script of ours. Shapes: H W of the working image, h w of the picture shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.report.look import LINES, empty_figure, models
from cnnviz.report.page import picture_address

SIDE, ENTRY = 340, 26
"""Longer side of the picture, which fits a telephone, and a name of the legend, in pixels."""
BEND, POINTS = 0.2, 24
"""How far an arc bends, of its length, and points along it."""


@dataclass(frozen=True)
class Layer:
    """Cells of one colour, (y0, x0, y1, x1) each, which are switched together."""

    name: str
    colour: str
    boxes: Sequence[Sequence[int]]
    shown: bool = True


@dataclass(frozen=True)
class Arc:
    """A pair of cells: its ends (y, x), its kind, which is switched, and its text."""

    ends: tuple[tuple[float, float], tuple[float, float]]
    kind: str
    colour: str
    width: float
    text: str


@dataclass(frozen=True, eq=False)
class Regions:
    """An image of H×W, its picture (h, w, 3), the layers and the arcs over it."""

    picture: NDArray[np.uint8]
    size: tuple[int, int]
    layers: Sequence[Layer]
    arcs: Sequence[Arc]


def bytes_of(image: Regions) -> int:
    """The approximate size on the page."""
    cells = sum(len(layer.boxes) for layer in image.layers)
    return int(image.picture.size / 9 + 45 * cells + 22 * POINTS * len(image.arcs) + 30_000)


def regions(image: Regions) -> Any:
    """Bokeh's figure of the image."""
    parts, arcs = models(), image.arcs
    kinds = list(dict.fromkeys(arc.kind for arc in arcs))
    height, width = image.size
    scale = SIDE / max(image.size)
    figure = empty_figure(
        *(SIDE + 10, round(height * scale) + ENTRY * (len(image.layers) + len(kinds)) + 20),
        x_range=parts.Range1d(0, width),
        y_range=parts.Range1d(height, 0),
        tools="",
        toolbar_location=None,
    )
    figure.frame_width, figure.frame_height = round(width * scale), round(height * scale)
    figure.axis.visible = False
    address = picture_address(image.picture, 2 * SIDE)
    figure.image_url(url=[address], x=0, y=0, w=width, h=height)
    items = []
    for layer in image.layers:
        tops, lefts, bottoms, rights = zip(*layer.boxes, strict=True)
        drawn = figure.quad(
            *(list(lefts), list(rights), list(tops), list(bottoms)),
            fill_color=layer.colour,
            fill_alpha=0.45,
            line_color=layer.colour,
            line_alpha=0.8,
            visible=layer.shown,
        )
        items.append(parts.LegendItem(label=layer.name, renderers=[drawn]))
    for kind in kinds:
        drawn = _arcs(figure, [arc for arc in arcs if arc.kind == kind])
        items.append(parts.LegendItem(label=kind, renderers=[drawn]))
        figure.add_tools(parts.HoverTool(renderers=[drawn], tooltips="@text", line_policy="interp"))
    legend = parts.Legend(
        items=items,
        click_policy="hide",
        location="left",
        inactive_fill_color=LINES,
        inactive_fill_alpha=0.3,
        label_text_color=LINES,
        background_fill_alpha=0,
        border_line_color=None,
    )
    figure.add_layout(legend, "below")
    return figure


def _arcs(figure: Any, arcs: Sequence[Arc]) -> Any:
    """Lines that bend to one side."""
    along = np.linspace(0, 1, POINTS)[:, None]
    lines = []
    for arc in arcs:
        start, end = np.array(arc.ends)
        across = np.array([end[1] - start[1], start[0] - end[0]]) * BEND
        lines.append(start + along * (end - start) + 4 * along * (1 - along) * across / 2)
    data = {
        "xs": [line[:, 1].tolist() for line in lines],
        "ys": [line[:, 0].tolist() for line in lines],
        "width": [arc.width for arc in arcs],
        "text": [arc.text for arc in arcs],
    }
    source = models().ColumnDataSource(data)
    return figure.multi_line(
        *("xs", "ys"),
        source=source,
        line_width="width",
        line_color=arcs[0].colour,
        hover_line_color="black",
    )
