"""The pictures of an ablation.

`classes.png` (accuracy per class before and after), `confusions.png` (which mistakes became more
frequent), `flips.png` (images whose prediction changed), `sweep.png` (the most important filters,
and the effect of every filter), `cumulative.png` (accuracy while filters are removed).
Harm is red in all of them.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cnnviz.core.choices import Colormap
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import (
    add_colorbar,
    bare,
    cmap_of,
    escape,
    image_pixels,
    new_figure,
    title,
)
from cnnviz.core.output.overlays import MOST_COLUMNS, grid_of_axes
from cnnviz.core.output.style import BLUE, FONT_SIZE, GAIN, GREEN, HARM, PURPLE, RED, ink
from cnnviz.filters.ablation.evaluation import ClassChange, confusion_matrix
from cnnviz.filters.ablation.measures import Measured
from cnnviz.filters.ablation.options import RemovalOrder
from cnnviz.filters.ablation.results import AblationResult
from cnnviz.filters.ablation.sweep import RANDOM_ORDERS, Curve, FilterEffect, ranked

MAX_CLASSES = 30
MAX_FLIPS = 50
FLIP_COLUMNS = 10
MAX_LAYERS = 12
NAME_LENGTH = 22
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
    texts = [f"{(new - old) * 100:+.1f}" for old, new in zip(was, is_now, strict=True)]
    names = [f"{escape(entry.class_, NAME_LENGTH)} ({entry.count})" for entry in shown]
    figure, axes = _pairs(was, is_now, texts, names)
    axes.set_xlim(0, 1.09)
    _label_axes(axes, "accuracy on the class's images (their number in brackets)")
    legend = f"before ({before:.1%} overall)", f"after ({after:.1%} overall): lower", "higher"
    _pairs_legend(figure, legend)
    of_all = _of_all(len(shown), len(result.classes))
    title(axes, f"Accuracy per class{of_all}\n{_switched_off(result)}")
    return figure


def _measured(result: AblationResult, measured: Measured) -> Figure:
    """The measure of each class or value, before and after."""
    shown, measure = _shown_classes(result), measured.measure
    valued = measure.sign < 0
    was, is_now = [entry.before for entry in shown], [entry.after for entry in shown]
    texts = [f"{new - old:+.3g}" for old, new in zip(was, is_now, strict=True)]
    names = [escape(c.class_, NAME_LENGTH) + ("" if valued else f" ({c.count})") for c in shown]
    figure, axes = _pairs(was, is_now, texts, names, measure.sign)
    axes.set_xlim(0, 1.15 * max([*was, *is_now, 1e-30]) if valued else 1.09)
    brackets = ", in the value's unit" if valued else " (in brackets: images)"
    _label_axes(axes, measure.each + brackets)
    words = ("higher", "lower") if valued else ("lower", "higher")
    legend = f"before ({measured.before:.3g} overall)", f"after ({measured.after:.3g} overall): "
    _pairs_legend(figure, (legend[0], legend[1] + words[0], words[1]))
    of_all = _of_all(len(shown), len(result.classes))
    title(axes, f"{measure.each.capitalize()}{of_all}\n{_switched_off(result)}")
    return figure


def _pairs(
    was: Sequence[float],
    is_now: Sequence[float],
    texts: Sequence[str],
    names: Sequence[str],
    sign: int = 1,
) -> tuple[Figure, Axes]:
    """Two bars a row, the second in the colour of harm or gain, followed by the change."""
    figure = new_figure(7.0, 1.4 + 0.3 * len(names))
    axes = figure.subplots()
    rows = np.arange(len(names))
    axes.barh(rows - 0.2, was, 0.38, color=BEFORE)
    colours = [_colour(sign * (new - old)) for old, new in zip(was, is_now, strict=True)]
    axes.barh(rows + 0.2, is_now, 0.38, color=colours)
    space = 0.01 * max([*was, *is_now, 0.0])
    for row, (old, new) in enumerate(zip(was, is_now, strict=True)):
        end = max(old, new) + space
        axes.text(end, row, texts[row], va="center", fontsize=FONT_SIZE - 2)
    axes.set_yticks(rows, names, fontsize=FONT_SIZE - 1)
    axes.invert_yaxis()
    return figure, axes


def _pairs_legend(figure: Figure, names: Sequence[str]) -> None:
    handles = [Patch(color=colour) for colour in (BEFORE, HARM, GAIN)]
    _legend_below(figure, handles, names, columns=3)


def _colour(gain: float) -> str:
    return HARM if gain < 0 else GAIN if gain > 0 else SAME


def _label_axes(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Sets labels and font sizes of both axes, and hides the other sides of the frame."""
    axes.set_xlabel(xlabel, fontsize=FONT_SIZE - 1)
    axes.set_ylabel(ylabel, fontsize=FONT_SIZE - 1)
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], columns: int
) -> None:
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        fontsize=FONT_SIZE - 1,
        frameon=False,
    )


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
    side = 2.2 + 0.34 * len(shown)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    norm = Normalize(-limit, limit)
    # A lost correct answer is as harmful as an added mistake, so the diagonal changes its sign.
    harm = np.where(np.eye(len(shown), dtype=bool), -difference, difference)
    axes.imshow(harm, cmap=cmap_of(Colormap.DIVERGING), norm=norm)
    for row, column in zip(*np.nonzero(difference), strict=True):
        strong = abs(difference[row, column]) > 0.6 * limit
        axes.text(column, row, f"{difference[row, column]:+d}", ha="center", va="center",
                  fontsize=FONT_SIZE - 2, color="white" if strong else "black")  # fmt: skip
    names = [escape(model.labels[index], NAME_LENGTH) for index in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=FONT_SIZE - 1)
    axes.set_yticks(range(len(shown)), names, fontsize=FONT_SIZE - 1)
    _label_axes(axes, "predicted", "labelled")
    bar = ScalarMappable(norm, cmap_of(Colormap.DIVERGING))
    add_colorbar(bar, axes, "images more (fewer on the diagonal): red is harm")
    of_all = _of_all(len(shown), len(result.classes))
    title(axes, f"Change of the confusion matrix{of_all}")
    return figure


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
    figure, cells = grid_of_axes(
        len(shown), (1.35, 1.75), columns=FLIP_COLUMNS, extra=(0.0, 0.5), narrowest=3.0
    )
    for axes, row in zip(cells, shown, strict=True):
        bare(axes)
        axes.imshow(image_pixels(data.working(int(stored["images"][row]), model.preprocess)))
        label, was, is_now = (int(stored[name][row]) for name in ("labels", "before", "after"))
        colour = HARM if was == label else GAIN if is_now == label else ink()
        text = f"{escape(model.labels[was], 16)}\n→ {escape(model.labels[is_now], 14)}"
        axes.set_title(text, fontsize=FONT_SIZE - 2, color=colour, pad=2)
        name = escape(model.labels[label], 16)
        axes.set_xlabel(f"is {name}", fontsize=FONT_SIZE - 2, labelpad=2)
    some = f"{len(shown)} of {len(rows)}, spread evenly" if len(shown) < len(rows) else len(rows)
    figure.suptitle(
        f"Predictions that changed: {some} "
        "(red: right before, blue: right now, black: wrong both times)",
        fontsize=FONT_SIZE,
        wrap=True,
    )
    return figure


