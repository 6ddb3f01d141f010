"""Figures of an occlusion experiment.

A figure begins with the image and has a panel per class and mask. Maps have diverging colours
symmetric about zero: red is evidence for the class (occluding it hurts), blue is evidence against
it. All panels of a figure have one scale unless another one is requested.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import pixels_text
from cnnviz.core.maps import agreement
from cnnviz.core.models.boxes import BoxReading
from cnnviz.core.models.targets import RegionReading
from cnnviz.core.output.canvas import Bar, Entry
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.layout import MOST_COLUMNS, Cell, board, in_rows, picture, scaled
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import (
    Scale,
    cmap_of,
    enlarged,
    hatch_pixels,
    input_cell,
    map_cell,
    outline_pixels,
    paint_kinds,
    paint_map,
    scales,
)
from cnnviz.core.output.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW
from cnnviz.occlusion.masks import nearest_positions
from cnnviz.occlusion.measurement import Activation
from cnnviz.occlusion.options import MapKind, Score, Upsample
from cnnviz.occlusion.results import Agreement, OcclusionResult, Panel
from cnnviz.occlusion.sufficient_figure import draw_sufficient

LEGEND_CLASSES = 9
OTHER_GRAY = "#8c8c8c"
IN_FOUR = 0.75
"""Size of the panels of a row of four, of that of a single one."""
FLIPPED = 0.7
"""Opacity of the colour of a class that becomes the prediction."""
# Okabe and Ito's colours, distinct for people with colour-blindness, and a brown.
CLASS_COLOURS = (
    ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE, "#000000", "#8C6D46",
)  # fmt: skip
DISAGREEMENT = (
    Entry("occlusion only", BLUE, "////"),
    Entry("Grad-CAM only", GREEN, "\\\\\\\\"),
)
COMPARED = {
    Score.LOG_ODDS: "drop of the log-odds",
    Score.LOGIT: "drop of the logit",
    Score.PROBABILITY: "drop of the probability",
    Score.LOSS: "rise of −log p",
}
PER_PIXEL = {
    Upsample.COVERAGE: "mean {} over the masks that cover a pixel",
    Upsample.DENSITY: (
        "mean {} over the masks that cover a pixel (near the edge, missing masks count as 0)"
    ),
    Upsample.BICUBIC: "{} with a mask centred here (interpolated)",
    Upsample.BILINEAR: "{} with a mask centred here (interpolated)",
    Upsample.NEAREST: "{} with a mask centred here",
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
    probability at each position: dark where occluding hurts), `label.png` (the most probable class
    at each position), with a gradient `agreement.png`, with `--sufficient` `sufficient.png` and,
    with `--layer`, `activation.png`. A regression has `value.png` in place of `probability.png` and
    `label.png`; where each class is read at its own pixels, there is no `label.png`. A box has
    `boxes.png`: where it vanishes, and where others appear.

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
        "heatmap.png": _grid(result, look, _maps(result, look, None)),
        "probability.png" if has_classes else "value.png": _readings(result, look),
    }
    reading = result.measured.reading
    if isinstance(reading, BoxReading):
        figures["boxes.png"] = _boxes(result, reading, beneath)
    elif has_classes and not (isinstance(reading, RegionReading) and not reading.pointed):
        figures["label.png"] = _labels(result, beneath)
    if any(result.agreements):
        figures["agreement.png"] = _agreements(result, look, beneath)
    if result.sufficient:
        figures["sufficient.png"] = draw_sufficient(result, _input(result, beneath))
    if result.activation:
        figures["activation.png"] = _activation(result, result.activation, look, beneath)
    return figures


def draw_both(sides: Sequence[tuple[OcclusionResult, Pixels]], look: Look) -> Figure:
    """Draws `both.png`: each image and its map below the other's, each on its own scale."""
    rows = []
    for result, beneath in sides:
        panel, map_HW = result.targets[0], result.maps[0].numpy()
        scale = scales([map_HW], look, unit(result))[0]
        cell = _map(result, panel, heading(result, panel), map_HW, scale, look, beneath)
        rows.append([_input(result, beneath), cell])
    return board(rows)


def preview(result: OcclusionResult) -> Figure | None:
    """The figure that a notebook shows."""
    return draw_overlay(result, Look()) if result.measured else None


