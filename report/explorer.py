"""An occlusion map to explore: pointing at a position shows the scores with it occluded.

The page contains the scores of every position, so classes, scores and colours can be chosen without
the network, by the same arithmetic as `occlude`'s (`explorer.js`).
Shapes: P positions of all masks one after the other, K classes, H W rows and columns of the working
image, h w of the picture shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from scipy.special import logsumexp

from cnnviz.report.look import LINES, WIDGETS, empty_figure, models, sheet, text_of
from cnnviz.report.page import picture_address, script

SIDE = 400
"""Longer side of the picture on the page in pixels."""
FEWEST = 8
"""Minimum number of classes if not all fit."""
OPACITY = 0.75
"""Power of the value, relative to the largest, that gives a pixel's opacity."""
PALETTES = {"red and blue": "RdBu_r", "orange and purple": "PuOr_r"}
"""Names of matplotlib's colour maps."""


@dataclass(frozen=True, eq=False)
class Explored:
    """An image and its scores with each position occluded.

    Attributes:
        picture: shown below the map, uint8 (h, w, 3).
        size: H and W.
        boxes_P4: (y0, x0, y1, x1) of each position.
        masks: name, rows and columns of the grid of each mask.
        labels: class names.
        logits_PK: at each position, float64; values of a regression.
        base_logits_K: of the original image.
        head: `softmax`, `sigmoid` or `none`.
        given: whether the network outputs probabilities; its logits are log-odds.
        score: shown first: `log-odds`, `logit`, `probability` or `loss`.
        density: whether a pixel has the sum of the masks over it, divided by their largest number,
            instead of their mean.
        targets: classes to explain, the first one shown first.
        log_odds: makes them of logits; values of a regression stay unchanged.
    """

    picture: NDArray[np.uint8]
    size: tuple[int, int]
    boxes_P4: NDArray[np.int64]
    masks: Sequence[tuple[str, int, int]]
    labels: Sequence[str]
    logits_PK: NDArray[np.float64]
    base_logits_K: NDArray[np.float64]
    head: str
    given: bool
    score: str
    density: bool
    targets: Sequence[int]
    log_odds: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def bytes_of(explored: Explored, classes: int) -> int:
    """The approximate size of an explorer on the page."""
    positions = len(explored.boxes_P4)
    return int(4 / 3 * positions * (2 * classes + 16) + 4 / 3 * explored.picture.size / 12 + 70_000)


def _chosen(explored: Explored, classes: int) -> NDArray[np.int64]:
    """The classes on the page: the targets, then by their largest log p at any position."""
    logits = np.vstack([explored.base_logits_K[None], explored.logits_PK])
    if explored.head == "softmax":
        logits = logits - logsumexp(logits, axis=1, keepdims=True)
    order = np.argsort(-logits.max(0), kind="stable").tolist()
    chosen = list(dict.fromkeys([*explored.targets, *order]))[:classes]
    return np.array(chosen, np.int64)