def _sweep(result: AblationResult) -> Figure:
    order = ranked(result.effects)
    shown = order[: result.top]
    figure = new_figure(10.0, 1.6 + 0.26 * max(len(shown), 8))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    unit = _Unit(result)
    _sweep_bars(left, shown, unit)
    title(left, f"The {len(shown)} most important of {len(order)} filters")
    layers = list(dict.fromkeys(effect.layer for effect in result.effects))
    for layer in layers[:MAX_LAYERS]:
        effects = sorted(result.effects, key=lambda effect: -effect.harm)
        changes = [unit.scale * effect.change for effect in effects if effect.layer == layer]
        ranks = np.linspace(0, 1, len(changes)) if len(changes) > 1 else np.zeros(1)
        marker = "." if len(changes) < 20 else None
        right.plot(ranks, changes, marker=marker, label=escape(layer, 30))
    right.axhline(0, color="0.6", linewidth=0.6)
    _label_axes(right, "share of the layer's filters, worst first", unit.name)
    right.legend(fontsize=FONT_SIZE - 3, frameon=False, loc="best")
    some = f" ({MAX_LAYERS} of {len(layers)} layers)" if len(layers) > MAX_LAYERS else ""
    title(right, f"Each filter alone, {result.data.images} images{some}")
    return figure