def draw_overlay(
    result: OcclusionResult,
    look: Look,
    backdrop: Pixels | None = None,
    lines: Sequence[str] = (),
) -> Figure:
    """Draws `overlay.png` only: the image, and the map over it; see `draw`."""
    beneath = input_pixels(result) if backdrop is None else backdrop
    return _grid(result, look, _maps(result, look, beneath, lines), beneath)


def input_pixels(result: OcclusionResult) -> Pixels:
    """The working image as uint8 (H, W, 3), for `input.png`."""
    return image_pixels(result.measured.image)


def _input(result: OcclusionResult, beneath: Pixels) -> Cell:
    """The image in colour, with its prediction."""
    size, top = result.measured.size, result.prediction
    text = f"{top.class_}, {result.measured.head.text(top.reading)}" if top else ""
    return input_cell(beneath, size, text)


def _grid(
    result: OcclusionResult, look: Look, cells: Sequence[Cell], beneath: Pixels | None = None
) -> Figure:
    """The image, if there is one, and the panels: of several masks a row per class."""
    masks = len(result.measured.grids)
    first = [] if beneath is None else [_input(result, beneath)]
    if look.columns is None and 1 < masks < MOST_COLUMNS:
        rows = in_rows(cells, masks)
        return board([[*first, *row] for row in rows])
    return board(in_rows([*first, *cells], look.columns))


def _maps(
    result: OcclusionResult, look: Look, over: Pixels | None, lines: Sequence[str] = ()
) -> list[Cell]:
    """A cell for each map that is drawn."""
    maps = [map_HW.numpy() for map_HW in result.maps]
    agreed = result.method is MapKind.AGREEMENT
    cells = []
    for number, (panel, values_HW, scale) in enumerate(
        zip(result.targets, maps, scales(maps, look, unit(result), one_sided=agreed), strict=True)
    ):
        title, below = heading(result, panel), lines[number] if lines else ""
        cells.append(_map(result, panel, title, values_HW, scale, look, over, below))
    return cells


def _map(
    result: OcclusionResult,
    panel: Panel,
    title: str,
    values_HW: NDArray[np.float32],
    scale: Scale,
    look: Look,
    over: Pixels | None,
    below: str = "",
) -> Cell:
    def mark(axes: Axes) -> None:
        _outline_read(axes, result, panel)

    return map_cell(values_HW, scale, look, over, title, below, mark=mark)


def heading(result: OcclusionResult, panel: Panel) -> str:
    """Describes a panel: class, probability before and after occlusion, mask and stride."""
    measured = result.measured
    note = " (true class)" if result.label and panel.index == result.label.index else ""
    own = "mean over its pixels" if measured.reading and measured.reading.where else ""
    where = "\n" + (measured.place or own) if measured.place or own else ""
    change = measured.head.change_text(panel.reading, panel.occluded)
    return (
        f"{panel.class_}{note}  {change}\nmost important position occluded; {_mask(panel)}{where}"
    )


def _mask(panel: Panel) -> str:
    return f"mask {panel.grid.name}, stride {pixels_text(panel.stride)}"


def unit(result: OcclusionResult) -> str:
    """Names the unit of the maps that are drawn."""
    if result.method is MapKind.AGREEMENT:
        return _agreement_unit(next(a for a in result.agreements if a is not None))
    return _occlusion_unit(result)


def _occlusion_unit(result: OcclusionResult) -> str:
    head = result.measured.head
    compared = COMPARED[result.compared] if head.has_classes else f"drop of the {head.word}"
    if result.compared is Score.LOGIT and head.probabilities_given:
        compared = "drop of the log-odds"
    return PER_PIXEL[result.upsample].format(compared)


def _agreement_unit(together: Agreement) -> str:
    return f"mean of occlusion and {together.with_.split()[0]}, each divided by its 99 % quantile"


def _outline_read(axes: Axes, result: OcclusionResult, panel: Panel) -> None:
    """Outlines the pixels of a dense output that were read."""
    measured = result.measured
    if measured.reading is not None:
        outline_pixels(axes, measured.reading.of(panel.index).numpy(), measured.size)


