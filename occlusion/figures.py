"""Figures of an occlusion experiment.

A figure has one panel per class and mask. Maps are drawn with diverging colours symmetric about
zero: red is evidence for the class (occluding it hurts), blue is evidence against it. Under an
overlay the image is grey, so that every colour is the map's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import add_colorbar, bare, escape, image_pixels, title, under
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    MOST_COLUMNS,
    draw_map,
    draw_picture,
    hatch_pixels,
    legend,
    outline_pixels,
    panels,
)
from cnnviz.core.output.style import BLUE, FONT_SIZE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.measurement import Activation
from cnnviz.occlusion.options import MapKind, Score, Upsample
from cnnviz.occlusion.results import Agreement, OcclusionResult, Panel, Sufficiency
from cnnviz.occlusion.sufficient import HELD

LEGEND_CLASSES = 9
OTHER_GRAY = "#d9d9d9"
UNCHANGED = "#ffffff"  # in the legend; on the image such positions are left clear
# Okabe and Ito's colours, distinct for people with colour-blindness, and a brown.
CLASS_COLOURS = (
    ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE, "#000000", "#8C6D46",
)  # fmt: skip
DISAGREEMENT = (
    ("occlusion only", BLUE, "////"),
    ("the gradient only", GREEN, "\\\\\\\\"),
)
BAR_LABELS = {
    Score.PROBABILITY: "drop of the probability when occluded",
    Score.LOGIT: "drop of the logit when occluded",
    Score.LOSS: "rise of the loss −log p when occluded",
}
Pixels = NDArray[np.uint8]


def draw(
    result: OcclusionResult,
    look: Look | None = None,
    backdrop: Pixels | None = None,
    lines: Sequence[str] = (),
) -> dict[str, Figure]:
    """Draws all figures of one result, by file name.

    `overlay.png` (map over image), `heatmap.png` (map alone), `probability.png` (the class's
    probability at each position: blue where occluding hurts), `label.png` (the most probable class
    at each position), with a gradient `agreement.png`, with `--sufficient` `sufficient.png` and,
    with `--layer`, `activation.png`. A regression has `value.png` in place of `probability.png` and
    `label.png`; where each class is read at its own pixels, there is no `label.png`.

    Args:
        result: what to draw.
        look: how.
        backdrop: the image under the maps, uint8 (h, w, 3): the working image's crop in the file's
            own pixels; None for the working image itself.
        lines: a line under each panel of the overlay, or none.
    """
    look = look or Look()
    beneath = input_pixels(result) if backdrop is None else backdrop
    has_classes = result.measured.head.has_classes
    figures = {
        "overlay.png": draw_overlay(result, look, backdrop, lines),
        "heatmap.png": _grid(result, look, lambda cell, panel: _map(cell, result, panel, look)),
        "probability.png" if has_classes else "value.png": _grid(
            result, look, lambda cell, panel: _reading(cell, result, panel)
        ),
    }
    reading = result.measured.reading
    if has_classes and (reading is None or reading.pointed):
        figures["label.png"] = _labels(result, beneath)
    if any(result.agreements):
        figures["agreement.png"] = _agreements(result, look, beneath)
    if result.sufficient:
        figures["sufficient.png"] = _sufficiencies(result, result.sufficient)
    if result.activation:
        figures["activation.png"] = _activation(result, result.activation)
    return figures


def draw_overlay(
    result: OcclusionResult,
    look: Look,
    backdrop: Pixels | None = None,
    lines: Sequence[str] = (),
) -> Figure:
    """Draws `overlay.png` only: the map over the image; see `draw`."""
    beneath = input_pixels(result) if backdrop is None else backdrop
    return _grid(result, look, lambda cell, panel: _map(cell, result, panel, look, beneath), lines)


def _columns(result: OcclusionResult, look: Look) -> int:
    """A row per class and a column per mask; a single mask's panels are wrapped."""
    if look.columns is not None:
        return look.columns
    masks = len(result.measured.grids)
    return masks if 1 < masks <= MOST_COLUMNS else MOST_COLUMNS


def _grid(
    result: OcclusionResult,
    look: Look,
    paint: Callable[[Axes, Panel], None],
    lines: Sequence[str] = (),
) -> Figure:
    """A cell for each panel."""
    size, columns = result.measured.size, _columns(result, look)
    figure, axes = panels(len(result.targets), size, columns=columns)
    for number, (cell, panel) in enumerate(zip(axes, result.targets, strict=True)):
        paint(cell, panel)
        title(cell, heading(result, panel))
        bare(cell)
        if lines:
            under(cell, lines[number])
    return figure


def heading(result: OcclusionResult, panel: Panel) -> str:
    """Describes a panel: class, probability, mask and stride."""
    measured = result.measured
    note = " (true class)" if result.label and panel.index == result.label.index else ""
    kind = "" if result.upsample is Upsample.COVERAGE else f", {result.upsample}"
    where = f"\n{measured.place or 'mean over its pixels'}" if measured.reading else ""
    return f"{panel.class_}{note}  {measured.head.text(panel.reading)}\n{_mask(panel)}{kind}{where}"