class _Unit:
    """How a change is written: points of accuracy, or the measure itself."""

    def __init__(self, result: AblationResult) -> None:
        counts = result.measured is None
        self.scale = 100 if counts else 1
        self.name = f"change of {result.measure}" + (", points" if counts else "")
        self.form = "+.1f" if counts else "+.3g"


def _sweep_bars(axes: Axes, shown: Sequence[FilterEffect], unit: _Unit) -> None:
    rows = np.arange(len(shown))
    changes = [unit.scale * effect.change for effect in shown]
    axes.barh(rows, changes, color=[_colour(-effect.harm) for effect in shown])
    for row, effect in enumerate(shown):
        if effect.hurts is not None:
            name = escape(effect.hurts, NAME_LENGTH)
            text = f" {name} {unit.scale * effect.hurts_change:{unit.form}}"
            axes.text(max(changes[row], 0), row, text, va="center", fontsize=FONT_SIZE - 2)
    names = [escape(f"{effect.layer}:{effect.filter}", 34) for effect in shown]
    axes.set_yticks(rows, names, fontsize=FONT_SIZE - 2)
    axes.invert_yaxis()
    low, high = min([*changes, 0.0]), max([*changes, 0.0])
    minimum = 1e-4 * unit.scale
    axes.set_xlim(low * 1.05 - minimum, high + (high - low) * 0.45 + 10 * minimum)
    axes.axvline(0, color=ink(), linewidth=0.6)
    _label_axes(axes, f"{unit.name} (text: class harmed most)")


def _cumulative(result: AblationResult) -> Figure:
    layers = list(dict.fromkeys(curve.layer for curve in result.cumulative))
    columns = min(len(layers), MOST_COLUMNS)
    figure, cells = grid_of_axes(
        len(layers), (3.3, 2.9), extra=(0.0, 0.6), narrowest=6.0, sharey=True
    )
    for axes, layer in zip(cells, layers, strict=True):
        of_layer = [curve for curve in result.cumulative if curve.layer == layer]
        for curve in of_layer:
            _curve(axes, curve)
        title(axes, f"{layer} ({of_layer[0].removed[-1]} filters)")
        if result.measured is None or result.measured.measure.sign > 0:
            axes.set_ylim(0, 1)
        level = result.measure if axes in cells[::columns] else ""
        _label_axes(axes, "share of filters removed", level)
    handles, names = _legend(cells)
    _legend_below(figure, handles, names, columns=2 if columns == 1 else 3)
    return figure


def _curve(axes: Axes, curve: Curve) -> None:
    shares = [removed / curve.removed[-1] for removed in curve.removed]
    colour = ink(ORDER_COLOURS[curve.order])
    name = curve.order.value
    if curve.order is RemovalOrder.RANDOM:
        axes.fill_between(
            shares, curve.lowest, curve.highest, color=colour, alpha=0.15, linewidth=0
        )
        name = f"random (mean and range of {RANDOM_ORDERS})"
    axes.plot(shares, curve.accuracy, color=colour, label=name, linewidth=1.4)


def _legend(cells: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """One entry for each order that any panel has."""
    entries: dict[str, Artist] = {}
    for axes in cells:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return list(entries.values()), list(entries)