def _agreements(result: OcclusionResult, look: Look, beneath: Pixels) -> Figure:
    """A row for each panel: image, occlusion, gradient, where the two agree and where not."""
    pairs = [(panel, panel.agreement) for panel in result.targets if panel.agreement]
    occluded = [panel.map_HW.numpy() for panel, _ in pairs]
    traced = [both.gradient_HW.numpy() for _, both in pairs]
    agreed = [both.map_HW.numpy() for _, both in pairs]
    free = replace(look, scale=look.scale if look.limit is None else Look().scale)
    columns = (
        scales(occluded, look, _occlusion_unit(result)),
        scales(traced, free, "Grad-CAM (arbitrary unit)", one_sided=True),
        scales(agreed, free, _agreement_unit(pairs[0][1]), one_sided=True),
    )
    rows = []
    for row, (panel, together) in enumerate(pairs):
        correlation = together.rank_correlation
        text = "none (a map is constant)" if correlation is None else f"{correlation:.2f}"
        titles = (
            heading(result, panel),
            together.with_.replace(" at ", "\nat "),
            f"mean of both\nrank correlation {text}",
        )
        maps = (occluded[row], traced[row], agreed[row])
        cells = [
            _map(result, panel, title, values_HW, scale[row], look, beneath)
            for title, values_HW, scale in zip(titles, maps, columns, strict=True)
        ]
        cells[2] = _both(
            cells[2], together, (occluded[row], traced[row]), columns[2][row], look, beneath
        )
        shown = [_input(result, beneath), *cells]
        rows.append([scaled(cell, IN_FOUR) for cell in shown])
    return board(rows, legend=DISAGREEMENT)


def _both(
    cell: Cell,
    together: Agreement,
    parts: Sequence[NDArray[np.float32]],
    scale: Scale,
    look: Look,
    beneath: Pixels,
) -> Cell:
    """The agreement, interpolated as its parts are, hatched where only one sees evidence."""

    def joined(size: tuple[int, int]) -> NDArray[np.float32]:
        maps = [torch.from_numpy(enlarged(part, size, look.display)) for part in parts]
        return agreement(*maps).numpy()

    def paint(axes: Axes) -> None:
        paint_map(axes, together.map_HW.numpy(), scale, look.display, beneath, joined)
        for inside_HW, entry in zip(
            (together.only_occlusion_HW, together.only_gradient_HW), DISAGREEMENT, strict=True
        ):
            hatch_pixels(axes, inside_HW.numpy(), entry.colour, entry.hatch)

    return replace(cell, paint=paint)


def _readings(result: OcclusionResult, look: Look) -> Figure:
    """The class's probability at each position; all panels have one sequential scale."""
    has_classes = result.measured.head.has_classes
    values = [panel.probabilities_P.numpy() for panel in result.targets]
    what = "probability of the class" if has_classes else result.measured.head.word
    readings = [panel.reading for panel in result.targets]
    low = 0.0 if has_classes else float(min(*readings, *(v.min() for v in values)))
    high = max(*readings, *(float(v.max()) for v in values), low + 1e-12)
    label = f"{what} with a mask centred here (near the edge: with the nearest mask)"
    scale = Scale(low, high, cmap_of("viridis"), label, 1.0, fading=False)
    cells = []
    for panel, values_P in zip(result.targets, values, strict=True):
        title = f"{panel.class_}  {result.measured.head.text(panel.reading)}\n{_mask(panel)}"
        bar = scale.bar
        if len({panel.index for panel in result.targets}) == 1:
            bar = replace(bar, mark=(panel.reading, "original"))
        cells.append(_positions(result, panel, values_P, scale, look, title, bar))
    return _grid(result, look, [replace(cell, bar=cells[0].bar) for cell in cells])


def _positions(
    result: OcclusionResult,
    panel: Panel,
    values_P: NDArray[np.floating],
    scale: Scale,
    look: Look,
    title: str,
    bar: Bar,
) -> Cell:
    """A value of each position, each in the pixels that are nearest to its mask."""
    size = result.measured.size
    values_HW = values_P.astype(np.float32)[nearest_positions(panel.grid, size).numpy()]
    return picture(
        lambda axes: paint_map(axes, values_HW, scale, look.display), size, title, bar=bar
    )


def _by_mask(result: OcclusionResult) -> list[Panel]:
    """A panel of each mask, of whichever class."""
    return [next(p for p in result.targets if p.grid is grid) for grid in result.measured.grids]


