"""The figures of a diff: the largest changes side by side, and all classes or layers at a glance.

Shapes: H W rows and columns of a map, h w of a picture, C H W of a kernel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cnnviz.core.output.drawing import (
    Column,
    bare,
    beside,
    draw_bars,
    escape,
    new_figure,
    symmetric_limit,
    title,
    under,
)
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_map, grid_of_axes, panels
from cnnviz.core.output.style import BLUE, FONT_SIZE, ink
from cnnviz.diff.options import NAMED
from cnnviz.diff.results import DiffResult, FilterChange, ImageChange

Pixels = NDArray[np.uint8]
Mapped = Callable[[str], tuple[NDArray[np.floating], Pixels | None]]
CELL, TEXT = 1.15, 3.3  # inches: a small picture, the text left of a row
CAPTION = 0.3
NEIGHBOURS = 5
MOST_LAYERS = 60
MOST_PANELS = 12
KEPT, GREY = BLUE, 225


@dataclass(frozen=True, eq=False)
class Small:
    """A small picture of a strip; `pixels` is None where it can no longer be read."""

    pixels: Pixels | None
    caption: str = ""
    framed: bool = False


def draw_maps(
    result: DiffResult, mapped: tuple[Mapped, Mapped], top: int, look: Look, unit: str
) -> Figure:
    """Draws the most changed images: the maps of both networks side by side, on one scale.

    Args:
        result: of runs that have maps.
        mapped: gives the map and the picture of an image, for each run.
        top: maximum number of images.
        look: colours.
        unit: of the maps' values.

    Raises:
        CnnvizError: a file of a run no longer exists.
    """
    changes = result.worst_images[:top]
    pairs = [[read(change.image) for read in mapped] for change in changes]
    size = (int(pairs[0][0][0].shape[0]), int(pairs[0][0][0].shape[1]))
    figure, axes = panels(2 * len(changes), size, columns=4 if len(changes) > 1 else 2)
    for number, (change, pair) in enumerate(zip(changes, pairs, strict=True)):
        limit = max(symmetric_limit(map_HW) for map_HW, _ in pair)
        known = change.agreement is not None
        alike = f"maps agree {change.agreement:.2f}" if known else "a map is flat"
        for panel, (map_HW, picture), side, predicted, probability, line in zip(
            axes[2 * number : 2 * number + 2],
            pair,
            "ab",
            (change.a, change.b),
            (change.probability_a, change.probability_b),
            (f"{PurePath(change.image).name}{_label(change, ', ')}", alike),
            strict=True,
        ):
            draw_map(panel, map_HW, look, unit, over=picture, limit=limit)
            bare(panel)
            sure = "" if probability is None else f" {probability:.2f}"
            title(panel, f"{line}\n{side}: {predicted}{sure}")
    return figure


def _label(change: ImageChange, before: str) -> str:
    return f"{before}is {change.label}" if change.label else ""


def draw_strips(rows: Sequence[tuple[str, Sequence[Small | None]]], heading: str) -> Figure:
    """Draws rows of small pictures, or gaps, with a text to the left."""
    columns = max(len(cells) for _, cells in rows)
    height = (CELL + CAPTION) * len(rows) + 0.4
    figure = new_figure(TEXT + columns * CELL + 0.3, height)
    widths = [TEXT / CELL, *[1.0] * columns]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=widths)
    for axes, (text, cells) in zip(grid, rows, strict=True):
        beside(axes[0], text, 52)
        for place, panel in enumerate(axes[1:]):
            bare(panel)
            if place < len(cells) and (cell := cells[place]) is not None:
                _draw_small(panel, cell)
    figure.suptitle(escape(heading, 120), fontsize=FONT_SIZE)
    return figure


def _draw_small(axes: Axes, cell: Small) -> None:
    pixels = np.full((8, 8, 3), GREY, np.uint8) if cell.pixels is None else cell.pixels
    axes.imshow(pixels, interpolation="nearest" if min(pixels.shape[:2]) < 64 else "antialiased")
    under(axes, cell.caption or ("not readable" if cell.pixels is None else ""), 20)
    if cell.framed:
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False)
        frame.set(edgecolor=KEPT, linewidth=2.5)
        axes.add_patch(frame)


def draw_neighbors(result: DiffResult, picture: Callable[[str], Pixels | None], top: int) -> Figure:
    """Draws the images whose neighbours changed most, with the nearest ones in both networks."""
    answers, near = result.sides[0].answers, result.columns and result.columns.near
    if answers is None or not near:
        raise ValueError("these runs have no features")
    row_of = {name: row for row, name in enumerate(answers.images)}
    rows: list[tuple[str, list[Small | None]]] = []
    for change in result.worst_images[:top]:
        near_a, near_b = (rows_Nk[row_of[change.image]].tolist() for rows_Nk in near)
        text = (
            f"{PurePath(change.image).name}{_label(change, chr(10))}\na: {change.a}, "
            f"b: {change.b}\nkeeps {change.kept or 0:.0%} of {len(near_a)} neighbours"
        )
        cells: list[Small | None] = [Small(picture(change.image), "the image")]
        for side, nearest, other in (("a", near_a, near_b), ("b", near_b, near_a)):
            cells.append(None)
            for place, row in enumerate(nearest[:NEIGHBOURS], start=1):
                caption = f"{side} {place}: {answers.labels[row]}".rstrip(": ")
                cells.append(Small(picture(answers.images[row]), caption, framed=row in other))
        rows.append((text, cells))
    return draw_strips(rows, "nearest images in a and in b; framed: among the nearest in both")


def draw_filters(
    result: DiffResult,
    cells: Callable[[FilterChange], Sequence[Sequence[Small]]],
    heading: str,
    top: int,
    strength: str,
) -> Figure | None:
    """Draws the most changed filters, a row of pictures for each network; None without pictures."""
    rows: list[tuple[str, Sequence[Small]]] = []
    drawn = ((change, strips) for change in result.worst_filters if (strips := cells(change)))
    for change, strips in islice(drawn, top):
        texts = [_filter_text(change, strength), *[""] * (len(strips) - 1)]
        rows += zip(texts, strips, strict=True)
    return draw_strips(rows, heading) if rows else None


def _filter_text(change: FilterChange, strength: str) -> str:
    lines = [f"{change.layer}, filter {change.filter}"]
    lines.append(f"{strength}: a {change.a:.3g}, b {change.b:.3g}")
    lines += ["died"] * change.died + ["revived"] * change.revived
    if change.likeness is not None:
        lines.append(f"likeness {change.likeness:.2f}")
    if change.nearest is not None and change.nearest != change.filter:
        lines.append(f"most similar: b's {change.nearest} ({change.nearest_likeness:.2f})")
    return "\n".join(lines)


def draw_layers(result: DiffResult, strength: str) -> Figure:
    """Draws how similar the filters of each layer are; if unknown, their strengths.

    Args:
        result: of runs that have filters.
        strength: what the strength of a filter is.
    """
    layers = [layer for layer in result.layers if layer.likeness is not None]
    if not layers:
        return _draw_strengths(result, strength)
    shown = layers[:MOST_LAYERS]
    figure = new_figure(7.5, 1.4 + 0.3 * len(shown))
    axes = figure.add_subplot()
    values = [[f.likeness for f in layer.changes if f.likeness is not None] for layer in shown]
    axes.boxplot(
        values,
        orientation="horizontal",
        widths=0.6,
        flierprops={"markersize": 2.5, "markeredgecolor": KEPT},
        medianprops={"color": ink()},
    )
    names = [f"{layer.layer} ({layer.filters})" for layer in shown]
    axes.set_yticks(range(1, len(shown) + 1), [escape(n, 40) for n in names])
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.invert_yaxis()
    axes.set_xlim(min(-0.05, *(min(likeness) for likeness in values)), 1.05)
    axes.set_xlabel("likeness of the filters", fontsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    more = len(layers) - len(shown)
    title(axes, "filters of a and b, number by number" + (f"; {more} more layers" if more else ""))
    return figure


def _draw_strengths(result: DiffResult, strength: str) -> Figure:
    shown = result.layers[:MOST_PANELS]
    figure, cells = grid_of_axes(len(shown), (3.2, 3.2))
    for axes, layer in zip(cells, shown, strict=True):
        a, b = [f.a for f in layer.changes], [f.b for f in layer.changes]
        ends = [min(*a, *b), max(*a, *b)]
        axes.plot(ends, ends, color="grey", linewidth=0.7, linestyle=":")
        axes.scatter(a, b, s=14, color=KEPT, alpha=0.7, linewidths=0)
        for change in sorted(layer.changes, key=lambda f: -abs(f.b - f.a))[:3]:
            axes.annotate(str(change.filter), (change.a, change.b), fontsize=FONT_SIZE - 2)
        axes.set_xlabel(f"{strength}, a", fontsize=FONT_SIZE - 1)
        axes.set_ylabel(f"{strength}, b", fontsize=FONT_SIZE - 1)
        axes.tick_params(labelsize=FONT_SIZE - 2)
        axes.spines[["top", "right"]].set_visible(False)
        rank = layer.rank_correlation
        title(axes, layer.layer + ("" if rank is None else f"\nrank correlation {rank:.2f}"))
    return figure


def draw_classes(result: DiffResult) -> Figure:
    """Draws all classes, those first that changed more than the others."""
    classes = result.classes
    names = list(dict.fromkeys(name for change in classes for name in change.signs))
    columns = [
        Column(
            "changed more than others",
            [change.certainty for change in classes],
            NAMED,
            "not judged",
        ),
        Column("other predictions", [change.flips for change in classes]),
    ]
    for name in names:
        values = [change.signs[name].value if name in change.signs else None for change in classes]
        columns.append(Column(name, values))
    labelled = any(change.label for change in result.worst_images)
    return draw_bars(
        [f"{change.class_} ({change.images})" for change in classes],
        columns,
        f"{result.images} images, by " + ("label" if labelled else "a's prediction"),
        "classes",
    )
