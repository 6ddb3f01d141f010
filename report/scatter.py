"""A map of images in the plane: pointed at, an image shows itself and what lies next to it.

Shapes: N images, k neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.output.sheets import tiles
from cnnviz.report.look import LINES, WIDGETS, empty_figure, models, sheet, text_of
from cnnviz.report.page import picture_address, script

SIDE = 760
TILE = 32
"""Pixels of a small picture's side in the one picture that holds them all."""
MISSING = 200
"""Grey of a picture that cannot be read."""
MOST = 10_000
"""Images on a page."""
ALL = (
    *("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5"),
    *("#9c6b4e", "#9498a0", "#1f6f78", "#b3331d", "#7a8b00", "#5b2a86", "#00a6d6", "#c2185b"),
    *("#b8860b", "#2e8b57", "#8b4513", "#4b5563"),
)


@dataclass(frozen=True, eq=False)
class Scattered:
    """Images and their places.

    Attributes:
        names: of the images.
        maps: where they lie (N, 2), by the map's name.
        labels: true classes; empty where they are not known.
        predicted: predicted classes.
        near_Nk: rows of the nearest images in the features.
        pictures: small ones, uint8 (TILE, TILE, 3), by row; None where one cannot be read.
    """

    names: Sequence[str]
    maps: Mapping[str, NDArray[np.float64]]
    labels: Sequence[str]
    predicted: Sequence[str]
    near_Nk: NDArray[np.int64]
    pictures: Sequence[NDArray[np.uint8] | None]


def atlas(pictures: Sequence[NDArray[np.uint8] | None]) -> tuple[str, int]:
    """One picture that holds all small ones, and how many are in a row of it."""
    columns = max(1, int(np.ceil(np.sqrt(len(pictures)))))
    blank = np.full((TILE, TILE, 3), MISSING, np.uint8)
    stack = np.stack([blank if picture is None else picture for picture in pictures])
    pixels = tiles(stack, columns, gap=0, background=MISSING)
    return picture_address(pixels, max(pixels.shape)), columns


def bytes_of(scattered: Scattered, address: str) -> int:
    """How much of a page it takes, about."""
    text = sum(map(len, (*scattered.names, *scattered.labels, *scattered.predicted)))
    return (
        len(address)
        + 2 * text
        + (50 + 12 * len(scattered.maps)) * len(scattered.names)
        + 8 * scattered.near_Nk.size
    )


def scatter(scattered: Scattered, address: str, columns: int) -> Any:
    """The map with its controls.

    Args:
        scattered: what is known.
        address: of the picture that holds the small ones; empty for none.
        columns: of that.

    Returns:
        A layout of Bokeh's.
    """
    parts = models()
    colourings = _colourings(scattered)
    first, shown = next(iter(colourings)), next(iter(scattered.maps))
    maps = {
        name: {axis: places[:, column].astype(np.float32) for column, axis in enumerate("xy")}
        for name, places in scattered.maps.items()
    }
    source = parts.ColumnDataSource(maps[shown] | {"colour": colourings[first]["colours"]})
    figure = empty_figure(
        SIDE,
        SIDE,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        output_backend="webgl",
        match_aspect=True,
    )
    figure.axis.visible = False
    points = figure.scatter(
        "x",
        "y",
        source=source,
        size=7 if len(scattered.names) < 2000 else 4,
        fill_color="colour",
        line_color=None,
        fill_alpha=0.8,
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
    side = parts.Column(parts.Row(by, which), legend, said, width=380)
    return parts.Row(figure, side, styles={"flex-wrap": "wrap"})


def _colourings(scattered: Scattered) -> Mapping[str, dict[str, Any]]:
    """Colours of the points by what can be asked, and what they mean."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in (("label", scattered.labels), ("prediction", scattered.predicted)):
        if any(values):
            found[name] = _by_class(values)
    if any(scattered.labels):
        pairs = zip(scattered.labels, scattered.predicted, strict=True)
        said = ["no label" if not t else "right" if t == p else "wrong" for t, p in pairs]
        hue = {"right": "#9aa4af", "wrong": "#d1242f", "no label": "#d8dee4"}
        found["correctness"] = {
            "colours": [hue[value] for value in said],
            "legend": [[value, colour] for value, colour in hue.items() if value in said],
        }
    return found or {"nothing": {"colours": [ALL[0]] * len(scattered.names), "legend": []}}


def _by_class(values: Sequence[str]) -> dict[str, Any]:
    kinds = sorted(set(values) - {""})
    hue = {kind: ALL[number % len(ALL)] for number, kind in enumerate(kinds)} | {"": "#d8dee4"}
    legend = [[kind, hue[kind]] for kind in kinds[: 2 * len(ALL)]]
    if len(kinds) > len(legend):
        legend.append([f"and {len(kinds) - len(legend)} more; colours repeat", "#00000000"])
    elif len(kinds) > len(ALL):
        legend.append(["colours repeat", "#00000000"])
    return {"colours": [hue[value] for value in values], "legend": legend}