def _labels(result: OcclusionResult, beneath: Pixels) -> Figure:
    """The most probable class at each position where it is another one, a panel per mask."""
    measured = result.measured
    predicted = int(measured.base_logits_K.argmax())

    def title(panel: Panel, share: str) -> str:
        return f"prediction flips at {share} of the positions\n{_mask(panel)}"

    return _changes(result, beneath, _by_mask(result), measured.labels, predicted, title)


def _boxes(result: OcclusionResult, reading: BoxReading, beneath: Pixels) -> Figure:
    """What happens to each box at each position, a panel per box and mask."""

    def title(panel: Panel, _share: str) -> str:
        assert panel.flips is not None  # noqa: S101 (boxes have them)
        share = f"{100 * panel.flips.share:.1f} %"
        return f"{panel.class_} vanishes at {share} of the positions\n{_mask(panel)}"

    return _changes(result, beneath, result.targets, reading.outcomes, 0, title)


def _changes(
    result: OcclusionResult,
    beneath: Pixels,
    panels: Sequence[Panel],
    names: Sequence[str],
    unchanged: int,
    heading_of: Callable[[Panel, str], str],
) -> Figure:
    """The positions of each panel in the colour of its winner, without one where unchanged."""
    size = result.measured.size
    winners = np.concatenate([panel.winners_P.numpy() for panel in panels])
    classes, counts = np.unique(winners[winners != unchanged], return_counts=True)
    ranked = classes[np.argsort(-counts, kind="stable")].tolist()
    colours = dict(zip(ranked, CLASS_COLOURS[:LEGEND_CLASSES], strict=False))
    codes = np.zeros(len(names), np.intp)
    codes[ranked] = len(colours) + 1
    codes[list(colours)] = np.arange(1, len(colours) + 1)
    opaque = [(*to_rgb(colour), FLIPPED) for colour in (*colours.values(), OTHER_GRAY)]
    rgba = np.array([(0.0, 0.0, 0.0, 0.0), *opaque], np.float32)
    cells = []
    for panel in panels:
        kinds = codes[panel.winners_P.numpy()][nearest_positions(panel.grid, size).numpy()]
        share = float((panel.winners_P.numpy() != unchanged).mean())

        def paint(axes: Axes, kinds: NDArray[np.intp] = kinds, panel: Panel = panel) -> None:
            paint_kinds(axes, kinds, rgba, beneath)
            _outline_read(axes, result, panel)

        cells.append(picture(paint, size, heading_of(panel, f"{100 * share:.1f} %")))
    shares = {index: float((winners == index).mean()) for index in ranked}
    name = names[unchanged]
    legend = [
        Entry(f"{names[index]} {100 * shares[index]:.1f} %", colour)
        for index, colour in colours.items()
    ]
    if rest := ranked[len(colours) :]:
        share = sum(shares[index] for index in rest)
        legend.append(Entry(f"{len(rest)} other classes {100 * share:.1f} %", OTHER_GRAY))
    share = float((winners == unchanged).mean())
    legend.append(Entry(f"no colour: {name} (unchanged) {100 * share:.1f} %", "none", edge="#888"))
    return board(in_rows(cells), legend=legend)


def _activation(
    result: OcclusionResult, activation: Activation, look: Look, beneath: Pixels
) -> Figure:
    """The channel's sum at each position: blue where occlusion takes away its stimulus."""
    by_mask = _by_mask(result)
    parts = torch.split(activation.sums_P, [panel.positions for panel in by_mask])
    values = [sums_P.numpy() for sums_P in parts]
    limit = max(*(float(np.abs(v - activation.sum).max(initial=0.0)) for v in values), 1e-12)
    low, high = activation.sum - limit, activation.sum + limit
    label = "summed activation with a mask here, compared with the original"
    scale = Scale(low, high, cmap_of("RdBu_r"), label, 1.0, fading=False)
    bar = replace(scale.bar, mark=(activation.sum, "original"))
    cells = [
        _positions(
            result,
            panel,
            sums_P,
            scale,
            look,
            f"{activation.layer}, channel {activation.channel}\n{_mask(panel)}",
            bar,
        )
        for panel, sums_P in zip(by_mask, values, strict=False)
    ]
    return _grid(result, look, cells, beneath)
