"""A map of images in the plane; pointing at an image shows it and its nearest neighbours.

Shapes: N images, k neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.output.sheets import tiles
from cnnviz.report.look import LINES, WIDGETS, empty_figure, models, sheet, text_of
from cnnviz.report.page import picture_address, script

SIDE = 620
TILE = 32
"""Side of a small picture in pixels; one large picture contains them all."""
MISSING = 200
"""Grey of missing pictures and of margins."""
MOST = 10_000
"""Maximum number of images on a page."""
PLAIN, LEGEND = ("#8c8c8c", "o"), 60
"""Colour and marker of points without a group; entries of the legend."""
MARKERS = {
    "o": ("circle", "●"),
    "s": ("square", "■"),
    "^": ("triangle", "▲"),
    "D": ("diamond", "◆"),
    "v": ("inverted_triangle", "▼"),
    "P": ("plus", "✚"),
}
"""matplotlib's letters: the name of the marker in Bokeh, and a character like it."""


@dataclass(frozen=True, eq=False)
class Scattered:
    """Images and their positions.

    Attributes:
        names: of the images.
        maps: positions (N, 2) by the map's name.
        labels: true classes; empty where unknown.
        predicted: predicted classes.
        near_Nk: rows of the nearest images in the features.
        looks: colour (#rrggbb) and marker (matplotlib's letter) of each class; others are grey.
        pictures: tiles, uint8 (TILE, TILE, 3); None where an image cannot be read.
    """

    names: Sequence[str]
    maps: Mapping[str, NDArray[np.float64]]
    labels: Sequence[str]
    predicted: Sequence[str]
    near_Nk: NDArray[np.int64]
    looks: Mapping[str, tuple[str, str]]
    pictures: Sequence[NDArray[np.uint8] | None]


def tile(image: Image.Image | None) -> NDArray[np.uint8] | None:
    """A small square with an image in its middle; None for None."""
    if image is None:
        return None
    image.thumbnail((TILE, TILE))
    square = Image.new("RGB", (TILE, TILE), (MISSING,) * 3)
    square.paste(image, ((TILE - image.width) // 2, (TILE - image.height) // 2))
    return np.asarray(square)


def atlas(pictures: Sequence[NDArray[np.uint8] | None]) -> tuple[str, int]:
    """The address of one picture that contains all tiles, and its number of columns."""
    columns = max(1, int(np.ceil(np.sqrt(len(pictures)))))
    blank = np.full((TILE, TILE, 3), MISSING, np.uint8)
    stack = np.stack([blank if picture is None else picture for picture in pictures])
    pixels = tiles(stack, columns, gap=0, background=MISSING)
    return picture_address(pixels, max(pixels.shape)), columns


def bytes_of(scattered: Scattered, address: str) -> int:
    """The approximate size of a map on the page."""
    text = sum(map(len, (*scattered.names, *scattered.labels, *scattered.predicted)))
    return (
        len(address)
        + 2 * text
        + (50 + 12 * len(scattered.maps)) * len(scattered.names)
        + 8 * scattered.near_Nk.size
    )


def scatter(scattered: Scattered, address: str, columns: int) -> Any:
    """Bokeh's layout of the map with its controls.

    Args:
        scattered: the images and their positions.
        address: of the picture that contains all tiles; empty for none.
        columns: of that picture.
    """
    parts = models()
    colourings = _colourings(scattered)
    first, shown = next(iter(colourings)), next(iter(scattered.maps))
    maps = {
        name: {axis: places[:, column].astype(np.float32) for column, axis in enumerate("xy")}
        for name, places in scattered.maps.items()
    }
    columns_of = {name: colourings[first][f"{name}s"] for name in ("colour", "marker")}
    source = parts.ColumnDataSource(maps[shown] | columns_of)
    figure = empty_figure(
        SIDE,
        SIDE,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        output_backend="webgl",
        match_aspect=True,
        active_drag=None,  # so that a finger scrolls the page
    )
    figure.axis.visible = False
    figure.sizing_mode, figure.aspect_ratio, figure.max_width = "scale_width", 1, SIDE
    figure.styles = {"flex": "1 1 300px"}
    points = figure.scatter(
        "x",
        "y",
        source=source,
        size=7 if len(scattered.names) < 2000 else 4,
        fill_color="colour",
        marker="marker",
        line_color=LINES,  # so that the darkest is seen on a dark page
        line_width=0.3,
        fill_alpha=0.9,
    )
    near = parts.ColumnDataSource({"x": [], "y": []})
    figure.scatter("x", "y", source=near, size=11, fill_alpha=0, line_color=LINES, line_width=2)
    said, legend = text_of(), text_of()
    by = parts.Select(
        title="colour by",
        value=first,
        options=list(colourings),
        width=160,
        stylesheets=[sheet(WIDGETS)],
    )
    which = parts.Select(
        title="map", value=shown, options=list(maps), width=160, stylesheets=[sheet(WIDGETS)]
    )
    look = parts.CustomJS(
        args={
            "source": source,
            "near": near,
            "said": said,
            "legend": legend,
            "by": by,
            "which": which,
            "maps": maps,
            "colourings": colourings,
            "names": list(scattered.names),
            "labels": list(scattered.labels),
            "predicted": list(scattered.predicted),
            "nearest": scattered.near_Nk.astype(np.int32).ravel(),
            "k": int(scattered.near_Nk.shape[1]),
            "atlas": address,
            "columns": columns,
            "tile": TILE,
        },
        code=script("scatter.js"),
    )
    figure.add_tools(parts.HoverTool(renderers=[points], tooltips=None, callback=look))
    for control in (by, which):
        control.js_on_change("value", look)
    figure.js_on_change("inner_width", look)
    side = parts.Column(
        parts.Row(by, which, styles={"flex-wrap": "wrap"}),
        legend,
        said,
        sizing_mode="stretch_width",
        styles={"flex": "1 1 300px", "max-width": "380px"},
    )
    return parts.Row(figure, side, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")


def _colourings(scattered: Scattered) -> Mapping[str, dict[str, Any]]:
    """The colours of the points, and their legend, for each choice of the menu."""
    colourings: dict[str, dict[str, Any]] = {}
    for name, values in (("label", scattered.labels), ("prediction", scattered.predicted)):
        if any(values):
            colourings[name] = _coloured(values, scattered.looks)
    if any(scattered.labels):
        pairs = zip(scattered.labels, scattered.predicted, strict=True)
        kinds = ["no label" if not t else "right" if t == p else "wrong" for t, p in pairs]
        hue = {"right": "#9aa4af", "wrong": "#d1242f", "no label": "#d8dee4"}
        colourings["correctness"] = _coloured(kinds, {kind: (hue[kind], "o") for kind in hue})
    return colourings or {"nothing": _coloured([""] * len(scattered.names), {})}


def _coloured(values: Sequence[str], looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The colour and marker of each point, and the legend: texts, colours and characters."""
    present = set(values)
    legend = [
        [kind, colour, MARKERS[marker][1]]
        for kind, (colour, marker) in looks.items()
        if kind in present
    ]
    more = [[f"and {len(legend) - LEGEND} more; they repeat", PLAIN[0], ""]] * (
        len(legend) > LEGEND
    )
    others = [["other", PLAIN[0], MARKERS[PLAIN[1]][1]]] * bool(legend and present - looks.keys())
    shown = [looks.get(value, PLAIN) for value in values]
    return {
        "colours": [colour for colour, _ in shown],
        "markers": [MARKERS[marker][0] for _, marker in shown],
        "legend": [*legend[:LEGEND], *more, *others],
    }
