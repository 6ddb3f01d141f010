"""The pictures of an ablation.

`classes.png` (accuracy per class before and after), `confusions.png` (which mistakes became more
frequent), `flips.png` (images whose prediction changed), `sweep.png` (the most important filters,
and the effect of every filter), `cumulative.png` (accuracy while filters are removed).
Harm is red in all of them.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from cnnviz.core.choices import percent, typeset
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.models.load import Model
from cnnviz.core.output.canvas import Bar, Entry
from cnnviz.core.output.drawing import image_pixels, label_axes, name_rows, names_width
from cnnviz.core.output.layout import Cell, board, in_rows, plot
from cnnviz.core.output.options import DIVERGING
from cnnviz.core.output.overlays import cmap_of, small
from cnnviz.core.output.style import BLUE, GAIN, GREEN, HARM, PURPLE, RED, SMALL, ink
from cnnviz.core.output.text import escape, text_width
from cnnviz.filters.ablation.evaluation import ClassChange, confusion_matrix
from cnnviz.filters.ablation.measures import Measured
from cnnviz.filters.ablation.options import RemovalOrder
from cnnviz.filters.ablation.results import AblationResult
from cnnviz.filters.ablation.sweep import RANDOM_ORDERS, Curve, FilterEffect, ranked

MAX_CLASSES = 30
MAX_FLIPS = 50
FLIP_COLUMNS = 8
MAX_LAYERS = 12
NAME_LENGTH = 22
BAR_ROW = 21.0  # points
COLOURS = (BLUE, RED, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000", "#8C6D46")
SAME, BEFORE = "#616161", "#bdbdbd"
ORDER_COLOURS = {
    RemovalOrder.RANDOM: "#000000",
    RemovalOrder.LEAST_HARM: GREEN,
    RemovalOrder.MOST_HARM: RED,
    RemovalOrder.SMALLEST_NORM: BLUE,
    RemovalOrder.WEAKEST: PURPLE,
}


def draw(result: AblationResult, model: Model, data: ImageData) -> dict[str, Figure]:
    """Draws all figures of a result; returns them by file name.

    Args:
        result: the return value of `ablate`.
        model: the network.
        data: the images, for the sheet of flips.
    """
    figures: dict[str, Figure] = {}
    if result.accuracy is not None and result.accuracy.after is not None:
        figures["classes.png"] = _classes(result)
        figures["confusions.png"] = _confusions(result, model)
        if result.flips and result.flips.count:
            figures["flips.png"] = _flips(result, model, data)
    if result.measured is not None and result.measured.after is not None:
        figures["classes.png"] = _measured(result, result.measured)
    if result.effects:
        figures["sweep.png"] = _sweep(result)
    if result.cumulative:
        figures["cumulative.png"] = _cumulative(result)
    return figures


def _shown_classes(result: AblationResult) -> list[ClassChange]:
    """The classes that changed most, as many as fit, in order of the model."""

    def key(entry: ClassChange) -> tuple[float, float, int]:
        return -abs(entry.change), -abs(entry.probability_change or 0), entry.index

    return sorted(sorted(result.classes, key=key)[:MAX_CLASSES], key=lambda entry: entry.index)


def _of_all(shown: int, total: int) -> str:
    return "" if shown == total else f" (the {shown} of {total} classes that changed most)"


def _classes(result: AblationResult) -> Figure:
    shown = _shown_classes(result)
    assert result.accuracy is not None and result.accuracy.after is not None  # noqa: S101, PT018
    before, after = result.accuracy.before.top1, result.accuracy.after.top1
    was = [entry.before / entry.count for entry in shown]
    is_now = [entry.after / entry.count for entry in shown]
    texts = [f"{(new - old) * 100:+.1f} points" for old, new in zip(was, is_now, strict=True)]
    names = [f"{entry.class_} ({entry.count})" for entry in shown]
    of_all = _of_all(len(shown), len(result.classes))
    cell = _pairs(
        was,
        is_now,
        texts,
        names,
        f"Accuracy per class{of_all}\n{_switched_off(result)}",
        "accuracy on the class's images (their number in brackets)",
    )
    return board([[cell]], legend=_pairs_legend(percent(before, 1), percent(after, 1)))


def _measured(result: AblationResult, measured: Measured) -> Figure:
    """The measure of each class or value, before and after."""
    shown, measure = _shown_classes(result), measured.measure
    valued = measure.sign < 0
    was, is_now = [entry.before for entry in shown], [entry.after for entry in shown]
    texts = [f"{new - old:+.3g}" for old, new in zip(was, is_now, strict=True)]
    names = [c.class_ + ("" if valued else f" ({c.count})") for c in shown]
    brackets = ", in the value's unit" if valued else " (in brackets: images)"
    of_all = _of_all(len(shown), len(result.classes))
    cell = _pairs(
        was,
        is_now,
        texts,
        names,
        f"{measure.each.capitalize()}{of_all}\n{_switched_off(result)}",
        measure.each + brackets,
        measure.sign,
        end=1.25 * max([*was, *is_now, 1e-30]) if valued else 1.0,
    )
    legend = _pairs_legend(f"{measured.before:.3g}", f"{measured.after:.3g}", measure.sign)
    return board([[cell]], legend=legend)


def _pairs(
    was: Sequence[float],
    is_now: Sequence[float],
    texts: Sequence[str],
    names: Sequence[str],
    heading: str,
    xlabel: str,
    sign: int = 1,
    end: float = 1.0,
) -> Cell:
    """Two bars a row, the second in the colour of harm or gain, followed by the change."""

    def paint(axes: Axes) -> None:
        rows = np.arange(len(names))
        axes.barh(rows - 0.2, was, 0.38, color=BEFORE)
        colours = [_colour(sign * (new - old)) for old, new in zip(was, is_now, strict=True)]
        axes.barh(rows + 0.2, is_now, 0.38, color=colours)
        for row, (old, new) in enumerate(zip(was, is_now, strict=True)):
            text = typeset(texts[row])
            axes.text(max(old, new) + 0.01 * end, row, text, va="center", fontsize=SMALL - 1)
        name_rows(axes, names)
        axes.set_xlim(0, end)
        label_axes(axes, xlabel)

    height, room = BAR_ROW * max(len(names), 3), 8 + max(text_width(t, SMALL - 1) for t in texts)
    left = names_width(names)
    return plot(paint, heading, width=300.0, height=height, left=left, right=room)


def _pairs_legend(before: str, after: str, sign: int = 1) -> list[Entry]:
    worse, better = ("lower", "higher") if sign > 0 else ("higher", "lower")
    return [
        Entry(f"before ({before} overall)", BEFORE),
        Entry(f"after ({after} overall): {worse}", HARM),
        Entry(f"after: {better}", GAIN),
        Entry("after: equal", SAME),
    ]


def _colour(gain: float) -> str:
    return HARM if gain < 0 else GAIN if gain > 0 else SAME


def _switched_off(result: AblationResult) -> str:
    off = result.filters
    filters = sum(len(layer.channels) for layer in off)
    where = f"{len(off)} layers" if len(off) > 1 else off[0].layer
    return f"{filters} filter{'s' * (filters > 1)} of {where} off ({result.mode.value})"


def _confusions(result: AblationResult, model: Model) -> Figure:
    shown, stored = _confused_classes(result, model), result.predictions
    before, after = (
        confusion_matrix(stored[when], stored["labels"], shown) for when in ("before", "after")
    )
    difference = after - before
    limit = max(int(np.abs(difference).max()), 1)
    colours, names = cmap_of(DIVERGING), [model.labels[index] for index in shown]

    def paint(axes: Axes) -> None:
        # A lost correct answer is as harmful as an added mistake: the diagonal changes its sign.
        harm = np.where(np.eye(len(shown), dtype=bool), -difference, difference)
        axes.imshow(harm, cmap=colours, norm=Normalize(-limit, limit), aspect="auto")
        for row, column in zip(*np.nonzero(difference), strict=True):
            strong = abs(difference[row, column]) > 0.6 * limit
            text = typeset(f"{difference[row, column]:+d}")
            axes.text(column, row, text, ha="center", va="center",
                      fontsize=SMALL - 1, color="white" if strong else "black")  # fmt: skip
        name_rows(axes, names)
        label_axes(axes, "predicted", "labelled")
        shown_names = [label.get_text() for label in axes.get_yticklabels()]
        axes.set_xticks(axes.get_yticks(), shown_names, rotation=90, fontsize=SMALL)

    side, left = max(BAR_ROW * len(shown), 60.0), names_width(names)
    of_all = _of_all(len(shown), len(result.classes))
    bar = Bar(
        colours(np.linspace(0, 1, 256))[:, :3],
        -limit,
        limit,
        "change in image count (red is worse, so on the diagonal it is a loss)",
    )
    heading = f"Change of the confusion matrix{of_all}"
    width = max(side, 220.0)
    return board(
        [
            [
                plot(
                    paint,
                    heading,
                    width=width,
                    height=side,
                    left=left + 12,
                    bottom=left + 12,
                    bar=bar,
                )
            ]
        ]
    )


def _confused_classes(result: AblationResult, model: Model) -> list[int]:
    """The classes whose predictions changed most, as many as fit, in order of the model."""
    columns = [result.predictions[name] for name in ("labels", "before", "after")]
    moved = columns[1] != columns[2]
    weight = np.bincount(np.concatenate([c[moved] for c in columns]), minlength=model.classes)
    with_images = np.bincount(columns[0], minlength=model.classes) > 0
    candidates = np.flatnonzero(with_images | (weight > 0)).tolist()
    return sorted(sorted(candidates, key=lambda k: (-weight[k], k))[:MAX_CLASSES])


def _flips(result: AblationResult, model: Model, data: ImageData) -> Figure:
    stored = result.predictions
    rows = np.flatnonzero(stored["before"] != stored["after"])
    # Spread over the data: folders are read class by class, and the first would all be of a few.
    places = np.linspace(0, len(rows) - 1, min(len(rows), MAX_FLIPS)).round().astype(int)
    shown = rows[places].tolist()
    cells = []
    for row in shown:
        pixels = image_pixels(data.working(int(stored["images"][row]), model.preprocess))
        label, was, is_now = (int(stored[name][row]) for name in ("labels", "before", "after"))
        harm = "lost: " if was == label else "gained: " if is_now == label else ""
        text = f"{model.labels[was]} → {model.labels[is_now]}\n{harm}is {model.labels[label]}"
        cells.append(small(pixels, text))
    some = f"{len(shown)} of {len(rows)}, spread evenly" if len(shown) < len(rows) else len(rows)
    heading = f"Images whose prediction changed ({some}): before → after, and the label"
    return board(in_rows(cells, FLIP_COLUMNS), heading=heading, gap=8.0)


def _sweep(result: AblationResult) -> Figure:
    order = ranked(result.effects)
    shown, unit = order[: result.top], _Unit(result)
    names = [f"{effect.layer}:{effect.filter}" for effect in shown]
    height = max(14.0 * len(shown), 150.0)
    layers = list(dict.fromkeys(effect.layer for effect in result.effects))
    some = f" ({MAX_LAYERS} of {len(layers)} layers)" if len(layers) > MAX_LAYERS else ""
    cells = [
        plot(
            lambda axes: _sweep_bars(axes, shown, names, unit),
            f"{len(shown)} most important of {len(order)} filters\nlargest drop when removed; "
            "text: the class harmed most"
            if any(effect.change for effect in order)
            else f"None of {len(order)} filters changes the {result.measure} when removed alone",
            width=300.0,
            height=height,
            left=names_width(names),
        ),
        plot(
            lambda axes: _all_effects(axes, result, layers[:MAX_LAYERS], unit),
            f"Each filter alone\n{result.data.images} images{some}",
            width=230.0,
            height=height,
            left=46.0,
        ),
    ]
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(layers))]
    legend = [
        Entry(layer, colour, marker="-")
        for layer, colour in zip(layers[:MAX_LAYERS], colours, strict=False)
    ]
    return board([cells], legend=legend)


def _all_effects(axes: Axes, result: AblationResult, layers: Sequence[str], unit: "_Unit") -> None:
    for place, layer in enumerate(layers):
        effects = sorted(result.effects, key=lambda effect: -effect.harm)
        changes = [unit.scale * effect.change for effect in effects if effect.layer == layer]
        ranks = np.linspace(0, 1, len(changes)) if len(changes) > 1 else np.zeros(1)
        marker = "." if len(changes) < 20 else None
        axes.plot(ranks, changes, marker=marker, color=COLOURS[place % len(COLOURS)])
    axes.axhline(0, color="0.6", linewidth=0.6)
    label_axes(axes, "share of the layer's filters, worst first", unit.name)


class _Unit:
    """How a change is written: points of accuracy, or the measure itself."""

    def __init__(self, result: AblationResult) -> None:
        counts = result.measured is None
        self.scale = 100 if counts else 1
        self.name = f"change of {result.measure}" + (", points" if counts else "")
        self.form = "+.1f" if counts else "+.3g"
        self.suffix = " points" if counts else ""


def _sweep_bars(
    axes: Axes, shown: Sequence[FilterEffect], names: Sequence[str], unit: _Unit
) -> None:
    rows = np.arange(len(shown))
    changes = [unit.scale * effect.change for effect in shown]
    axes.barh(rows, changes, color=[_colour(-effect.harm) for effect in shown])
    for row, effect in enumerate(shown):
        if effect.hurts is not None and effect.hurts_change:
            name = escape(effect.hurts, NAME_LENGTH)
            change = typeset(f"{unit.scale * effect.hurts_change:{unit.form}}")
            text = f" {name} {change}{unit.suffix}"
            axes.text(max(changes[row], 0), row, text, va="center", fontsize=SMALL - 1)
    name_rows(axes, names)
    low, high = min([*changes, 0.0]), max([*changes, 0.0])
    minimum = 1e-4 * unit.scale
    axes.set_xlim(low * 1.05 - minimum, high + (high - low) * 0.9 + 10 * minimum)
    axes.axvline(0, color=ink(), linewidth=0.6)
    label_axes(axes, unit.name)


def _cumulative(result: AblationResult) -> Figure:
    layers = list(dict.fromkeys(curve.layer for curve in result.cumulative))
    shares = result.measured is None or result.measured.measure.sign > 0
    cells = []
    for layer in layers:
        of_layer = [curve for curve in result.cumulative if curve.layer == layer]

        def paint(axes: Axes, of_layer: Sequence[Curve] = of_layer) -> None:
            for curve in of_layer:
                _curve(axes, curve)
            if shares:
                axes.set_ylim(0, 1)
            label_axes(axes, "share of filters removed", result.measure)

        cells.append(plot(paint, f"{layer}\n{of_layer[0].removed[-1]} filters"))
    orders = list(dict.fromkeys(curve.order for curve in result.cumulative))
    random = f"random (mean and range of {RANDOM_ORDERS})"
    legend = [
        Entry(
            random if order is RemovalOrder.RANDOM else order.value,
            ink(ORDER_COLOURS[order]),
            marker="-",
        )
        for order in orders
    ]
    return board(in_rows(cells), legend=legend)


def _curve(axes: Axes, curve: Curve) -> None:
    shares = [removed / curve.removed[-1] for removed in curve.removed]
    colour = ink(ORDER_COLOURS[curve.order])
    if curve.order is RemovalOrder.RANDOM:
        axes.fill_between(
            shares, curve.lowest, curve.highest, color=colour, alpha=0.15, linewidth=0
        )
    axes.plot(shares, curve.accuracy, color=colour, linewidth=1.4)
