"""The pictures of an occlusion experiment.

A figure has one panel per target and mask. Maps are drawn with diverging colours symmetric about
zero: red is evidence for the class (covering it hurts), blue is evidence against it. Under an
overlay the image is grey, so that every colour seen is the map's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cnnviz.core.choices import Colormap
from cnnviz.core.output.drawing import (
    FONT_SIZE,
    add_colorbar,
    bare,
    cmap_of,
    escape,
    new_figure,
    symmetric_limit,
    title,
    to_uint8,
)
from cnnviz.occlusion.choices import Score
from cnnviz.occlusion.experiment import OcclusionResult
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.panels import Panel

PANEL_WIDTH = 3.6  # inches
MOST_COLUMNS = 4
LEGEND_CLASSES = 9
LUMINANCE = np.array([0.299, 0.587, 0.114])
OTHER_GRAY = "#d9d9d9"
UNCHANGED = "#ffffff"  # in the legend; on the picture such places are left clear
SMALL = 96  # pixels a side, below which the image under a map is drawn smoothed
# Okabe and Ito's colours, told apart by people with colour-blindness, and a brown.
CLASS_COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2",
    "#D55E00", "#CC79A7", "#000000", "#8C6D46",
)  # fmt: skip
BAR_LABELS = {
    Score.PROBABILITY: "drop of the probability when covered",
    Score.LOGIT: "drop of the logit when covered",
    Score.LOSS: "rise of the loss −log p when covered",
}


@dataclass(frozen=True, eq=False)
class Look:
    """How maps are drawn.

    Attributes:
        colormap: diverging (symmetric about zero) or one that runs from smallest to largest.
        alpha: weight of the map over the image, 0…1.
        backdrop: what maps are laid over, uint8 (h, w, 3): the working image's crop in the file's
            own pixels; None for the working image itself.
    """

    colormap: Colormap = Colormap.DIVERGING
    alpha: float = 0.5
    backdrop: np.ndarray | None = None


def draw(result: OcclusionResult, look: Look | None = None) -> dict[str, Figure]:
    """All figures of one result, by the file name they are meant for.

    `overlay.png` (map over image), `heatmap.png` (map alone), `probability.png` (the class's
    probability at each position: blue where covering hurts), `label.png` (the most probable class
    at each position) and, with a layer watched, `activation.png`.
    """
    look = look or Look()
    figures = {
        "overlay.png": _grid(result, lambda axes, panel: _map(axes, result, panel, look, True)),
        "heatmap.png": _grid(result, lambda axes, panel: _map(axes, result, panel, look, False)),
        "probability.png": _grid(result, lambda axes, panel: _probability(axes, result, panel)),
        "label.png": _labels(result, look),
    }
    if result.measured.activation:
        figures["activation.png"] = _activation(result)
    return figures


def _size(result: OcclusionResult) -> tuple[int, int]:
    height, width = result.measured.image.pixels.shape[1:]
    return int(height), int(width)


def _layout(result: OcclusionResult) -> tuple[int, int]:
    """Rows and columns: a row per target and a column per mask, one of them wrapped if alone."""
    masks = len(result.measured.grids)
    count = len(result.panels)
    if 1 < masks <= MOST_COLUMNS and masks < count:
        return count // masks, masks
    columns = min(count, MOST_COLUMNS)
    return -(-count // columns), columns


def _axes_grid(
    rows: int, columns: int, size: tuple[int, int], legend: float = 0.0
) -> tuple[Figure, list[Axes]]:
    height = PANEL_WIDTH * 0.78 * size[0] / size[1] + 0.55
    figure = new_figure(PANEL_WIDTH * columns + legend, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _grid(result: OcclusionResult, paint: Callable[[Axes, Panel], None]) -> Figure:
    rows, columns = _layout(result)
    figure, axes = _axes_grid(rows, columns, _size(result))
    for cell, panel in zip(axes, result.panels, strict=False):
        paint(cell, panel)
        title(cell, _heading(result, panel))
        bare(cell)
    for cell in axes[len(result.panels) :]:
        cell.set_visible(False)
    return figure


def _heading(result: OcclusionResult, panel: Panel) -> str:
    name = result.measured.labels[panel.target]
    note = " (true class)" if panel.target == result.label else ""
    grid = panel.grid
    return f"{name}{note}  p = {panel.probability:.3f}\nmask {grid.name}, stride {grid.stride}"


def _background(axes: Axes, result: OcclusionResult, look: Look) -> None:
    """The image in grey, its corner at (0, 0); smoothed where its pixels are large."""
    # From 8-bit pixels, as they are on disk, so that a picture drawn again is the same to the bit.
    pixels = input_pixels(result) if look.backdrop is None else look.backdrop
    smooth = "bicubic" if min(pixels.shape[:2]) < SMALL else "antialiased"
    height, width = _size(result)
    extent = (0.0, float(width), float(height), 0.0)
    grey = pixels @ LUMINANCE / 255
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation=smooth, extent=extent)


def _map(axes: Axes, result: OcclusionResult, panel: Panel, look: Look, over_image: bool) -> None:
    values = panel.map_HW.numpy()
    if look.colormap is Colormap.DIVERGING:
        limit = symmetric_limit(values)
        norm = Normalize(-limit, limit)
    else:
        low = float(values.min())
        norm = Normalize(low, max(float(values.max()), low + 1e-12))
    cmap = cmap_of(look.colormap)
    if over_image:
        _background(axes, result, look)
    alpha = look.alpha if over_image else 1.0
    height, width = values.shape
    extent = (0.0, float(width), float(height), 0.0)
    axes.imshow(values, cmap=cmap, norm=norm, alpha=alpha, interpolation="nearest", extent=extent)
    add_colorbar(ScalarMappable(norm, cmap), axes, BAR_LABELS[result.score])


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


def _probability(axes: Axes, result: OcclusionResult, panel: Panel) -> None:
    values = panel.probabilities_P.numpy()
    shown = _cells(axes, panel, _size(result), values, cmap="RdYlBu_r")
    add_colorbar(shown, axes, "probability of the class with this place covered")


def _labels(result: OcclusionResult, look: Look) -> Figure:
    """The most probable class at each position, one panel per mask, one legend for all."""
    measured, grids = result.measured, result.measured.grids
    by_mask = [next(p for p in result.panels if p.grid is grid) for grid in grids]
    predicted = int(measured.base_logits_K.argmax())
    winners = np.concatenate([panel.winners_P.numpy() for panel in by_mask])
    classes, counts = np.unique(winners[winners != predicted], return_counts=True)
    ranked = classes[np.argsort(-counts, kind="stable")]
    shown, rest = ranked[:LEGEND_CLASSES], ranked[LEGEND_CLASSES:]
    colours = [UNCHANGED, *CLASS_COLOURS[: len(shown)], OTHER_GRAY]
    code = np.full(len(measured.labels), len(colours) - 1)
    code[predicted] = 0
    code[shown] = np.arange(1, len(shown) + 1)
    columns = min(len(by_mask), MOST_COLUMNS)
    rows = -(-len(by_mask) // columns)
    figure, axes = _axes_grid(rows, columns, _size(result), legend=1.8)
    for cell, panel in zip(axes, by_mask, strict=False):
        _background(cell, result, look)
        codes = np.ma.masked_equal(code[panel.winners_P.numpy()], 0)
        limits = {"vmin": -0.5, "vmax": len(colours) - 0.5}
        _cells(
            cell, panel, _size(result), codes, cmap=ListedColormap(colours), alpha=0.75, **limits
        )
        title(cell, f"most probable class\nmask {panel.grid.name}, stride {panel.grid.stride}")
        bare(cell)
    for cell in axes[len(by_mask) :]:
        cell.set_visible(False)
    total = len(winners)
    names = [
        (measured.labels[index], int((winners == index).sum()) / total)
        for index in (predicted, *shown)
    ]
    if len(rest):
        names.append((f"{len(rest)} other classes", float(np.isin(winners, rest).mean())))
    names[0] = (f"{names[0][0]} (as uncovered)", names[0][1])
    handles = [
        Patch(facecolor=colour, edgecolor="#555555", label=escape(f"{name[:40]}  {share:.1%}"))
        for colour, (name, share) in zip(
            [*colours[: len(names) - bool(len(rest))], OTHER_GRAY], names, strict=False
        )
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=FONT_SIZE - 1, frameon=False)
    return figure


def _activation(result: OcclusionResult) -> Figure:
    """The watched map's sum at each position: blue where covering takes the layer's stimulus."""
    activation = result.measured.activation
    assert activation is not None  # noqa: S101 (the caller looked)
    grids = result.measured.grids
    by_mask = [next(p for p in result.panels if p.grid is grid) for grid in grids]
    columns = min(len(by_mask), MOST_COLUMNS)
    figure, axes = _axes_grid(-(-len(by_mask) // columns), columns, _size(result))
    parts = torch.split(activation.sums_P, [len(grid.boxes_P4) for grid in grids])
    for cell, panel, sums_P in zip(axes, by_mask, parts, strict=False):
        shown = _cells(cell, panel, _size(result), sums_P.numpy(), cmap="RdYlBu_r")
        add_colorbar(shown, cell, f"summed activation ({activation.base:.4g} when uncovered)")
        heading = f"{activation.layer}, channel {activation.channel}"
        title(cell, f"{heading}\nmask {panel.grid.name}, stride {panel.grid.stride}")
        bare(cell)
    for cell in axes[len(by_mask) :]:
        cell.set_visible(False)
    return figure


def input_pixels(result: OcclusionResult) -> np.ndarray:
    """The working image as uint8 (H, W, 3), for `input.png`."""
    return to_uint8(result.measured.image.pixels.numpy().transpose(1, 2, 0))
