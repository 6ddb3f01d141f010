"""The pictures of an ablation.

`classes.png` (accuracy per class before and after), `confusions.png` (which mistakes became more
frequent), `flips.png` (images whose prediction changed), `sweep.png` (the filters whose loss costs
most, and how the cost spreads over all), `cumulative.png` (accuracy while filters go).
Red is harm throughout.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cnnviz.core.choices import Colormap
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.images import Preprocess
from cnnviz.core.output.drawing import (
    add_colorbar,
    bare,
    cmap_of,
    escape,
    image_pixels,
    new_figure,
    title,
)
from cnnviz.core.output.panels import MOST_COLUMNS, grid_of_axes
from cnnviz.core.output.style import FONT_SIZE, ink
from cnnviz.filters.ablation import evaluation
from cnnviz.filters.ablation.choices import RemovalOrder
from cnnviz.filters.ablation.measures import Measured
from cnnviz.filters.ablation.report import both, class_changes, counted, flips, measure_name
from cnnviz.filters.ablation.sweep import RANDOM_ORDERS, Curve, FilterEffect, ranked

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model
    from cnnviz.filters.ablation.ablation import AblationResult

MOST_CLASSES = 30
MOST_FLIPS = 50
FLIP_COLUMNS = 10
MOST_LAYERS = 12
NAME_LENGTH = 22
HARM, GAIN, SAME, BEFORE = "#b2182b", "#2166ac", "#616161", "#bdbdbd"
ORDER_COLOURS = {
    RemovalOrder.RANDOM: "#000000",
    RemovalOrder.LEAST_HARM: "#009E73",
    RemovalOrder.MOST_HARM: "#D55E00",
    RemovalOrder.SMALLEST_NORM: "#0072B2",
    RemovalOrder.WEAKEST: "#CC79A7",
}


def draw(result: "AblationResult", model: "Model", data: ImageData, top: int) -> dict[str, Figure]:
    """All figures of one result, by the file name they are meant for.

    Args:
        result: what `ablate` returned.
        model: whose labels name the classes.
        data: the images, for the sheet of flips.
        top: how many filters of the sweep get a bar.
    """
    figures: dict[str, Figure] = {}
    if both(result) is not None:
        figures["classes.png"] = _classes(result, model)
        figures["confusions.png"] = _confusions(result, model)
        if flips(result):
            figures["flips.png"] = _flips(result, model, data)
    if result.measured is not None and result.measured.interval is not None:
        figures["classes.png"] = _measured(result, result.measured, model)
    if result.sweep:
        figures["sweep.png"] = _sweep(result, model, top)
    if result.curves:
        figures["cumulative.png"] = _cumulative(result)
    return figures


def _name(model: "Model", index: int, length: int = NAME_LENGTH) -> str:
    return escape(model.labels[index], length)


def _shown_classes(result: "AblationResult", model: "Model") -> list[evaluation.ClassChange]:
    """The classes that changed most, in order of the model, as many as fit."""
    changes = class_changes(result, model.classes)
    most = sorted(changes, key=lambda c: (-abs(c.change), -abs(c.probability_change), c.index))
    return sorted(most[:MOST_CLASSES], key=lambda c: c.index)


def _of_all(shown: int, total: int) -> str:
    return "" if shown == total else f" (the {shown} of {total} classes that changed most)"


def _classes(result: "AblationResult", model: "Model") -> Figure:
    counts = counted(result)
    shown = _shown_classes(result, model)
    total = len(class_changes(result, model.classes))
    before, after = (
        evaluation.accuracy(own, counts.labels, model.classes) for own in counts.predictions
    )
    was = [change.before / change.count for change in shown]
    is_now = [change.after / change.count for change in shown]
    texts = [f"{(new - old) * 100:+.1f}" for old, new in zip(was, is_now, strict=True)]
    names = [f"{_name(model, c.index)} ({c.count})" for c in shown]
    figure, axes = _pairs(was, is_now, texts, names)
    axes.set_xlim(0, 1.09)
    _dress(axes, "accuracy on the class's images (their number in brackets)")
    overall = f"before ({before.top1:.1%} overall)", f"after ({after.top1:.1%} overall): lower"
    _pairs_legend(figure, [*overall, "higher"])
    title(axes, f"Accuracy per class{_of_all(len(shown), total)}\n{_switched_off(result)}")
    return figure


def _measured(result: "AblationResult", found: Measured, model: "Model") -> Figure:
    """What is measured, of each class or value, before and after."""
    before_K, after_K = found.each_VK[:2]
    known = [k for k in range(model.classes) if found.images_K[k]]
    most = sorted(known, key=lambda k: (-abs(after_K[k] - before_K[k]), k))
    shown = sorted(most[:MOST_CLASSES])
    valued, sign = found.measure.sign < 0, found.measure.sign
    was, is_now = before_K[shown].tolist(), after_K[shown].tolist()
    texts = [f"{new - old:+.3g}" for old, new in zip(was, is_now, strict=True)]
    names = [_name(model, k) + ("" if valued else f" ({found.images_K[k]})") for k in shown]
    figure, axes = _pairs(was, is_now, texts, names, sign)
    axes.set_xlim(0, 1.15 * max([*was, *is_now, 1e-30]) if valued else 1.09)
    each = found.measure.each
    _dress(axes, f"{each} (in brackets: images)" if not valued else f"{each}, in the value's unit")
    before, after = (f"{value:.3g}" for value in found.mean_V[:2])
    words = ("higher", "lower") if valued else ("lower", "higher")
    _pairs_legend(
        figure, [f"before ({before} overall)", f"after ({after} overall): {words[0]}", words[1]]
    )
    of_all = _of_all(len(shown), len(known))
    heading = f"{each[:1].upper()}{each[1:]}"
    title(axes, f"{heading}{of_all}\n{_switched_off(result)}")
    return figure


def _pairs(
    was: Sequence[float],
    is_now: Sequence[float],
    texts: Sequence[str],
    names: Sequence[str],
    sign: int = 1,
) -> tuple[Figure, Axes]:
    """Two bars a row, the second in the colour of harm or gain, and the change behind them."""
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


def _dress(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Axis labels and ticks in the size of the rest, and a frame only where the axes are."""
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