def _mask(panel: Panel) -> str:
    return f"mask {panel.grid.name}, stride {panel.stride}"


def _map(
    axes: Axes, result: OcclusionResult, panel: Panel, look: Look, over: Pixels | None = None
) -> None:
    agreed = panel.agreement if result.method is MapKind.AGREEMENT else None
    shown = (agreed or panel).map_HW.numpy()
    one_sided = agreed is not None
    draw_map(axes, shown, look, unit(result), over=over, one_sided=one_sided, limit=look.scale)
    _outline_read(axes, result, panel)


def unit(result: OcclusionResult) -> str:
    """Names the unit of the maps that are drawn."""
    if result.method is MapKind.AGREEMENT:
        return _agreement_unit(next(a for a in result.agreements if a is not None))
    return _occlusion_unit(result)


def _occlusion_unit(result: OcclusionResult) -> str:
    head = result.measured.head
    if result.compared is Score.LOGIT and head.probabilities_given:
        return "drop of the log-odds when occluded"
    return BAR_LABELS[result.compared] if head.has_classes else "drop of the value when occluded"


def _agreement_unit(together: Agreement) -> str:
    return f"agreement of occlusion and {together.with_.split()[0]}"


def _outline_read(axes: Axes, result: OcclusionResult, panel: Panel) -> None:
    """Outlines the pixels of a dense output that were read."""
    measured = result.measured
    if measured.reading is not None:
        outline_pixels(axes, measured.reading.of(panel.index).numpy(), measured.size)


def _agreements(result: OcclusionResult, look: Look, beneath: Pixels) -> Figure:
    """A row for each panel: occlusion, gradient, and where the two agree and where they do not."""
    pairs = [(panel, panel.agreement) for panel in result.targets if panel.agreement]
    figure, axes = panels(3 * len(pairs), result.measured.size, columns=3)
    for row, (panel, together) in enumerate(pairs):
        left, middle, right = axes[3 * row : 3 * row + 3]
        occlusion, unit_text = panel.map_HW.numpy(), _occlusion_unit(result)
        draw_map(left, occlusion, look, unit_text, over=beneath, limit=look.scale)
        title(left, heading(result, panel))
        traced = together.gradient_HW.numpy()
        draw_map(middle, traced, look, "weighted sum of its maps", over=beneath, one_sided=True)
        title(middle, together.with_.replace(" at ", "\nat "))
        shown = together.map_HW.numpy()
        draw_map(right, shown, look, _agreement_unit(together), over=beneath, one_sided=True)
        for inside_HW, (_text, colour, hatch) in zip(
            (together.only_occlusion_HW, together.only_gradient_HW), DISAGREEMENT, strict=True
        ):
            hatch_pixels(right, inside_HW.numpy(), colour, hatch)
        correlation = together.rank_correlation
        text = "none (a map is constant)" if correlation is None else f"{correlation:.2f}"
        title(right, f"where both see evidence\nrank correlation {text}")
        for cell in (left, middle, right):
            _outline_read(cell, result, panel)
            bare(cell)
    legend(figure, DISAGREEMENT)
    return figure


def _sufficiencies(result: OcclusionResult, entries: Sequence[Sufficiency]) -> Figure:
    """A row for each class: the sufficient region, the losing region, and the search."""
    image = result.measured.image
    figure, axes = panels(3 * len(entries), result.measured.size, columns=3)
    for row, entry in enumerate(entries):
        left, middle, right = axes[3 * row : 3 * row + 3]
        region, losing = entry.region, entry.losing
        kept_HW = entry.pixels_of(region)
        _draw_replaced(left, image, entry.fill_CHW, kept_HW)
        title(
            left,
            f"{entry.class_}: {100 * region.share:.1f} % of the image is enough,\n"
            f"p = {region.probability:.3f} "
            f"(full image {entry.reading:.3f}, rest {entry.without:.3f})",
        )
        if losing is None:
            _draw_replaced(middle, image, entry.fill_CHW, torch.zeros_like(kept_HW))
            title(middle, "fully occluded,\nthe class is not lost")
        else:
            _draw_replaced(middle, image, entry.fill_CHW, ~entry.pixels_of(losing))
            title(
                middle,
                f"occluding {100 * losing.share:.1f} % leaves p = {losing.probability:.3f}:\n"
                f"{entry.lost_when}",
            )
        _curves(right, entry)
        for cell in (left, middle):
            bare(cell)
    return figure


def _draw_replaced(axes: Axes, image: WorkingImage, fill_CHW: Tensor, kept_HW: Tensor) -> None:
    """Draws what the network sees with only those pixels kept."""
    seen = replace(image, pixels=torch.where(kept_HW, image.pixels, fill_CHW))
    draw_picture(axes, image_pixels(seen), (kept_HW.shape[0], kept_HW.shape[1]), grey=False)