def explore(explored: Explored, classes: int | None = None) -> Any:
    """Bokeh's layout of the picture, its map, the label map and their controls.

    Args:
        explored: the image and its scores.
        classes: how many can be chosen; default all.
    """
    parts = models()
    chosen = _chosen(explored, len(explored.labels) if classes is None else classes)
    height, width = explored.size
    scale = SIDE / max(height, width)
    data = _data(explored, chosen)
    values = parts.ColumnDataSource({"image": [np.zeros((height, width), np.float32)]})
    winners = parts.ColumnDataSource({name: [] for name in ("l", "r", "b", "t", "colour")})
    outline = parts.ColumnDataSource({name: [] for name in ("l", "r", "b", "t")})
    mapper = parts.LinearColorMapper(palette=_palette(PALETTES["red and blue"]), low=-1, high=1)
    ranges = {
        "x_range": parts.Range1d(0, width),
        "y_range": parts.Range1d(0, height),
        "tools": "",
        "toolbar_location": None,
    }
    sides = round(width * scale), round(height * scale)
    left = _shrinking(sides[0] + 92, sides[1] + 34, ranges)
    right = _shrinking(sides[0] + 20, sides[1] + 34, ranges)
    address = picture_address(explored.picture, 2 * SIDE)
    for figure in (left, right):
        figure.axis.visible = False
        figure.image_url(url=[address], x=0, y=height, w=width, h=height)
    shown = left.image("image", x=0, y=0, dw=width, dh=height, source=values, color_mapper=mapper)
    places = {"left": "l", "right": "r", "bottom": "b", "top": "t"}
    cells = right.quad(**places, fill_color="colour", line_color=None, source=winners, alpha=0.55)
    for figure in (left, right):
        for colour, thick in (("white", 4), ("black", 2)):
            figure.quad(**places, source=outline, fill_alpha=0, line_color=colour, line_width=thick)
    left.add_layout(
        parts.ColorBar(
            color_mapper=mapper,
            major_label_text_color=LINES,
            background_fill_alpha=0,
            bar_line_color=LINES,
            width=12,
        ),
        "right",
    )
    controls = _controls(explored, chosen)
    said, names = text_of(), text_of()
    said.styles = {"flex": "1 1 200px", "max-width": "330px", "padding": "0 10px"}
    arguments = {
        **data,
        **controls,
        "values": values,
        "winners": winners,
        "outline": outline,
        "mapper": mapper,
        "shown": shown,
        "cells": cells,
        "said": said,
        "names": names,
        "palettes": {name: _palette(colours) for name, colours in PALETTES.items()},
    }
    draw = parts.CustomJS(args=arguments, code=script("explorer.js"))
    for control in controls.values():
        control.js_on_change("value", draw)
    for figure in (left, right):
        for event in ("mousemove", "tap"):
            figure.js_on_event(event, draw)
        figure.js_on_event("mouseleave", draw)
    left.js_on_change("inner_width", draw)  # which it gets when it is first laid out
    return parts.Column(
        parts.Row(*controls.values(), sizing_mode="scale_width", styles={"flex-wrap": "wrap"}),
        parts.Row(left, said, right, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width"),
        names,
        sizing_mode="stretch_width",
    )


def _shrinking(width: int, height: int, ranges: Mapping[str, Any]) -> Any:
    """Makes a figure that shrinks in proportion on narrow pages."""
    figure = empty_figure(width, height, **ranges)
    figure.sizing_mode = "scale_width"
    figure.aspect_ratio = width / height
    figure.max_width = width
    figure.styles = {"flex": f"1 1 {min(width, 300)}px"}
    return figure


def _controls(explored: Explored, chosen: NDArray[np.int64]) -> dict[str, Any]:
    parts = models()
    style = [sheet(WIDGETS)]
    options = [(str(place), explored.labels[k]) for place, k in enumerate(chosen.tolist())]
    scores = ["log-odds", "logit", "probability", "loss"]
    if explored.head == "none":
        scores = ["value"]
    elif explored.head == "sigmoid":
        scores = ["logit", "probability", "loss"]  # the logit is the log-odds
    first = explored.score if explored.score in scores else scores[0]
    masks = [(str(place), name) for place, (name, _, _) in enumerate(explored.masks)]
    return {
        "of": parts.Select(title="class", value="0", options=options, width=220, stylesheets=style),
        "score": parts.Select(
            title="score", value=first, options=scores, width=130, stylesheets=style
        ),
        "mask": parts.Select(title="mask", value="0", options=masks, width=90, stylesheets=style),
        "colours": parts.Select(
            title="colours",
            value="red and blue",
            options=list(PALETTES),
            width=150,
            stylesheets=style,
        ),
        "display": parts.Select(
            title="display",
            value="smooth",
            options=["smooth", "cells"],
            width=90,
            stylesheets=style,
        ),
        "opacity": parts.Slider(
            title="opacity of the map",
            start=0,
            end=1,
            step=0.05,
            value=1,
            width=180,
            stylesheets=style,
        ),
    }


def _data(explored: Explored, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """The data of the script: log-odds (values of a regression), in half precision their drops."""
    both = np.vstack([explored.base_logits_K[None], explored.logits_PK])
    sums = logsumexp(both, axis=1) if explored.head == "softmax" else np.zeros(len(both))
    kept = explored.log_odds(both)[:, chosen]
    limit = float(np.finfo(np.float16).max)
    ranking = both if explored.head != "none" else np.zeros_like(both)
    best = ranking.argmax(1)
    place = {k: row for row, k in enumerate(chosen.tolist())}
    labels = [explored.labels[k] for k in chosen.tolist()]
    beyond: dict[int, int] = {}  # classes that win somewhere and are not among the chosen
    for k in best.tolist():
        if k not in place and k not in beyond:
            beyond[k] = len(labels)
            labels.append(explored.labels[k])
    winner = [place.get(k, beyond.get(k, 0)) for k in best.tolist()]
    return {
        "boxes": explored.boxes_P4.astype(np.int32).ravel(),
        "grids": [[rows, columns] for _, rows, columns in explored.masks],
        "size": list(explored.size),
        "labels": labels,
        "classes": len(chosen),
        "halves": (kept[0] - kept).clip(-limit, limit).astype("<f2").view(np.uint16).ravel(),
        "base": kept[0].astype(np.float64),
        "sums": sums.astype(np.float64),
        "winner": np.array(winner, np.int32),
        "head": explored.head,
        "given": explored.given,
        "density": explored.density,
    }


def _palette(name: str) -> list[str]:
    """256 colours of a colour map, transparent where nothing changes."""
    colours = colormaps[name](np.linspace(0, 1, 256))
    colours[:, 3] = np.abs(np.linspace(-1, 1, 256)) ** OPACITY
    return [to_hex(colour, keep_alpha=True) for colour in colours]