def _switched_off(result: "AblationResult") -> str:
    off = result.plan.channels
    filters = sum(map(len, off.values()))
    where = f"{len(off)} layers" if len(off) > 1 else next(iter(off))
    return f"{filters} filter{'s' * (filters > 1)} of {where} off ({result.mode.value})"


def _confusions(result: "AblationResult", model: "Model") -> Figure:
    shown, counts = _confused_classes(result, model), counted(result)
    matrices = [
        evaluation.confusion_matrix(own, counts.labels, shown) for own in counts.predictions
    ]
    difference = matrices[1] - matrices[0]
    limit = max(int(np.abs(difference).max()), 1)
    side = 2.2 + 0.34 * len(shown)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    norm = Normalize(-limit, limit)
    # A lost right answer is as much harm as a gained mistake, so the diagonal is turned about.
    harm = np.where(np.eye(len(shown), dtype=bool), -difference, difference)
    axes.imshow(harm, cmap=cmap_of(Colormap.DIVERGING), norm=norm)
    for row, column in zip(*np.nonzero(difference), strict=True):
        strong = abs(difference[row, column]) > 0.6 * limit
        axes.text(column, row, f"{difference[row, column]:+d}", ha="center", va="center",
                  fontsize=FONT_SIZE - 2, color="white" if strong else "black")  # fmt: skip
    names = [_name(model, index) for index in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=FONT_SIZE - 1)
    axes.set_yticks(range(len(shown)), names, fontsize=FONT_SIZE - 1)
    _dress(axes, "predicted", "labelled")
    bar = ScalarMappable(norm, cmap_of(Colormap.DIVERGING))
    add_colorbar(bar, axes, "images more (fewer on the diagonal): red is harm")
    total = len(class_changes(result, model.classes))
    title(axes, f"Change of the confusion matrix{_of_all(len(shown), total)}")
    return figure


def _confused_classes(result: "AblationResult", model: "Model") -> list[int]:
    """Classes that gained or lost predictions, most first, as many as fit; the model's order."""
    counts = counted(result)
    before, after = counts.predictions
    labels = counts.labels
    moved = before.predicted != after.predicted
    weight = np.zeros(model.classes, np.int64)
    for classes in (labels, before.predicted, after.predicted):
        np.add.at(weight, classes[moved], 1)
    with_images = counts.images > 0
    order = sorted(
        np.flatnonzero(with_images | (weight > 0)).tolist(),
        key=lambda index: (-weight[index], index),
    )
    return sorted(order[:MOST_CLASSES])


def _flips(result: "AblationResult", model: "Model", data: ImageData) -> Figure:
    rows, counts = flips(result), counted(result)
    before, after = counts.predictions
    # Spread over the data: folders are read class by class, and the first would all be of a few.
    places = np.linspace(0, len(rows) - 1, min(len(rows), MOST_FLIPS)).round().astype(int)
    shown = [rows[place] for place in places]
    figure, cells = grid_of_axes(
        len(shown), (1.35, 1.75), columns=FLIP_COLUMNS, extra=(0.0, 0.5), narrowest=3.0
    )
    for axes, row in zip(cells, shown, strict=True):
        bare(axes)
        axes.imshow(_pixels(data, int(result.indices[row]), model.preprocess))
        label = int(counts.labels[row])
        was, is_now = int(before.predicted[row]), int(after.predicted[row])
        colour = HARM if was == label else GAIN if is_now == label else ink()
        text = f"{_name(model, was, 16)}\n→ {_name(model, is_now, 14)}"
        axes.set_title(text, fontsize=FONT_SIZE - 2, color=colour, pad=2)
        axes.set_xlabel(f"is {_name(model, label, 16)}", fontsize=FONT_SIZE - 2, labelpad=2)
    some = f"{len(shown)} of {len(rows)}, spread evenly" if len(shown) < len(rows) else len(rows)
    figure.suptitle(
        f"Predictions that changed: {some} "
        "(red: right before, blue: right now, black: wrong both times)",
        fontsize=FONT_SIZE,
        wrap=True,
    )
    return figure


