"""One picture of how values spread in all layers: a line of colours per layer, first layer on top.

Colours say how the values other than zero are shared out among magnitudes; bars beside them give
the shares of zeros and of channels that never change.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.output.drawing import add_colorbar, escape, new_figure, title
from cnnviz.core.output.style import FONT_SIZE
from cnnviz.filters.layers.spread import LOWEST_EXPONENT, Spread
from cnnviz.filters.layers.statistics import Statistics

ROW_HEIGHT = 0.145  # inches
ZEROS, DEAD = "#999999", "#D55E00"


def draw_statistics(found: Statistics, layers: Sequence[str], model_name: str) -> Figure:
    """Magnitudes of activations, zeros and dead channels and, where known, gradients, by layer."""
    names = [name for name in layers if name in found.activations]
    panels = 3 if found.gradients else 2
    height = max(3.0, ROW_HEIGHT * len(names) + 1.3)
    figure = new_figure(4.6 * panels - 1.2, height)
    widths = [3, 1.6, 3][:panels]
    cells = figure.subplots(1, panels, squeeze=False, sharey=True, width_ratios=widths)[0]
    images = f"{found.images} images" if found.images > 1 else "1 image"
    heading = f"{model_name}, {images}: activations"
    _magnitudes(cells[0], found.activations, names, heading, "|activation|")
    _shares(cells[1], found.activations, names)
    if found.gradients:
        label = "|d loss / d activation|, one image's loss"
        _magnitudes(cells[2], found.gradients, names, "gradients of the loss", label)
    return figure


def _magnitudes(
    axes: Axes, spreads: Mapping[str, Spread], names: Sequence[str], heading: str, label: str
) -> None:
    shares_LB = np.stack([_share(spreads.get(name)) for name in names])
    taken = np.flatnonzero(shares_LB.any(axis=0))
    first, last = (int(taken[0]), int(taken[-1]) + 1) if taken.size else (0, 1)
    # Octave i ends at 2^(LOWEST_EXPONENT + i); edges in powers of ten are easier to read.
    octave = np.log10(2)
    left, right = ((LOWEST_EXPONENT + edge - 1) * octave for edge in (first, last))
    drawn = axes.imshow(
        np.ma.masked_equal(shares_LB[:, first:last], 0),
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
    axes.set_yticks(range(len(names)), [escape(name) for name in names])
    axes.tick_params(labelsize=FONT_SIZE - 3, length=2)
    title(axes, heading)
    add_colorbar(drawn, axes, "share of the values other than zero")


def _share(spread: Spread | None) -> NDArray[np.float64]:
    counts = (spread or Spread()).octaves_B.numpy().astype(np.float64)
    return np.asarray(counts / max(1.0, counts.sum()))


def _shares(axes: Axes, spreads: Mapping[str, Spread], names: Sequence[str]) -> None:
    places = np.arange(len(names))
    zeros = [spreads[name].zeros / max(1, spreads[name].count) for name in names]
    dead = [_dead_share(spreads[name]) for name in names]
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


def _dead_share(spread: Spread) -> float:
    if spread.dead is None or spread.lows_C is None:
        return 0.0
    return len(spread.dead) / max(1, len(spread.lows_C))
