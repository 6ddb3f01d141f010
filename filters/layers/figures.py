"""Figure of how values spread in all layers: one line of colours per layer, first layer on top.

Colours show how the values other than zero are distributed over magnitudes; bars show the shares of
zeros and of channels that never change.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnviz.core.output.drawing import add_colorbar, escape, new_figure, title
from cnnviz.core.output.style import FONT_SIZE, RED
from cnnviz.filters.layers.results import Inventory, SpreadRecord

ROW_HEIGHT = 0.145  # inches
ZEROS, DEAD = "#999999", RED


def draw_statistics(inventory: Inventory, model_name: str) -> Figure:
    """Draws magnitudes of activations and gradients, zeros and dead channels, by layer."""
    rows, data = inventory.measured, inventory.data
    assert data is not None  # noqa: S101 (the caller checks)
    names = [escape(row.name) for row in rows]
    panels = 3 if data.gradients else 2
    figure = new_figure(4.6 * panels - 1.2, max(3.0, ROW_HEIGHT * len(names) + 1.3))
    widths = [3, 1.6, 3][:panels]
    cells = figure.subplots(1, panels, squeeze=False, sharey=True, width_ratios=widths)[0]
    images = f"{data.images} images" if data.images > 1 else "1 image"
    activations = [row.activations for row in rows]
    _draw_magnitudes(
        cells[0], activations, names, f"{model_name}, {images}: activations", "|activation|"
    )
    _draw_shares(cells[1], [spread for spread in activations if spread is not None])
    if data.gradients:
        gradients, label = [row.gradients for row in rows], "|d loss / d activation| of one image"
        _draw_magnitudes(cells[2], gradients, names, "gradients of the loss", label)
    return figure


def _draw_magnitudes(
    axes: Axes,
    spreads: Sequence[SpreadRecord | None],
    names: Sequence[str],
    heading: str,
    label: str,
) -> None:
    histograms = [spread.octaves for spread in spreads if spread and spread.octaves.counts]
    first = min((h.first_exponent for h in histograms), default=0)
    last = max((h.first_exponent + len(h.counts) for h in histograms), default=1)
    shares_LB = np.zeros((len(names), last - first))
    for row, spread in enumerate(spreads):
        if spread and spread.octaves.counts:
            start, counts = spread.octaves.first_exponent - first, np.array(spread.octaves.counts)
            shares_LB[row, start : start + len(counts)] = counts / counts.sum()
    left, right = first * np.log10(2), last * np.log10(2)
    drawn = axes.imshow(
        np.ma.masked_equal(shares_LB, 0),
        cmap="YlGnBu",
        vmin=0,
        aspect="auto",
        interpolation="nearest",
        extent=(left, right, len(names) - 0.5, -0.5),
    )
    powers = np.arange(np.ceil(left), np.floor(right) + 1)
    powers = powers[:: max(1, len(powers) // 7)]
    axes.set_xticks(powers, [f"$10^{{{int(power)}}}$" for power in powers])
    axes.set_xlabel(label, fontsize=FONT_SIZE - 1)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=FONT_SIZE - 3, length=2)
    title(axes, heading)
    add_colorbar(drawn, axes, "share of the values other than zero")


def _draw_shares(axes: Axes, spreads: Sequence[SpreadRecord]) -> None:
    places = np.arange(len(spreads))
    zeros = [spread.zeros for spread in spreads]
    dead = [len(spread.dead_channels or ()) / max(1, spread.channels or 1) for spread in spreads]
    axes.barh(places - 0.2, zeros, height=0.4, color=ZEROS, label="zeros")
    axes.barh(places + 0.2, dead, height=0.4, color=DEAD, label="channels that never change")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.tick_params(labelsize=FONT_SIZE - 3, length=2)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3.2, fontsize=FONT_SIZE - 2
    )
    axes.spines[["top", "right"]].set_visible(False)
    title(axes, "sparsity")
