"""Bars: shares of many things side by side, a column for each measure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from cnnviz.core.output.drawing import FONT_SIZE, escape, new_figure, title

MOST_BARS = 40
LONGEST = 28
PLAIN, RAISED = "#4a6fa5", "#b2182b"


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        name: over the column.
        values: a share of each thing; None where it is not known.
        alarm: shares above it are red, and a line says where it is.
        unknown: what stands in place of a share that is not known.
    """

    name: str
    values: Sequence[float | None]
    alarm: float | None = None
    unknown: str = ""


def draw_bars(names: Sequence[str], columns: Sequence[Column], heading: str, what: str) -> Figure:
    """A row for each thing, the first at the top; of very many the first.

    Args:
        names: of the things.
        columns: their measures.
        heading: over all.
        what: what the things are, in the plural.
    """
    shown = min(len(names), MOST_BARS)
    figure = new_figure(1.5 + 2.1 * len(columns), 1.2 + 0.24 * shown)
    places = np.arange(shown)
    cells = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(cells, columns, strict=True):
        values = column.values[:shown]
        limit = 1.0 if column.alarm is None else column.alarm
        colours = [RAISED if (value or 0.0) > limit else PLAIN for value in values]
        axes.barh(places, [value or 0.0 for value in values], color=colours, height=0.7)
        for place, value in zip(places, values, strict=True):
            text = column.unknown if value is None else f"{value:.2f}"
            axes.text(1.02, place, text, fontsize=FONT_SIZE - 2, va="center")
        axes.set_xlim(0, 1.32)
        axes.set_xticks([0, 0.5, 1])
        axes.tick_params(labelsize=FONT_SIZE - 2, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        title(axes, column.name)
        if column.alarm is not None:
            axes.axvline(column.alarm, color="black", linewidth=0.6, linestyle=":")
    labels = [escape(name, LONGEST) for name in names[:shown]]
    cells[0].set_yticks(places, labels, fontsize=FONT_SIZE - 1)
    cells[0].invert_yaxis()
    more = len(names) - shown
    figure.suptitle(heading + (f"; {more} more {what}" if more else ""), fontsize=FONT_SIZE)
    return figure
