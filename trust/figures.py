"""The pictures of scorecards: removal curves beside chance, and where a map's sign is certain."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.output.drawing import bare, title, under
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import draw_map, grid_of_axes, hatch_pixels, legend, panels
from cnnviz.core.output.style import FONT_SIZE, ink
from cnnviz.trust.removal import Curve, Order
from cnnviz.trust.scorecard import Scorecard

COLOURS = {Order.MOST: "#D55E00", Order.LEAST: "#0072B2"}
RANDOM = "#888888"
UNCERTAIN = (("another size or fill tells the opposite", "#333333", "////"),)
CELL = (3.6, 3.1)  # inches
LEGEND_ROOM = 0.22  # above the curves, of their height


def draw_curves(cards: Sequence[tuple[str, Scorecard]], reading: str) -> Figure:
    """A row for each map: removal by either fill, and its gain among those of random maps.

    Args:
        cards: what each is called, and the card.
        reading: what the curves show.
    """
    fills = list(dict.fromkeys(curve.fill for curve in cards[0][1].curves))
    figure, axes = grid_of_axes(len(cards) * (len(fills) + 1), CELL, columns=len(fills) + 1)
    for row, (name, card) in enumerate(cards):
        cells = axes[row * (len(fills) + 1) : (row + 1) * (len(fills) + 1)]
        for cell, fill in zip(cells, fills, strict=False):
            _draw_removal(cell, [c for c in card.curves if c.fill == fill], reading)
            title(cell, f"{name}\nreplaced by {_FILLS[fill]}")
        _draw_chance(cells[-1], card)
        title(cells[-1], textwrap.fill(card.line, 48))
    return figure


_FILLS = {"mean": "the mean (area red: deletion)", "blur": "a blur (area blue: insertion)"}


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
    low, high = card.chance
    axes.axvspan(low, high, color=RANDOM, alpha=0.15, linewidth=0)
    heights = np.linspace(0.25, 0.75, len(card.random_gains))
    axes.plot(card.random_gains, heights, "o", color=RANDOM, markersize=4, label="random maps")
    axes.axvline(card.gain_as_random, color=ink(), linewidth=1.6, label="this map")
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("relevance gain by the mean (grey: 95 % of chance)", fontsize=FONT_SIZE - 1)
    axes.legend(fontsize=FONT_SIZE - 2, frameon=False, loc="upper left")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_maps(
    maps: Sequence[tuple[str, Tensor, Scorecard]],
    look: Look,
    unit: str,
    beneath: NDArray[np.uint8],
) -> Figure:
    """Each map over the picture, its verdict underneath; arguments as for `draw_certainty`."""
    size = (int(maps[0][1].shape[0]), int(maps[0][1].shape[1]))
    figure, axes = panels(len(maps), size, columns=look.columns)
    for cell, (name, map_HW, card) in zip(axes, maps, strict=True):
        values_HW, limit = map_HW.numpy(), look.scale
        draw_map(cell, values_HW, look, unit, over=beneath, one_sided=True, limit=limit)
        title(cell, name)
        bare(cell)
        under(cell, card.line)
    return figure


def draw_certainty(
    maps: Sequence[tuple[str, Tensor, Scorecard]],
    look: Look,
    unit: str,
    beneath: NDArray[np.uint8],
) -> Figure | None:
    """Each map, hatched where a variant has another sign; None where nothing was varied.

    Args:
        maps: what each is called, the map (H, W) and its card.
        look: how maps are drawn.
        unit: what their values are.
        beneath: the picture, uint8 (h, w, 3).
    """
    shown = [entry for entry in maps if entry[2].certain_HW is not None]
    if not shown:
        return None
    size = (int(shown[0][1].shape[0]), int(shown[0][1].shape[1]))
    figure, axes = panels(len(shown), size, columns=look.columns)
    for cell, (name, map_HW, card) in zip(axes, shown, strict=True):
        certain_HW = card.certain_HW
        assert certain_HW is not None  # noqa: S101 (only those are shown)
        draw_map(cell, map_HW.numpy(), look, unit, over=beneath, limit=look.scale)
        _text, colour, hatch = UNCERTAIN[0]
        hatch_pixels(cell, ~certain_HW.numpy(), colour, hatch)
        share = float(certain_HW.double().mean())
        title(cell, f"{name}\nsign holds on {share:.0%} of the picture")
        bare(cell)
    legend(figure, UNCERTAIN)
    return figure
