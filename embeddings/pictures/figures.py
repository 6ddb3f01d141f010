"""The pictures of an embedding: points by class, images at their places, a grid, the quality.

Every picture carries the map's quality beside it. Maps of the images themselves are composed pixel
by pixel, so that thumbnails stay sharp, and are framed in the colours of their classes.

Shapes: N images, S side of a thumbnail, H W rows and columns of a canvas.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cnnviz.core.output.drawing import bare, escape, new_figure
from cnnviz.core.output.panels import grid_of_axes
from cnnviz.core.output.style import FONT_SIZE, ink, style
from cnnviz.embeddings.pictures.class_colours import (
    ONLY_COLOUR,
    TOLD_APART,
    colour_of,
    mark_of,
    rgb,
)
from cnnviz.embeddings.pictures.grid import snap_to_grid
from cnnviz.embeddings.pictures.thumbnails import thumbnails
from cnnviz.embeddings.quality import UNKNOWN
from cnnviz.embeddings.report import map_name, quality_lines
from cnnviz.embeddings.result import EmbeddingResult

MOST_PICTURES = 10_000
LEGEND_ROWS = 30
SMALLEST_CANVAS, LARGEST_CANVAS = 1400, 6000
CANVAS_DPI = 100
NARROWEST = 0.7
FRAME = 2
RING, CORNER = "o", "s"
BACKGROUND = 255
Progress = Callable[[int], None]


def _point_size(count: int) -> float:
    """In points squared: small data get large marks."""
    return float(np.clip(9000 / count, 3, 40))


def _handles(result: EmbeddingResult, size: float, wrong_mark: str) -> list[Line2D]:
    """Legend entries of the classes that occur, and of the mark of wrong predictions."""

    def entry(name: str, face: str, mark: str, edge: str | None = None) -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=mark, markersize=size, color=face,
            markeredgecolor=edge or face, label=escape(name, 28),
        )  # fmt: skip

    classes = result.data.classes or ()
    present = [int(label) for label in np.unique(result.labels_N) if label != UNKNOWN]
    handles = [entry(classes[k], ink(colour_of(k)), mark_of(k)) for k in present]
    if len(handles) > TOLD_APART:
        handles = [entry(f"{len(present)} classes, named there", "white", "o")]
    if present and (result.labels_N == UNKNOWN).any():
        handles.append(entry("no label", colour_of(UNKNOWN), mark_of(UNKNOWN)))
    if result.correct_N is not None and not result.correct_N.all():
        name = f"wrongly predicted ({int((~result.correct_N).sum()):,})"
        face = "none" if wrong_mark == RING else ink()
        handles.append(entry(name, face, wrong_mark, ink()))
    return handles


def _paint_points(axes: Axes, result: EmbeddingResult, index: int) -> None:
    places = result.maps[index].places_N2
    unlabelled = not result.data.classes
    size = _point_size(len(places))
    for label in np.unique(result.labels_N):
        chosen = result.labels_N == label
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=size,
            c=ONLY_COLOUR if unlabelled else ink(colour_of(int(label))),
            marker=mark_of(int(label)),
            linewidths=0,
            alpha=0.9,
        )
    if result.correct_N is not None:
        x, y = places[~result.correct_N].T
        thin = min(0.7, 0.18 * size**0.5)
        axes.scatter(x, y, s=size * 2.8, facecolors="none", edgecolors=ink(), linewidths=thin)
    if len(np.unique(result.labels_N)) > TOLD_APART:
        _name_classes(axes, result, places)
    axes.set_aspect("equal", adjustable="datalim")
    bare(axes)


def _name_classes(axes: Axes, result: EmbeddingResult, places_N2: NDArray[np.float32]) -> None:
    """Writes the name of each class where the middle of its images is."""
    classes = result.data.classes or ()
    for label in np.unique(result.labels_N[result.labels_N != UNKNOWN]):
        x, y = np.median(places_N2[result.labels_N == label], axis=0)
        axes.text(x, y, escape(classes[label], 16), fontsize=5, ha="center", va="center")


def _margin_text(
    figure: Figure, result: EmbeddingResult, index: int, left: float, scale: float, wrong_mark: str
) -> None:
    """The legend at the top of the right margin, the quality in its bottom corner."""
    handles = _handles(result, 6 * scale, wrong_mark)
    size = (FONT_SIZE - 1) * scale
    if handles:
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left, 0.985),
            ncols=1 + (len(handles) - 1) // LEGEND_ROWS,
            fontsize=size,
            frameon=False,
            borderaxespad=0,
        )
    text = "\n".join(escape(line, 90) for line in quality_lines(result, index))
    figure.text(left, 0.015, text, fontsize=size, va="bottom", linespacing=1.4)


def scatter(result: EmbeddingResult, index: int = 0) -> Figure:
    """`scatter.png`: one point per image, coloured by class; wrongly predicted ones are ringed."""
    figure = new_figure(11, 7)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.01, 0.015, 0.68, 0.97))
    _paint_points(axes, result, index)
    _margin_text(figure, result, index, 0.7, 1.0, RING)
    return figure


def side_by_side(result: EmbeddingResult) -> Figure:
    """`perplexities.png`: all maps of one run as scatter panels."""
    figure, axes = grid_of_axes(len(result.maps), (4.2, 4.4), columns=3)
    for index, found in enumerate(result.maps):
        _paint_points(axes[index], result, index)
        kept = result.qualities[index].preservation_10
        share = "" if kept is None else f": {kept:.1%} of 10 nearest kept"
        axes[index].set_title(f"{map_name(found)}{share}", fontsize=FONT_SIZE)
    return figure


def chosen_images(count: int, seed: int) -> NDArray[np.int64]:
    """Which images are shown as pictures: all, or a seeded sample of 10,000, in order."""
    if count <= MOST_PICTURES:
        return np.arange(count)
    sample = np.random.default_rng(seed).choice(count, MOST_PICTURES, replace=False)
    return np.sort(sample)


def thumbnail_side(count: int) -> int:
    """S: few images are shown large."""
    return 96 if count <= 300 else 48 if count <= 2500 else 32


def framed_thumbnails(
    result: EmbeddingResult, chosen: NDArray[np.int64], *, progress: Progress = lambda _steps: None
) -> NDArray[np.uint8]:
    """The chosen images, (N, S, S, 3), with a frame in the colour of their class.

    Where the model is wrong, the upper left corner is black.
    """
    side = thumbnail_side(len(chosen))
    indices = result.features.indices_N[chosen].tolist()
    pictures = thumbnails(
        result.data, indices, side - 2 * FRAME, result.preprocess, progress=progress
    )
    framed = np.empty((len(chosen), side, side, 3), np.uint8)
    for picture, place in zip(pictures, range(len(chosen)), strict=True):
        label = int(result.labels_N[chosen[place]])
        framed[place] = rgb(colour_of(label)) if result.data.classes else BACKGROUND
        framed[place, FRAME:-FRAME, FRAME:-FRAME] = picture
        if result.correct_N is not None and not result.correct_N[chosen[place]]:
            framed[place, : side // 5 + 1, : side // 5 + 1] = BACKGROUND
            framed[place, : side // 5, : side // 5] = 0
    return framed


def _paste(
    canvas_HW3: NDArray[np.uint8],
    pictures: NDArray[np.uint8],
    corners: NDArray[np.int64],
    order: Iterable[int],
) -> None:
    side = pictures.shape[1]
    for i in order:
        top, left = corners[i]
        canvas_HW3[top : top + side, left : left + side] = pictures[i]


@dataclass(frozen=True, eq=False)
class Sheet:
    """A canvas of images, pixel for pixel, with a drawn margin to its right.

    Attributes:
        canvas_HW3: uint8.
        margin: of the same height, at CANVAS_DPI.
    """

    canvas_HW3: NDArray[np.uint8]
    margin: Figure

    def pixels(self) -> NDArray[np.uint8]:
        """Both side by side, uint8 (H, W + margin, 3)."""
        canvas = FigureCanvasAgg(self.margin)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        return np.concatenate([self.canvas_HW3, drawn], axis=1)


def _sheet(canvas_HW3: NDArray[np.uint8], result: EmbeddingResult, index: int, shown: int) -> Sheet:
    """A canvas with legend and quality beside it."""
    height = canvas_HW3.shape[0]
    # A little more, since inches times dots may fall just short of a whole number of pixels.
    size = (round(0.37 * height) + 0.1) / CANVAS_DPI, (height + 0.1) / CANVAS_DPI
    with style():  # the canvas is white
        margin = new_figure(*size)
        margin.set_dpi(CANVAS_DPI)
        margin.set_layout_engine("none")
        scale = height / CANVAS_DPI / 10
        _margin_text(margin, result, index, 0.04, scale, CORNER)
        if shown < len(result.labels_N):
            note = f"a random sample of {shown:,}\nof the {len(result.labels_N):,} images"
            margin.text(0.04, 0.3, note, fontsize=FONT_SIZE * scale, color="#bd1f01")
    return Sheet(canvas_HW3, margin)


def images(
    result: EmbeddingResult,
    chosen: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    index: int = 0,
    seed: int = 0,
) -> Sheet:
    """`images.png`: each image at its place on the map; where they overlap, chance decides."""
    side = pictures.shape[1]
    wanted = 2.4 * side * np.sqrt(len(chosen))
    places = result.maps[index].places_N2[chosen].astype(np.float64)
    low, high = places.min(0), places.max(0)
    # One scale for both axes: the map keeps its shape.
    unit = (places - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    shape_xy = np.maximum(unit.max(0) - unit.min(0), NARROWEST)
    room_xy = np.floor((np.clip(wanted, SMALLEST_CANVAS, LARGEST_CANVAS) - side) * shape_xy)
    corners_xy = np.rint((shape_xy / 2 + unit * (1, -1)) / shape_xy * room_xy)
    width, height = (int(room) + side for room in room_xy)
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    order = np.random.default_rng(seed).permutation(len(chosen))
    _paste(canvas, pictures, corners_xy[:, ::-1].astype(np.int64), order)
    return _sheet(canvas, result, index, len(chosen))


def grid(
    result: EmbeddingResult,
    chosen: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    index: int = 0,
) -> Sheet:
    """`grid.png`: the map snapped to a grid, so that no image covers another."""
    side = pictures.shape[1]
    cells, rows, columns = snap_to_grid(result.maps[index].places_N2[chosen])
    scale = max(1, SMALLEST_CANVAS // (columns * (side + 1)))
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    step = side * scale + 1
    canvas = np.full((rows * step, columns * step, 3), BACKGROUND, np.uint8)
    _paste(canvas, large, cells * step, range(len(chosen)))
    return _sheet(canvas, result, index, len(chosen))
