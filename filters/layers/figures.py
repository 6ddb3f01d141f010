"""Figure of how values spread in all layers: one line of colours per layer, first layer on top.

Colours show how the values other than zero are distributed over magnitudes; bars show the shares of
zeros and of channels that never change.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnviz.core.output.canvas import Bar, Entry
from cnnviz.core.output.drawing import label_axes, name_rows, names_width
from cnnviz.core.output.layout import Cell, board, plot
from cnnviz.core.output.style import RED, SMALL
from cnnviz.filters.layers.results import Inventory, SpreadRecord

ROW_HEIGHT = 11.0  # points
ZEROS, DEAD = "#999999", RED


def draw_statistics(inventory: Inventory, model_name: str) -> Figure:
    """Draws magnitudes of activations and gradients, zeros and dead channels, by layer."""
    rows, data = inventory.measured, inventory.data
    assert data is not None  # noqa: S101 (the caller checks)
    names = [row.name for row in rows]
    images = f"{data.images} images" if data.images > 1 else "1 image"
    activations = [row.activations for row in rows]
    heading = f"Activations\n{model_name}, {images}"
    cells = [
        _magnitudes(activations, names, heading, "|activation|", names_width(names, SMALL - 2)),
        _shares([spread for spread in activations if spread is not None], names),
    ]
    if data.gradients:
        gradients, label = [row.gradients for row in rows], "|d loss / d activation| of one image"
        cells.append(_magnitudes(gradients, names, "Gradients of the loss", label))
    legend = [Entry("zeros", ZEROS), Entry("channels that never change", DEAD)]
    return board([cells], legend=legend)


def _height(names: Sequence[str]) -> float:
    return max(150.0, ROW_HEIGHT * len(names))


def _name(axes: Axes, names: Sequence[str], *, shown: bool) -> None:
    name_rows(axes, names if shown else [""] * len(names), SMALL - 2)


def _magnitudes(
    spreads: Sequence[SpreadRecord | None],
    names: Sequence[str],
    heading: str,
    label: str,
    left: float = 0.0,
) -> Cell:
    histograms = [spread.octaves for spread in spreads if spread and spread.octaves.counts]
    first = min((h.first_exponent for h in histograms), default=0)
    last = max((h.first_exponent + len(h.counts) for h in histograms), default=1)
    shares_LB = np.zeros((len(names), last - first))
    for row, spread in enumerate(spreads):
        if spread and spread.octaves.counts:
            start, counts = spread.octaves.first_exponent - first, np.array(spread.octaves.counts)
            shares_LB[row, start : start + len(counts)] = counts / counts.sum()
    ends, colours = (first * np.log10(2), last * np.log10(2)), colormaps["YlGnBu"]

    def paint(axes: Axes) -> None:
        axes.imshow(
            np.ma.masked_equal(shares_LB, 0),
            cmap=colours,
            vmin=0,
            aspect="auto",
            interpolation="nearest",
            extent=(*ends, len(names) - 0.5, -0.5),
        )
        _name(axes, names, shown=left > 0)
        powers = np.arange(np.ceil(ends[0]), np.floor(ends[1]) + 1)
        powers = powers[:: max(1, len(powers) // 5)]
        label_axes(axes, label)
        axes.set_xticks(powers, [f"$10^{{{int(power)}}}$" for power in powers])
        axes.tick_params(axis="y", labelsize=SMALL - 2)

    shades = colours(np.linspace(0, 1, 256))[:, :3]
    bar = Bar(shades, 0.0, float(shares_LB.max()), "share of the values other than zero")
    height = _height(names)
    return plot(paint, heading, width=250.0, height=height, left=left, bar=bar)


def _shares(spreads: Sequence[SpreadRecord], names: Sequence[str]) -> Cell:
    places = np.arange(len(spreads))
    zeros = [spread.zeros for spread in spreads]
    dead = [len(spread.dead_channels or ()) / max(1, spread.channels or 1) for spread in spreads]

    def paint(axes: Axes) -> None:
        axes.barh(places - 0.2, zeros, height=0.4, color=ZEROS)
        axes.barh(places + 0.2, dead, height=0.4, color=DEAD)
        _name(axes, names, shown=False)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        label_axes(axes)

    return plot(paint, "Sparsity\nby layer", width=130.0, height=_height(names), left=4.0)