def _pixels(data: ImageData, index: int, preprocess: Preprocess) -> np.ndarray:
    return image_pixels(data.working(index, preprocess))


def _sweep(result: "AblationResult", model: "Model", top: int) -> Figure:
    order = ranked(result.sweep)
    shown = order[:top]
    figure = new_figure(10.0, 1.6 + 0.26 * max(len(shown), 8))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    unit = _Unit(result)
    _sweep_bars(left, shown, model, unit)
    title(left, f"The {len(shown)} filters whose loss costs most, of {len(order)}")
    layers = list(result.plan.swept)
    for layer in layers[:MOST_LAYERS]:
        effects = sorted(result.sweep, key=lambda effect: -effect.harm)
        own = [unit.scale * effect.change for effect in effects if effect.layer == layer]
        ranks = np.linspace(0, 1, len(own)) if len(own) > 1 else np.zeros(1)
        right.plot(ranks, own, marker="." if len(own) < 20 else None, label=escape(layer, 30))
    right.axhline(0, color="0.6", linewidth=0.6)
    _dress(right, "share of the layer's filters, worst first", unit.name)
    right.legend(fontsize=FONT_SIZE - 3, frameon=False, loc="best")
    some = f" ({MOST_LAYERS} of {len(layers)} layers)" if len(layers) > MOST_LAYERS else ""
    title(right, f"Each filter alone, {len(result.indices)} images{some}")
    return figure


class _Unit:
    """How a change is written: points of accuracy, or what is measured as it is."""

    def __init__(self, result: "AblationResult") -> None:
        counts = result.measured is None
        self.scale = 100 if counts else 1
        self.name = f"change of {measure_name(result)}" + (", points" if counts else "")
        self.form = "+.1f" if counts else "+.3g"


def _sweep_bars(axes: Axes, shown: Sequence[FilterEffect], model: "Model", unit: _Unit) -> None:
    rows = np.arange(len(shown))
    changes = [unit.scale * effect.change for effect in shown]
    axes.barh(rows, changes, color=[_colour(-effect.harm) for effect in shown])
    for row, effect in enumerate(shown):
        if effect.hurts is not None:
            text = f" {_name(model, effect.hurts)} {unit.scale * effect.hurts_change:{unit.form}}"
            axes.text(max(changes[row], 0), row, text, va="center", fontsize=FONT_SIZE - 2)
    names = [escape(f"{effect.layer}:{effect.filter}", 34) for effect in shown]
    axes.set_yticks(rows, names, fontsize=FONT_SIZE - 2)
    axes.invert_yaxis()
    low, high = min([*changes, 0.0]), max([*changes, 0.0])
    least = 1e-4 * unit.scale
    axes.set_xlim(low * 1.05 - least, high + (high - low) * 0.45 + 10 * least)
    axes.axvline(0, color=ink(), linewidth=0.6)
    _dress(axes, f"{unit.name} (written: of the class hurt most)")


def _cumulative(result: "AblationResult") -> Figure:
    layers = list(dict.fromkeys(curve.layer for curve in result.curves))
    columns = min(len(layers), MOST_COLUMNS)
    figure, cells = grid_of_axes(
        len(layers), (3.3, 2.9), extra=(0.0, 0.6), narrowest=6.0, sharey=True
    )
    for axes, layer in zip(cells, layers, strict=True):
        own = [curve for curve in result.curves if curve.layer == layer]
        for curve in own:
            _curve(axes, curve)
        title(axes, f"{layer} ({own[0].removed[-1]} filters)")
        if result.measured is None or result.measured.measure.sign > 0:
            axes.set_ylim(0, 1)
        level = measure_name(result) if axes in cells[::columns] else ""
        _dress(axes, "share of filters removed", level)
    handles, names = _legend(cells)
    _legend_below(figure, handles, names, columns=2 if columns == 1 else 3)
    return figure


def _curve(axes: Axes, curve: Curve) -> None:
    shares = [removed / curve.removed[-1] for removed in curve.removed]
    colour = ink(ORDER_COLOURS[curve.order])
    name = curve.order.value
    if curve.order is RemovalOrder.RANDOM:
        axes.fill_between(shares, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        name = f"random (mean and range of {RANDOM_ORDERS})"
    axes.plot(shares, curve.accuracy, color=colour, label=name, linewidth=1.4)


def _legend(cells: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """One entry per order, whichever panels have it."""
    found: dict[str, Artist] = {}
    for axes in cells:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    return list(found.values()), list(found)
