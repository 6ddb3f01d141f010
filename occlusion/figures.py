"""The pictures of an occlusion experiment.

A figure has one panel per target and mask. Maps are drawn with diverging colours symmetric about
zero: red is evidence for the class (covering it hurts), blue is evidence against it. Under an
overlay the image is grey, so that every colour seen is the map's.
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
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import (
    MOST_COLUMNS,
    draw_map,
    draw_picture,
    hatch_pixels,
    legend,
    outline_pixels,
    panels,
)
from cnnviz.core.output.style import FONT_SIZE
from cnnviz.occlusion.choices import MapKind, Score, Upsample
from cnnviz.occlusion.experiment import OcclusionResult
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.panels import Panel
from cnnviz.occlusion.sufficient import HELD, Sufficiency

LEGEND_CLASSES = 9
OTHER_GRAY = "#d9d9d9"
UNCHANGED = "#ffffff"  # in the legend; on the picture such places are left clear
# Okabe and Ito's colours, told apart by people with colour-blindness, and a brown.
CLASS_COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2",
    "#D55E00", "#CC79A7", "#000000", "#8C6D46",
)  # fmt: skip
DISAGREEMENT = (
    ("occlusion alone", "#0072B2", "////"),
    ("the gradient alone", "#009E73", "\\\\\\\\"),
)
BAR_LABELS = {
    Score.PROBABILITY: "drop of the probability when covered",
    Score.LOGIT: "drop of the logit when covered",
    Score.LOSS: "rise of the loss −log p when covered",
}


def draw(
    result: OcclusionResult,
    look: Look | None = None,
    backdrop: NDArray[np.uint8] | None = None,
    lines: Sequence[str] = (),
) -> dict[str, Figure]:
    """All figures of one result, by the file name they are meant for.

    `overlay.png` (map over image), `heatmap.png` (map alone), `probability.png` (the class's
    probability at each position: blue where covering hurts), `label.png` (the most probable class
    at each position), where a gradient was traced `agreement.png`, where it was asked for
    `sufficient.png` and, with a layer watched, `activation.png`. A regression has `value.png` in
    place of `probability.png` and `label.png`; where each class is read at its own pixels, there is
    no `label.png`.

    Args:
        result: what to draw.
        look: how.
        backdrop: what maps are laid over, uint8 (h, w, 3): the working image's crop in the file's
            own pixels; None for the working image itself.
        lines: what is said under each panel of the overlay; none for nothing.
    """
    look = look or Look()
    beneath = input_pixels(result) if backdrop is None else backdrop
    has_classes = result.measured.head.has_classes
    figures = {
        "overlay.png": draw_overlay(result, look, backdrop, lines),
        "heatmap.png": _grid(result, look, lambda cell, at: _map(cell, result, at, look, None)),
        "probability.png" if has_classes else "value.png": _grid(
            result, look, lambda cell, at: _reading(cell, result, result.panels[at])
        ),
    }
    reading = result.measured.reading
    if has_classes and (reading is None or reading.pointed):
        figures["label.png"] = _labels(result, beneath)
    if any(result.agreements):
        figures["agreement.png"] = _agreements(result, look, beneath)
    if result.sufficiencies:
        figures["sufficient.png"] = _sufficiencies(result)
    if result.measured.activation:
        figures["activation.png"] = _activation(result)
    return figures


def draw_overlay(
    result: OcclusionResult,
    look: Look,
    backdrop: NDArray[np.uint8] | None = None,
    lines: Sequence[str] = (),
) -> Figure:
    """The map over the image alone, `overlay.png`; see `draw`."""
    beneath = input_pixels(result) if backdrop is None else backdrop
    return _grid(result, look, lambda cell, at: _map(cell, result, at, look, beneath), lines)


def _size(result: OcclusionResult) -> tuple[int, int]:
    height, width = result.measured.image.pixels.shape[1:]
    return int(height), int(width)


def _columns(result: OcclusionResult, look: Look) -> int:
    """A row per target and a column per mask, one of them wrapped if alone."""
    if look.columns is not None:
        return look.columns
    masks = len(result.measured.grids)
    return masks if 1 < masks <= MOST_COLUMNS else MOST_COLUMNS


def _grid(
    result: OcclusionResult,
    look: Look,
    paint: Callable[[Axes, int], None],
    lines: Sequence[str] = (),
) -> Figure:
    """A cell for each panel, painted by its number."""
    figure, axes = panels(len(result.panels), _size(result), columns=_columns(result, look))
    for number, cell in enumerate(axes):
        paint(cell, number)
        title(cell, heading(result, result.panels[number]))
        bare(cell)
        if lines:
            under(cell, lines[number])
    return figure


def heading(result: OcclusionResult, panel: Panel) -> str:
    """What a panel shows: class, probability, mask and stride."""
    name = result.measured.labels[panel.target]
    note = " (true class)" if panel.target == result.label else ""
    grid = panel.grid
    reads = result.measured.head.text(panel.probability)
    where = ""
    if result.measured.reading is not None:
        where = f"\n{result.measured.place or 'mean over its pixels'}"
    return f"{name}{note}  {reads}\n{_setting(result, grid)}{where}"


def _setting(result: OcclusionResult, grid: Grid) -> str:
    """`mask 63, stride 16, density`: the usual mean over covering masks is not named."""
    kind = "" if result.upsample is Upsample.COVERAGE else f", {result.upsample}"
    return f"mask {grid.name}, stride {grid.stride}{kind}"


def _map(
    axes: Axes,
    result: OcclusionResult,
    number: int,
    look: Look,
    over: NDArray[np.uint8] | None,
) -> None:
    occlusion = result.method is MapKind.OCCLUSION
    shown = result.maps[number].numpy()
    one_sided = not occlusion
    draw_map(axes, shown, look, unit(result), over=over, one_sided=one_sided, limit=look.scale)
    _outline_read(axes, result, result.panels[number])


def unit(result: OcclusionResult) -> str:
    """What the values of the maps that are drawn are."""
    return (
        _occlusion_unit(result) if result.method is MapKind.OCCLUSION else _agreement_unit(result)
    )


def _occlusion_unit(result: OcclusionResult) -> str:
    head, score = result.measured.head, result.score
    if score is Score.LOGIT and head.probabilities_given:
        return "drop of the log-odds when covered"
    return BAR_LABELS[score] if head.has_classes else "drop of the value when covered"


def _agreement_unit(result: OcclusionResult) -> str:
    gradient = result.measured.gradient
    assert gradient is not None  # noqa: S101 (there are agreements)
    return f"agreement of occlusion and {gradient.name.split()[0]}"


def _outline_read(axes: Axes, result: OcclusionResult, panel: Panel) -> None:
    """Around the pixels of a dense output that were read."""
    if result.measured.reading is not None:
        outline_pixels(axes, result.measured.reading.of(panel.target).numpy(), _size(result))


def _agreements(result: OcclusionResult, look: Look, beneath: NDArray[np.uint8]) -> Figure:
    """A row for each panel: occlusion, gradient, and where the two agree and where they do not."""
    gradient = result.measured.gradient
    assert gradient is not None  # noqa: S101 (there are agreements)
    pairs = [(p, a) for p, a in zip(result.panels, result.agreements, strict=True) if a is not None]
    figure, axes = panels(3 * len(pairs), _size(result), columns=3)
    for row, (panel, found) in enumerate(pairs):
        left, middle, right = axes[3 * row : 3 * row + 3]
        own, name = panel.map_HW.numpy(), _occlusion_unit(result)
        draw_map(left, own, look, name, over=beneath, limit=look.scale)
        title(left, heading(result, panel))
        traced = found.gradient_HW.numpy()
        draw_map(middle, traced, look, "weighted sum of its maps", over=beneath, one_sided=True)
        title(middle, gradient.name.replace(" at ", "\nat "))
        shown = found.map_HW.numpy()
        draw_map(right, shown, look, _agreement_unit(result), over=beneath, one_sided=True)
        for inside_HW, (_text, colour, hatch) in zip(
            (found.only_occlusion_HW, found.only_gradient_HW), DISAGREEMENT, strict=True
        ):
            hatch_pixels(right, inside_HW.numpy(), colour, hatch)
        correlation = found.rank_correlation
        how_far = "none (a map is constant)" if correlation is None else f"{correlation:.2f}"
        title(right, f"where both see evidence\nrank correlation {how_far}")
        for cell in (left, middle, right):
            _outline_read(cell, result, panel)
            bare(cell)
    legend(figure, DISAGREEMENT)
    return figure


def _sufficiencies(result: OcclusionResult) -> Figure:
    """A row for each class: what alone suffices, what must not go, and the way there."""
    image = result.measured.image
    figure, axes = panels(3 * len(result.sufficiencies), _size(result), columns=3)
    for row, found in enumerate(result.sufficiencies):
        left, middle, right = axes[3 * row : 3 * row + 3]
        name = result.measured.labels[found.target]
        region, losing = found.sufficient, found.losing
        kept_HW = found.pixels_of(region)
        _draw_replaced(left, image, found.fill_CHW, kept_HW)
        title(
            left,
            f"{region.share:.1%} of the picture suffices for {name}:\n"
            f"alone {region.probability:.3f} of {found.probability:.3f}, "
            f"the rest alone {found.without:.3f}",
        )
        if losing is None:
            _draw_replaced(middle, image, found.fill_CHW, torch.zeros_like(kept_HW))
            title(middle, "wholly covered,\nthe class is not lost")
        else:
            _draw_replaced(middle, image, found.fill_CHW, ~found.pixels_of(losing))
            title(
                middle,
                f"{losing.share:.1%} covered leave it {losing.probability:.3f}:\n{found.lost_when}",
            )
        _curves(right, found)
        for cell in (left, middle):
            bare(cell)
    return figure


def _draw_replaced(axes: Axes, image: WorkingImage, fill_CHW: Tensor, kept_HW: Tensor) -> None:
    """What the network sees with those pixels kept."""
    seen = replace(image, pixels=torch.where(kept_HW, image.pixels, fill_CHW))
    draw_picture(axes, image_pixels(seen), (kept_HW.shape[0], kept_HW.shape[1]), grey=False)


def _curves(axes: Axes, found: Sufficiency) -> None:
    """The class's probability while cells are kept alone, or covered, the most important first."""
    shares = np.linspace(0, 100, len(found.kept_curve))
    axes.plot(shares, found.kept_curve.numpy(), color="#0072B2", label="these alone kept")
    axes.plot(shares, found.covered_curve.numpy(), color="#D55E00", label="these covered")
    axes.axhline(HELD * found.probability, color="#555555", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("% of the cells, most important by occlusion first", fontsize=FONT_SIZE - 1)
    axes.set_ylabel("probability of the class", fontsize=FONT_SIZE - 1)
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    title(axes, f"dotted: {HELD:.0%} of what it is untouched")


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
    shown = _cells(axes, panel, _size(result), values, cmap="RdYlBu_r")
    what = "probability of the class" if result.measured.head.has_classes else "value"
    add_colorbar(shown, axes, f"{what} with this place covered")


def _labels(result: OcclusionResult, beneath: NDArray[np.uint8]) -> Figure:
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
    figure, axes = panels(len(by_mask), _size(result), legend=1.8)
    for cell, panel in zip(axes, by_mask, strict=True):
        draw_picture(cell, beneath, _size(result))
        codes = np.ma.masked_equal(code[panel.winners_P.numpy()], 0)
        limits = {"vmin": -0.5, "vmax": len(colours) - 0.5}
        _cells(
            cell, panel, _size(result), codes, cmap=ListedColormap(colours), alpha=0.75, **limits
        )
        grid = panel.grid
        title(cell, f"most probable class\nmask {grid.name}, stride {grid.stride}")
        bare(cell)
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
    figure, axes = panels(len(by_mask), _size(result))
    parts = torch.split(activation.sums_P, [len(grid.boxes_P4) for grid in grids])
    for cell, panel, sums_P in zip(axes, by_mask, parts, strict=False):
        shown = _cells(cell, panel, _size(result), sums_P.numpy(), cmap="RdYlBu_r")
        add_colorbar(shown, cell, f"summed activation ({activation.base:.4g} when uncovered)")
        heading = f"{activation.layer}, channel {activation.channel}"
        title(cell, f"{heading}\nmask {panel.grid.name}, stride {panel.grid.stride}")
        bare(cell)
    return figure


def input_pixels(result: OcclusionResult) -> NDArray[np.uint8]:
    """The working image as uint8 (H, W, 3), for `input.png`."""
    return image_pixels(result.measured.image)
