"""The pictures of a diff: what changed most, side by side, and all classes or layers at a glance.

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
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import draw_map, grid_of_axes, panels
from cnnviz.core.output.style import BLUE, FONT_SIZE, ink
from cnnviz.diff.choices import NAMED
from cnnviz.diff.experiment import DiffResult
from cnnviz.diff.filters import FilterChange
from cnnviz.diff.report import worst_filters, worst_image

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
    """A small picture of a strip; `pixels` None where it can no longer be read."""

    pixels: Pixels | None
    caption: str = ""
    framed: bool = False


def draw_maps(
    result: DiffResult, mapped: tuple[Mapped, Mapped], top: int, look: Look, unit: str
) -> Figure:
    """The most changed images: the first network's map beside the second's, on one scale.

    Args:
        result: of runs that have maps.
        mapped: gives the map and the picture of an image, for each run.
        top: images shown, at most.
        look: colours.
        unit: what the values are.

    Raises:
        CnnvizError: what a run wrote is no longer there.
    """
    rows = [int(row) for row in result.worst_N[:top]]
    assert result.a.answers is not None  # noqa: S101 (there are maps)
    names = [result.a.answers.images[row] for row in rows]
    found = [[own(name) for own in mapped] for name in names]
    size = (int(found[0][0][0].shape[0]), int(found[0][0][0].shape[1]))
    figure, axes = panels(2 * len(rows), size, columns=4 if len(rows) > 1 else 2)
    for number, (row, name, pair) in enumerate(zip(rows, names, found, strict=True)):
        entry = worst_image(result, row)
        limit = max(symmetric_limit(map_HW) for map_HW, _ in pair)
        said = [("a", entry["a"], entry.get("probability_a"))]
        said.append(("b", entry["b"], entry.get("probability_b")))
        true = f", is {entry['label']}" if "label" in entry else ""
        alike = f"maps agree {entry['agreement']:.2f}" if "agreement" in entry else "a map is flat"
        for own, (map_HW, picture), (side, predicted, probability), line in zip(
            axes[2 * number : 2 * number + 2],
            pair,
            said,
            (f"{PurePath(name).name}{true}", alike),
            strict=True,
        ):
            draw_map(own, map_HW, look, unit, over=picture, limit=limit)
            bare(own)
            sure = "" if probability is None else f" {probability:.2f}"
            title(own, f"{line}\n{side}: {predicted}{sure}")
    return figure


def draw_strips(rows: Sequence[tuple[str, Sequence[Small | None]]], heading: str) -> Figure:
    """Rows of small pictures, or gaps, with a text to the left; a frame marks what both have."""
    columns = max(len(cells) for _, cells in rows)
    height = (CELL + CAPTION) * len(rows) + 0.4
    figure = new_figure(TEXT + columns * CELL + 0.3, height)
    widths = [TEXT / CELL, *[1.0] * columns]
    grid = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=widths)
    for axes, (text, cells) in zip(grid, rows, strict=True):
        beside(axes[0], text, 52)
        for place, own in enumerate(axes[1:]):
            bare(own)
            if place < len(cells) and (cell := cells[place]) is not None:
                _draw_small(own, cell)
    figure.suptitle(escape(heading, 120), fontsize=FONT_SIZE)
    return figure


def _draw_small(axes: Axes, cell: Small) -> None:
    pixels = np.full((8, 8, 3), GREY, np.uint8) if cell.pixels is None else cell.pixels
    axes.imshow(pixels, interpolation="nearest" if min(pixels.shape[:2]) < 64 else "antialiased")
    under(axes, cell.caption or ("not to be read" if cell.pixels is None else ""), 20)
    if cell.framed:
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False)
        frame.set(edgecolor=KEPT, linewidth=2.5)
        axes.add_patch(frame)


def draw_neighbors(result: DiffResult, picture: Callable[[str], Pixels | None], top: int) -> Figure:
    """The images whose neighbours changed most, with the nearest ones in both networks."""
    images, answers = result.images, result.a.answers
    assert images is not None and images.near is not None  # noqa: S101, PT018 (the caller looked)
    assert answers is not None  # noqa: S101
    rows: list[tuple[str, list[Small | None]]] = []
    for row in map(int, result.worst_N[:top]):
        entry, near = worst_image(result, row), [own[row].tolist() for own in images.near]
        true = f"\nis {entry['label']}" if "label" in entry else ""
        text = (
            f"{PurePath(entry['image']).name}{true}\na: {entry['a']}, b: {entry['b']}\n"
            f"keeps {entry.get('kept', 0):.0%} of {len(near[0])} neighbours"
        )
        cells: list[Small | None] = [Small(picture(entry["image"]), "the image")]
        for side, own, other in (("a", near[0], near[1]), ("b", near[1], near[0])):
            cells.append(None)
            for place, neighbour in enumerate(own[:NEIGHBOURS], start=1):
                caption = f"{side} {place}: {answers.labels[neighbour]}".rstrip(": ")
                name = answers.images[neighbour]
                cells.append(Small(picture(name), caption, framed=neighbour in other))
        rows.append((text, cells))
    return draw_strips(rows, "nearest images in a and in b; framed: among the nearest in both")


def draw_filters(
    result: DiffResult,
    cells: Callable[[FilterChange], Sequence[Sequence[Small]]],
    top: int,
    heading: str,
    strength: str,
) -> Figure | None:
    """The most changed filters, a row of pictures for each network; None where none has any."""
    rows: list[tuple[str, Sequence[Small]]] = []
    drawn = ((change, strips) for change in worst_filters(result) if (strips := cells(change)))
    for change, strips in islice(drawn, top):
        texts = [_filter_text(change, strength), *[""] * (len(strips) - 1)]
        rows += zip(texts, strips, strict=True)
    return draw_strips(rows, heading) if rows else None


def _filter_text(change: FilterChange, strength: str) -> str:
    lines = [f"{change.layer}, filter {change.filter}"]
    lines.append(f"{strength}: a {change.was:.3g}, b {change.now:.3g}")
    lines += ["died"] * change.died + ["revived"] * change.revived
    if change.likeness is not None:
        lines.append(f"likeness {change.likeness:.2f}")
    if change.nearest is not None and change.nearest != change.filter:
        lines.append(f"most like b's {change.nearest} ({change.nearest_likeness:.2f})")
    return "\n".join(lines)


def draw_layers(result: DiffResult, strength: str) -> Figure:
    """How alike the filters of each layer are; where nothing tells, their strengths.

    Args:
        result: of runs that tell of filters.
        strength: what the strength of a filter is.
    """
    layers = [own for own in result.layers if own.likeness is not None]
    if not layers:
        return _draw_strengths(result, strength)
    shown = layers[:MOST_LAYERS]
    figure = new_figure(7.5, 1.4 + 0.3 * len(shown))
    axes = figure.add_subplot()
    values = [[f.likeness for f in own.filters if f.likeness is not None] for own in shown]
    axes.boxplot(
        values,
        orientation="horizontal",
        widths=0.6,
        flierprops={"markersize": 2.5, "markeredgecolor": KEPT},
        medianprops={"color": ink()},
    )
    names = [f"{own.layer} ({len(own.filters)})" for own in shown]
    axes.set_yticks(range(1, len(shown) + 1), [escape(n, 40) for n in names])
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.invert_yaxis()
    axes.set_xlim(min(-0.05, *(min(own) for own in values)), 1.05)
    axes.set_xlabel(escape(result.agreement_of.split(",")[0]), fontsize=FONT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    more = len(layers) - len(shown)
    title(axes, "filters of a and b, number by number" + (f"; {more} more layers" if more else ""))
    return figure


def _draw_strengths(result: DiffResult, strength: str) -> Figure:
    shown = result.layers[:MOST_PANELS]
    figure, cells = grid_of_axes(len(shown), (3.2, 3.2))
    for axes, own in zip(cells, shown, strict=True):
        was, now = ([getattr(f, side) for f in own.filters] for side in ("was", "now"))
        ends = [min(*was, *now), max(*was, *now)]
        axes.plot(ends, ends, color="grey", linewidth=0.7, linestyle=":")
        axes.scatter(was, now, s=14, color=KEPT, alpha=0.7, linewidths=0)
        for change in sorted(own.filters, key=lambda f: -abs(f.now - f.was))[:3]:
            axes.annotate(str(change.filter), (change.was, change.now), fontsize=FONT_SIZE - 2)
        axes.set_xlabel(f"{strength}, a", fontsize=FONT_SIZE - 1)
        axes.set_ylabel(f"{strength}, b", fontsize=FONT_SIZE - 1)
        axes.tick_params(labelsize=FONT_SIZE - 2)
        axes.spines[["top", "right"]].set_visible(False)
        rank = own.rank_correlation
        title(axes, own.layer + ("" if rank is None else f"\nrank correlation {rank:.2f}"))
    return figure


def draw_classes(result: DiffResult) -> Figure:
    """All classes, those first that changed more than the others."""
    classes = sorted(result.classes, key=lambda own: -(own.certainty or -1.0))
    assert result.images is not None  # noqa: S101 (there are classes)
    flipped_N = result.images.flipped_N
    names = list(dict.fromkeys(name for own in classes for name in own.signs))
    columns = [
        Column("changed more than others", [own.certainty for own in classes], NAMED, "not judged"),
        Column("other predictions", [float(flipped_N[own.members].mean()) for own in classes]),
    ]
    for name in names:
        values = [own.signs[name].value if name in own.signs else None for own in classes]
        columns.append(Column(name, values))
    count = len(flipped_N)
    return draw_bars(
        [f"{own.name} ({len(own.members)})" for own in classes],
        columns,
        f"{count} images, by " + ("label" if _labelled(result) else "a's prediction"),
        "classes",
    )


def _labelled(result: DiffResult) -> bool:
    return result.a.answers is not None and any(result.a.answers.labels)