def _curves(axes: Axes, entry: Sufficiency) -> None:
    """The class's probability while cells are kept alone, or occluded, most important first."""
    shares = np.linspace(0, 100, len(entry.kept_curve))
    axes.plot(shares, entry.kept_curve.numpy(), color=BLUE, label="only these kept")
    axes.plot(shares, entry.covered_curve.numpy(), color=RED, label="these occluded")
    axes.axhline(HELD * entry.reading, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("% of the cells, most important by occlusion first", fontsize=FONT_SIZE - 1)
    axes.set_ylabel("probability of the class", fontsize=FONT_SIZE - 1)
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    title(axes, f"dotted: {100 * HELD:.0f} % of the original probability")


def _edges(grid: Grid, axis: int, length: int) -> np.ndarray:
    """Cell borders along one axis: half-way between mask centres, and the image's own edges."""
    rows, columns = grid.shape
    boxes = grid.boxes_P4.reshape(rows, columns, 4).double().numpy()
    line = boxes[:, 0] if axis == 0 else boxes[0]
    centers = (line[:, axis] + line[:, axis + 2]) / 2
    return np.array([0.0, *(centers[:-1] + centers[1:]) / 2, float(length)])


def _cells(
    axes: Axes, panel: Panel, size: tuple[int, int], values: np.ndarray, **options: Any
) -> ScalarMappable:
    """Draws one value per position, each in the cell of the image that is nearest to its mask."""
    x_edges, y_edges = _edges(panel.grid, 1, size[1]), _edges(panel.grid, 0, size[0])
    shown = axes.pcolormesh(x_edges, y_edges, values.reshape(panel.grid.shape), **options)
    axes.set_xlim(0, size[1])
    axes.set_ylim(size[0], 0)
    axes.set_aspect("equal")
    return shown


def _reading(axes: Axes, result: OcclusionResult, panel: Panel) -> None:
    values = panel.probabilities_P.numpy()
    shown = _cells(axes, panel, result.measured.size, values, cmap="RdYlBu_r")
    what = "probability of the class" if result.measured.head.has_classes else "value"
    add_colorbar(shown, axes, f"{what} with this position occluded")


def _by_mask(result: OcclusionResult) -> list[Panel]:
    """A panel of each mask, of whichever class."""
    return [next(p for p in result.targets if p.grid is grid) for grid in result.measured.grids]


def _labels(result: OcclusionResult, beneath: Pixels) -> Figure:
    """The most probable class at each position, one panel per mask, one legend for all."""
    measured, size, by_mask = result.measured, result.measured.size, _by_mask(result)
    predicted = int(measured.base_logits_K.argmax())
    winners = np.concatenate([panel.winners_P.numpy() for panel in by_mask])
    classes, counts = np.unique(winners[winners != predicted], return_counts=True)
    ranked = classes[np.argsort(-counts, kind="stable")]
    shown, rest = ranked[:LEGEND_CLASSES], ranked[LEGEND_CLASSES:]
    colours = [UNCHANGED, *CLASS_COLOURS[: len(shown)], OTHER_GRAY]
    code = np.full(len(measured.labels), len(colours) - 1)
    code[predicted] = 0
    code[shown] = np.arange(1, len(shown) + 1)
    figure, axes = panels(len(by_mask), size, legend=1.8)
    for cell, panel in zip(axes, by_mask, strict=True):
        draw_picture(cell, beneath, size)
        codes = np.ma.masked_equal(code[panel.winners_P.numpy()], 0)
        limits = {"vmin": -0.5, "vmax": len(colours) - 0.5}
        _cells(cell, panel, size, codes, cmap=ListedColormap(colours), alpha=0.75, **limits)
        title(cell, f"most probable class\n{_mask(panel)}")
        bare(cell)
    total = len(winners)
    names = [
        (measured.labels[index], int((winners == index).sum()) / total)
        for index in (predicted, *shown)
    ]
    names[0] = (f"{names[0][0]} (as original)", names[0][1])
    if len(rest):
        names.append((f"{len(rest)} other classes", float(np.isin(winners, rest).mean())))
    handles = [
        Patch(
            facecolor=colour, edgecolor="#555555", label=escape(f"{name[:40]}  {100 * share:.1f} %")
        )
        for colour, (name, share) in zip(colours, names, strict=False)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=FONT_SIZE - 1, frameon=False)
    return figure


def _activation(result: OcclusionResult, activation: Activation) -> Figure:
    """The channel's sum at each position: blue where occlusion takes away its stimulus."""
    by_mask = _by_mask(result)
    figure, axes = panels(len(by_mask), result.measured.size)
    parts = torch.split(activation.sums_P, [panel.positions for panel in by_mask])
    for cell, panel, sums_P in zip(axes, by_mask, parts, strict=False):
        shown = _cells(cell, panel, result.measured.size, sums_P.numpy(), cmap="RdYlBu_r")
        add_colorbar(shown, cell, f"summed activation ({activation.sum:.4g} in the original)")
        title(cell, f"{activation.layer}, channel {activation.channel}\n{_mask(panel)}")
        bare(cell)
    return figure


def input_pixels(result: OcclusionResult) -> Pixels:
    """The working image as uint8 (H, W, 3), for `input.png`."""
    return image_pixels(result.measured.image)
