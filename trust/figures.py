"""Figures of scorecards: removal curves next to chance, and where a map's sign is certain."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.output.canvas import Entry
from cnnviz.core.output.drawing import label_axes
from cnnviz.core.output.judged import Scorecard
from cnnviz.core.output.layout import Cell, board, in_rows, picture, plot
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    Scale,
    hatch_pixels,
    input_cell,
    paint_map,
    scales,
)
from cnnviz.core.output.style import BLUE, RED, ink
from cnnviz.trust.removal import Curve, Order

COLOURS = {Order.MOST: RED, Order.LEAST: BLUE}
RANDOM = "#888888"
UNCERTAIN = Entry("sign flips with another mask size or fill", "#333333", "////")
FILLS = {"mean": ("the mean", "deletion"), "blur": ("a blur", "insertion")}
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Shown:
    """A judged map (H, W) and its title."""

    name: str
    map_HW: Tensor
    card: Scorecard

    @property
    def verdict(self) -> str:
        """The text under the map."""
        return f"Verdict: {self.card.line}"


def draw(
    maps: Sequence[Shown], look: Look, unit: str, beneath: Pixels, has_classes: bool
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
        cells = [_certain(shown, cell) for shown, cell in _maps(varied, look, unit, beneath)]
        figures["certainty.png"] = _grid(varied, look, cells, beneath, [UNCERTAIN])
    return figures


def draw_maps(maps: Sequence[Shown], look: Look, unit: str, beneath: Pixels) -> Figure:
    """Draws the image and each map over it, its verdict underneath; arguments as for `draw`."""
    cells = [
        picture(cell.paint, _size(shown), shown.name, shown.verdict, cell.bar)
        for shown, cell in _maps(maps, look, unit, beneath)
        if cell.paint is not None
    ]
    return _grid(maps, look, cells, beneath)


def _size(shown: Shown) -> tuple[int, int]:
    return int(shown.map_HW.shape[0]), int(shown.map_HW.shape[1])


def _grid(
    maps: Sequence[Shown],
    look: Look,
    cells: Sequence[Cell],
    beneath: Pixels,
    legend: Sequence[Entry] = (),
) -> Figure:
    first = input_cell(beneath, _size(maps[0]))
    return board(in_rows([first, *cells], look.columns), legend=legend)


def _maps(
    maps: Sequence[Shown], look: Look, unit: str, beneath: Pixels
) -> list[tuple[Shown, Cell]]:
    """Each map over the image."""
    arrays = [shown.map_HW.numpy() for shown in maps]
    found = []
    for shown, array_HW, scale in zip(
        maps, arrays, scales(arrays, look, unit, one_sided=True), strict=True
    ):

        def paint(
            axes: Axes, array_HW: NDArray[np.float32] = array_HW, scale: Scale = scale
        ) -> None:
            paint_map(axes, array_HW, scale, look.display, beneath)

        found.append((shown, picture(paint, _size(shown), shown.name, "", scale.bar_over)))
    return found


def _certain(shown: Shown, cell: Cell) -> Cell:
    """The map, hatched where a variant has another sign."""
    certain_HW, beneath = shown.card.certain_HW, cell.paint
    assert certain_HW is not None and beneath is not None  # noqa: S101, PT018 (only those)
    share = 100 * float(certain_HW.double().mean())

    def paint(axes: Axes) -> None:
        beneath(axes)
        hatch_pixels(axes, ~certain_HW.numpy(), UNCERTAIN.colour, UNCERTAIN.hatch, wash=0.35)

    title = f"{shown.name}\nsign is stable on {share:.0f} % of the image"
    return picture(paint, _size(shown), title, "", cell.bar)


def _draw_curves(maps: Sequence[Shown], reading: str) -> Figure:
    """A row for each map: removal by either fill, and its gain among those of random maps."""
    fills = list(dict.fromkeys(curve.fill for curve in maps[0].card.curves))
    rows = []
    for shown in maps:
        row, head = [], shown.name.partition("\n")[0]
        for fill in fills:
            curves = [curve for curve in shown.card.curves if curve.fill == fill]
            name, area = FILLS[fill]
            areas = ", ".join(f"{c.order} {c.area:.2f}" for c in curves)
            row.append(
                plot(
                    lambda axes, curves=curves: _removal(axes, curves, reading),  # type: ignore[misc]
                    f"{head}\npixels replaced by {name}; area below the curve ({area}): {areas}",
                    width=230.0,
                )
            )
        row.append(
            plot(
                lambda axes, card=shown.card: _chance(axes, card),  # type: ignore[misc]
                f"Compared with random maps\n{shown.verdict}",
                width=230.0,
                left=8.0,
            )
        )
        rows.append(row)
    legend = [Entry(order.value, COLOURS[order], marker="-") for order in Order]
    legend += [
        Entry("gain of this map", ink(), marker="-"),
        Entry("gains of random maps (grey: 95 % range)", RANDOM, marker="o"),
    ]
    return board(rows, legend=legend)


def _removal(axes: Axes, curves: Sequence[Curve], reading: str) -> None:
    for curve in curves:
        shares = [100 * share for share in curve.shares]
        axes.plot(
            shares,
            curve.readings,
            color=COLOURS[curve.order],
            marker="o",
            markersize=3,
            clip_on=False,
        )
    axes.set_xlim(0, 100)
    label_axes(axes, "% of the pixels replaced", reading)


def _chance(axes: Axes, card: Scorecard) -> None:
    chance = card.against_chance
    axes.axvspan(*chance.interval, color=RANDOM, alpha=0.15, linewidth=0)
    heights = np.linspace(0.25, 0.75, len(chance.random_maps))
    axes.plot(chance.random_maps, heights, "o", color=RANDOM, markersize=4)
    axes.axvline(card.gain, color=ink(), linewidth=1.6)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    label_axes(axes, "relevance gain (log-odds)")
