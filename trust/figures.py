"""Figures of scorecards: removal curves next to chance, and where a map's sign is certain."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.output.drawing import bare, title, under
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_map, grid_of_axes, hatch_pixels, legend, panels
from cnnviz.core.output.style import BLUE, FONT_SIZE, RED, ink
from cnnviz.core.output.summary import Scorecard
from cnnviz.trust.removal import Curve, Order

COLOURS = {Order.MOST: RED, Order.LEAST: BLUE}
RANDOM = "#888888"
UNCERTAIN = (("another size or fill has the opposite sign", "#333333", "////"),)
CELL = (3.6, 3.1)  # inches
LEGEND_ROOM = 0.22  # above the curves, of their height
FILLS = {"mean": "the mean (area red: deletion)", "blur": "a blur (area blue: insertion)"}


@dataclass(frozen=True, eq=False)
class Shown:
    """A judged map (H, W) and its title."""

    name: str
    map_HW: Tensor
    card: Scorecard


def draw(
    maps: Sequence[Shown], look: Look, unit: str, beneath: NDArray[np.uint8], has_classes: bool
) -> dict[str, Figure]:
    """Draws `curves.png` and, where sizes and fills were varied, `certainty.png`.

    Args:
        maps: of one image.
        look: how maps are drawn.
        unit: of the maps' values.
        beneath: the image, uint8 (h, w, 3).
        has_classes: whether the curves are of probabilities, or of a regression's values.
    """
    figures = {"curves.png": _draw_curves(maps, "probability" if has_classes else "value")}
    varied = [shown for shown in maps if shown.card.certain_HW is not None]
    if varied:
        figures["certainty.png"] = _draw_certainty(varied, look, unit, beneath)
    return figures


def _draw_curves(maps: Sequence[Shown], reading: str) -> Figure:
    """A row for each map: removal by either fill, and its gain among those of random maps."""
    fills = list(dict.fromkeys(curve.fill for curve in maps[0].card.curves))
    columns = len(fills) + 1
    figure, axes = grid_of_axes(len(maps) * columns, CELL, columns=columns)
    for row, shown in enumerate(maps):
        *cells, last = axes[row * columns : (row + 1) * columns]
        for cell, fill in zip(cells, fills, strict=True):
            _draw_removal(cell, [c for c in shown.card.curves if c.fill == fill], reading)
            title(cell, f"{shown.name}\nreplaced by {FILLS[fill]}")
        _draw_chance(last, shown.card)
        title(last, textwrap.fill(shown.card.line, 48))
    return figure


def _draw_removal(axes: Axes, curves: Sequence[Curve], reading: str) -> None:
    for curve in curves:
        axes.plot(
            [100 * share for share in curve.shares],
            curve.readings,
            color=COLOURS[curve.order],
            marker="o",
            markersize=3,
            label=f"{curve.order} ({curve.area:.2f})",
        )
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the pixels replaced", fontsize=FONT_SIZE - 1)
    axes.set_ylabel(reading, fontsize=FONT_SIZE - 1)
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.set_ylim(low, high + LEGEND_ROOM * (high - low))
    axes.set_yticks(ticks)
    axes.legend(fontsize=FONT_SIZE - 2, frameon=False, loc="upper right")
    _plain(axes)


def _draw_chance(axes: Axes, card: Scorecard) -> None:
    chance = card.against_chance
    axes.axvspan(*chance.interval, color=RANDOM, alpha=0.15, linewidth=0)
    heights = np.linspace(0.25, 0.75, len(chance.random_maps))
    axes.plot(chance.random_maps, heights, "o", color=RANDOM, markersize=4, label="random maps")
    axes.axvline(chance.gain, color=ink(), linewidth=1.6, label="this map")
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("relevance gain by the mean (grey: 95 % of chance)", fontsize=FONT_SIZE - 1)
    axes.legend(fontsize=FONT_SIZE - 2, frameon=False, loc="upper left")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.spines[["top", "right"]].set_visible(False)


def _maps_figure(maps: Sequence[Shown], look: Look) -> tuple[Figure, Sequence[Axes]]:
    height, width = maps[0].map_HW.shape
    return panels(len(maps), (height, width), columns=look.columns)


def draw_maps(maps: Sequence[Shown], look: Look, unit: str, beneath: NDArray[np.uint8]) -> Figure:
    """Draws each map over the image, its verdict underneath; arguments as for `draw`."""
    figure, axes = _maps_figure(maps, look)
    for cell, shown in zip(axes, maps, strict=True):
        values_HW = shown.map_HW.numpy()
        draw_map(cell, values_HW, look, unit, over=beneath, one_sided=True, limit=look.scale)
        title(cell, shown.name)
        bare(cell)
        under(cell, shown.card.line)
    return figure


def _draw_certainty(
    maps: Sequence[Shown], look: Look, unit: str, beneath: NDArray[np.uint8]
) -> Figure:
    """Each map, hatched where a variant has another sign."""
    figure, axes = _maps_figure(maps, look)
    for cell, shown in zip(axes, maps, strict=True):
        certain_HW = shown.card.certain_HW
        assert certain_HW is not None  # noqa: S101 (only those are drawn)
        share = float(certain_HW.double().mean())
        draw_map(cell, shown.map_HW.numpy(), look, unit, over=beneath, limit=look.scale)
        _text, colour, hatch = UNCERTAIN[0]
        hatch_pixels(cell, ~certain_HW.numpy(), colour, hatch)
        title(cell, f"{shown.name}\nsign certain on {100 * share:.0f} % of the image")
        bare(cell)
    legend(figure, UNCERTAIN)
    return figure
