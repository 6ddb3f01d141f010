"""The figures of a diff: the largest changes side by side, and all classes or layers at a glance.

The two runs are called by their names, those of their folders.
Shapes: H W rows and columns of a map, h w of a picture, C H W of a kernel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cnnviz.core.choices import percent
from cnnviz.core.output.drawing import Column, draw_bars, label_axes, name_rows, names_width
from cnnviz.core.output.layout import Cell, board, in_rows, picture, plot, words
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_picture, map_cell, scales, small
from cnnviz.core.output.style import BLUE, SMALL, ink
from cnnviz.diff.options import NAMED
from cnnviz.diff.results import DiffResult, FilterChange, ImageChange

Pixels = NDArray[np.uint8]
Names = tuple[str, str]
Mapped = Callable[[str], tuple[NDArray[np.floating], Pixels | None]]
TEXT = 230.0  # points: the text left of a row
NEIGHBOURS = 5
MOST_LAYERS = 60
MOST_PANELS = 12
KEPT = BLUE


@dataclass(frozen=True, eq=False)
class Small:
    """A small picture of a strip; `pixels` is None where it can no longer be read."""

    pixels: Pixels | None
    caption: str = ""
    framed: bool = False

    def cell(self) -> Cell:
        """The picture as a cell."""
        return small(self.pixels, self.caption, KEPT if self.framed else "")


def draw_maps(
    result: DiffResult,
    mapped: tuple[Mapped, Mapped],
    top: int,
    look: Look,
    unit: str,
    names: Names,
) -> Figure:
    """Draws the most changed images: the maps of both networks side by side, on one scale."""
    rows: list[list[Cell]] = []
    for change in result.worst_images[:top]:
        pair = [read(change.image) for read in mapped]
        maps = [map_HW for map_HW, _ in pair]
        size = (int(maps[0].shape[0]), int(maps[0].shape[1]))
        known = change.agreement is not None
        alike = f"maps agree {change.agreement:.2f}" if known else "a map is flat"
        title = f"{PurePath(change.image).name}\n{_label(change, 'is ')}{alike}"
        shown = pair[0][1]
        row = [] if shown is None else [_picture(shown, size, title)]
        both = scales(maps, look, unit)
        for (map_HW, over), scale, name, predicted, probability in zip(
            pair,
            both,
            names,
            (change.a, change.b),
            (change.probability_a, change.probability_b),
            strict=True,
        ):
            sure = "" if probability is None else f" {probability:.2f}"
            lines = f"{name}: {predicted}{sure}" if row else f"{title}\n{name}: {predicted}{sure}"
            row.append(map_cell(map_HW, scale, look, over, lines, width=200.0))
        rows.append(row)
    pairs = len(rows[0]) == 2  # without the image, two of them fit into a row
    return board(in_rows([cell for row in rows for cell in row], 4) if pairs else rows)


def _picture(pixels: Pixels, size: tuple[int, int], title: str) -> Cell:
    return picture(lambda axes: draw_picture(axes, pixels, size), size, title, width=200.0)


def _label(change: ImageChange, before: str) -> str:
    return f"{before}{change.label}; " if change.label else ""


def draw_strips(rows: Sequence[tuple[str, Sequence[Small | None]]], heading: str) -> Figure:
    """Draws rows of small pictures, or gaps, with a text to the left."""
    cells = [
        [words(text, TEXT), *[cell.cell() if cell else None for cell in strip]]
        for text, strip in rows
    ]
    return board(cells, heading=heading, gap=8.0)


def draw_neighbors(
    result: DiffResult, read: Callable[[str], Pixels | None], top: int, names: Names
) -> Figure:
    """Draws the images whose neighbours changed most, with the nearest ones in both networks."""
    answers, near = result.sides[0].answers, result.columns and result.columns.near
    if answers is None or not near:
        raise ValueError("these runs have no features")
    row_of = {name: row for row, name in enumerate(answers.images)}
    rows: list[tuple[str, list[Small | None]]] = []
    for change in result.worst_images[:top]:
        near_a, near_b = (rows_Nk[row_of[change.image]].tolist() for rows_Nk in near)
        text = (
            f"{PurePath(change.image).name}\n{_label(change, 'is ')}"
            f"{names[0]}: {change.a}, {names[1]}: {change.b}\n"
            f"keeps {percent(change.kept or 0)} of {len(near_a)} neighbours"
        )
        cells: list[Small | None] = [Small(read(change.image), "the image")]
        for side, nearest, other in zip(names, (near_a, near_b), (near_b, near_a), strict=True):
            cells.append(None)
            for place, row in enumerate(nearest[:NEIGHBOURS], start=1):
                caption = f"{side} {place}: {answers.labels[row]}".rstrip(": ")
                cells.append(Small(read(answers.images[row]), caption, framed=row in other))
        rows.append((text, cells))
    heading = f"nearest images in {names[0]} and in {names[1]}; framed: among the nearest in both"
    return draw_strips(rows, heading)


def draw_filters(
    result: DiffResult,
    cells: Callable[[FilterChange], Sequence[Sequence[Small]]],
    heading: str,
    top: int,
    strength: str,
    names: Names,
) -> Figure | None:
    """Draws the most changed filters, a row of pictures for each network; None without pictures."""
    rows: list[tuple[str, Sequence[Small]]] = []
    drawn = ((change, strips) for change in result.worst_filters if (strips := cells(change)))
    for change, strips in islice(drawn, top):
        texts = [_filter_text(change, strength, names), *[""] * (len(strips) - 1)]
        rows += zip(texts, strips, strict=True)
    return draw_strips(rows, heading) if rows else None


def _filter_text(change: FilterChange, strength: str, names: Names) -> str:
    lines = [f"{change.layer}, filter {change.filter}"]
    lines.append(f"{strength}: {names[0]} {change.a:.3g}, {names[1]} {change.b:.3g}")
    lines += ["died"] * change.died + ["revived"] * change.revived
    if change.likeness is not None:
        lines.append(f"likeness {change.likeness:.2f}")
    if change.nearest is not None and change.nearest != change.filter:
        lines.append(
            f"most similar: {change.nearest} of {names[1]} ({change.nearest_likeness:.2f})"
        )
    return "\n".join(lines)


def draw_layers(result: DiffResult, strength: str, names: Names) -> Figure:
    """Draws how similar the filters of each layer are; if unknown, their strengths."""
    layers = [layer for layer in result.layers if layer.likeness is not None]
    if not layers:
        return _draw_strengths(result, strength, names)
    shown, more = layers[:MOST_LAYERS], len(layers) - MOST_LAYERS
    values = [[f.likeness for f in layer.changes if f.likeness is not None] for layer in shown]
    labels = [f"{layer.layer} ({layer.filters})" for layer in shown]

    def paint(axes: Axes) -> None:
        axes.boxplot(
            values,
            orientation="horizontal",
            positions=range(len(shown)),
            widths=0.6,
            flierprops={"markersize": 2.5, "markeredgecolor": KEPT},
            medianprops={"color": ink()},
        )
        name_rows(axes, labels)
        axes.set_xlim(min(-0.05, *(min(likeness) for likeness in values)), 1.05)
        label_axes(axes, "likeness of the filters of one number")

    heading = f"Filters of {names[0]} and {names[1]}" + (f"; {more} more layers" * (more > 0))
    left, height = names_width(labels), max(60.0, 20.0 * len(shown))
    return board([[plot(paint, heading, width=330.0, height=height, left=left)]])


def _draw_strengths(result: DiffResult, strength: str, names: Names) -> Figure:
    cells = []
    for layer in result.layers[:MOST_PANELS]:
        a, b = [f.a for f in layer.changes], [f.b for f in layer.changes]

        def paint(
            axes: Axes,
            a: Sequence[float] = a,
            b: Sequence[float] = b,
            changes: Sequence[FilterChange] = layer.changes,
        ) -> None:
            ends = [min(*a, *b), max(*a, *b)]
            axes.plot(ends, ends, color="grey", linewidth=0.7, linestyle=":")
            axes.scatter(a, b, s=14, color=KEPT, alpha=0.7, linewidths=0)
            for change in sorted(changes, key=_moved)[:3]:
                axes.annotate(str(change.filter), (change.a, change.b), fontsize=SMALL - 1)
            label_axes(axes, f"{strength}, {names[0]}", f"{strength}, {names[1]}")

        rank = layer.rank_correlation
        title = layer.layer + ("" if rank is None else f"\nrank correlation {rank:.2f}")
        cells.append(plot(paint, title, height=210.0))
    return board(in_rows(cells))


def _moved(change: FilterChange) -> float:
    return -abs(change.b - change.a)


def draw_classes(result: DiffResult, names: Names) -> Figure:
    """Draws all classes, those first that changed more than the others."""
    classes = result.classes
    signs = list(dict.fromkeys(name for change in classes for name in change.signs))
    columns = [
        Column(
            "changed more than others",
            [change.certainty for change in classes],
            NAMED,
            "not judged",
        ),
        Column("changed predictions", [change.flips for change in classes]),
    ]
    for name in signs:
        values = [change.signs[name].value if name in change.signs else None for change in classes]
        columns.append(Column(name, values))
    labelled = any(change.label for change in result.worst_images)
    return draw_bars(
        [f"{change.class_} ({change.images})" for change in classes],
        columns,
        f"{names[0]} and {names[1]}: {result.images} images, grouped by "
        + ("label" if labelled else f"the prediction of {names[0]}"),
        "classes",
    )
