"""Maps made of the images themselves: at their places, or snapped to a grid.

They are composed pixel by pixel, so that thumbnails stay sharp, and framed in the colors of the
classes. On the grid every image gets a separate cell, as near to its place as possible. Up to
1,500 images this is one linear assignment, which is optimal. Its cost grows with n³, so larger maps
start from a recursive halving of the plane and are improved by optimal assignments within windows
that overlap from one sweep to the next; on clustered maps of 800 to 1,500 points the sum of squared
distances was within 4 % of the optimum.

Shapes: N images, S side of a thumbnail, H W rows and columns of a canvas.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cnnviz.core.data.datasets import ImageData, batches
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.drawing import in_colour, to_uint8
from cnnviz.core.output.style import FONT_SIZE, style
from cnnviz.embeddings.figures import CORNER, color_of, groups_of, margin_text
from cnnviz.embeddings.results import EmbeddingResult, Map

MOST_PICTURES = 10_000
SMALLEST_CANVAS, LARGEST_CANVAS = 1400, 6000
CANVAS_DPI = 100
MIN_ASPECT = 0.7
FRAME = 2
BACKGROUND, MISSING = 255, 200
BATCH = 64
EXACT_UP_TO = 1500
WINDOW, SWEEPS = 12, 12

Cells = NDArray[np.int64]
Progress = Callable[[int], None]


def chosen_images(count: int, seed: int) -> NDArray[np.int64]:
    """Which images are shown: all, or a seeded sample of 10,000, in order."""
    if count <= MOST_PICTURES:
        return np.arange(count)
    sample = np.random.default_rng(seed).choice(count, MOST_PICTURES, replace=False)
    return np.sort(sample)


def thumbnail_side(count: int) -> int:
    """S, in pixels; large for few images."""
    return 96 if count <= 300 else 48 if count <= 2500 else 32


def thumbnails(
    data: ImageData,
    indices: Sequence[int],
    side: int,
    preprocess: Preprocess,
    *,
    progress: Progress = lambda _steps: None,
) -> NDArray[np.uint8]:
    """The center squares of some images, (N, S, S, 3), in the order of `indices`.

    An image that cannot be read is gray.
    """
    chosen = dataclasses.replace(data, examples=tuple(data.examples[i] for i in indices))
    count = preprocess.channels
    small = dataclasses.replace(
        preprocess, resize=side, crop=(side, side), mean=(0.0,) * count, std=(1.0,) * count
    )
    pictures = np.full((len(chosen), side, side, 3), MISSING, np.uint8)
    for batch in batches(chosen, small, BATCH, on_error=lambda _index, _message: progress(1)):
        pictures[batch.indices.numpy()] = to_uint8(in_colour(batch.images.numpy(), small.bands))
        progress(len(batch.indices))
    return pictures


def framed_thumbnails(
    result: EmbeddingResult, chosen: NDArray[np.int64], *, progress: Progress = lambda _steps: None
) -> NDArray[np.uint8]:
    """The chosen images, (N, S, S, 3), with a frame in the color of their class.

    The upper left corner is black where the prediction is wrong.
    """
    side = thumbnail_side(len(chosen))
    indices = result.vectors.indices_N[chosen].tolist()
    pictures = thumbnails(
        result.image_data, indices, side - 2 * FRAME, result.preprocess, progress=progress
    )
    framed = np.empty((len(chosen), side, side, 3), np.uint8)
    group_N = groups_of(result).group_N
    for picture, place in zip(pictures, range(len(chosen)), strict=True):
        framed[place] = rgb(color_of(int(group_N[chosen[place]])))
        framed[place, FRAME:-FRAME, FRAME:-FRAME] = picture
        if result.correct_N is not None and not result.correct_N[chosen[place]]:
            framed[place, : side // 5 + 1, : side // 5 + 1] = BACKGROUND
            framed[place, : side // 5, : side // 5] = 0
    return framed


def rgb(color: str) -> NDArray[np.uint8]:
    """`#rrggbb` to (3,) uint8."""
    return to_uint8(np.array(to_rgb(color)))


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
    """A canvas of images with a drawn margin of the same height to its right."""

    canvas_HW3: NDArray[np.uint8]
    margin: Figure

    def pixels(self) -> NDArray[np.uint8]:
        """Canvas and margin side by side, uint8 (H, W + margin, 3)."""
        canvas = FigureCanvasAgg(self.margin)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        return np.concatenate([self.canvas_HW3, drawn], axis=1)


def _sheet(canvas_HW3: NDArray[np.uint8], result: EmbeddingResult, map_: Map, shown: int) -> Sheet:
    """Adds the legend and the quality to a canvas."""
    height = canvas_HW3.shape[0]
    # A little more, since inches times dots may be just below a whole number of pixels.
    size = (round(0.37 * height) + 0.1) / CANVAS_DPI, (height + 0.1) / CANVAS_DPI
    with style():  # the canvas is white
        margin = Figure(figsize=size, dpi=CANVAS_DPI)
        scale = height / CANVAS_DPI / 10
        margin_text(margin, result, map_, 0.04, scale, CORNER)
        if shown < len(result.labels_N):
            note = f"a random sample of {shown:,}\nof the {len(result.labels_N):,} images"
            margin.text(0.04, 0.3, note, fontsize=FONT_SIZE * scale, color="#bd1f01")
    return Sheet(canvas_HW3, margin)


def images(
    result: EmbeddingResult,
    chosen: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    map_: Map | None = None,
    seed: int = 0,
) -> Sheet:
    """Composes `images.png`: each image at its place on the map; overlaps are in random order."""
    map_, side = map_ or result.maps[0], pictures.shape[1]
    canvas_side = 2.4 * side * np.sqrt(len(chosen))
    places = map_.places_N2[chosen].astype(np.float64)
    low, high = places.min(0), places.max(0)
    # One scale for both axes: the map keeps its shape.
    unit = (places - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    shape_xy = np.maximum(unit.max(0) - unit.min(0), MIN_ASPECT)
    room_xy = np.floor((np.clip(canvas_side, SMALLEST_CANVAS, LARGEST_CANVAS) - side) * shape_xy)
    corners_xy = np.rint((shape_xy / 2 + unit * (1, -1)) / shape_xy * room_xy)
    width, height = (int(room) + side for room in room_xy)
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    order = np.random.default_rng(seed).permutation(len(chosen))
    _paste(canvas, pictures, corners_xy[:, ::-1].astype(np.int64), order)
    return _sheet(canvas, result, map_, len(chosen))


def grid(
    result: EmbeddingResult,
    chosen: NDArray[np.int64],
    pictures: NDArray[np.uint8],
    map_: Map | None = None,
) -> Sheet:
    """Composes `grid.png`: the map snapped to a grid, so that no image covers another."""
    map_, side = map_ or result.maps[0], pictures.shape[1]
    cells, rows, columns = snap_to_grid(map_.places_N2[chosen])
    scale = max(1, SMALLEST_CANVAS // (columns * (side + 1)))
    large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
    step = side * scale + 1
    canvas = np.full((rows * step, columns * step, 3), BACKGROUND, np.uint8)
    _paste(canvas, large, cells * step, range(len(chosen)))
    return _sheet(canvas, result, map_, len(chosen))


def grid_shape(count: int) -> tuple[int, int]:
    """Rows and columns of the smallest grid, about square, with room for `count`."""
    columns = max(1, math.ceil(math.sqrt(count)))
    return -(-count // columns), columns


def _spread(places_N2: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float64]:
    """Places in units of cells; the map fills the grid, and y points down like the rows."""
    low, high = places_N2.min(0).astype(np.float64), places_N2.max(0).astype(np.float64)
    unit = (places_N2 - low) / np.maximum(high - low, 1e-12)
    return np.stack([(1 - unit[:, 1]) * (rows - 1), unit[:, 0] * (columns - 1)], axis=1)


def _assign(places: NDArray[np.float64], cells: Cells) -> Cells:
    """Assigns a cell to each place, with the smallest sum of squared distances."""
    costs = np.square(places[:, None] - cells[None]).sum(-1)
    _, chosen = linear_sum_assignment(costs)
    assigned: Cells = cells[chosen]
    return assigned


def _halved(places: NDArray[np.float64], rows: int, columns: int) -> Cells:
    """Halves the grid along its longer side, and the points in proportion, down to single cells."""
    cells = np.empty((len(places), 2), np.int64)
    waiting = [(np.arange(len(places)), (0, rows), (0, columns))]
    while waiting:
        points, (top, bottom), (left, right) = waiting.pop()
        high, wide = bottom - top, right - left
        if not len(points):
            continue
        if high == wide == 1:
            cells[points] = top, left
            continue
        axis = 0 if high >= wide else 1
        ordered = points[np.argsort(places[points, axis], kind="stable")]
        half = max(high, wide) // 2
        room = half * min(high, wide)
        # Free cells are shared evenly, but no part may get more points than it has cells.
        share = round(len(ordered) * room / (high * wide))
        share = min(max(share, len(ordered) - (high * wide - room)), room)
        first, second = ordered[:share], ordered[share:]
        if axis == 0:
            waiting += [(first, (top, top + half), (left, right))]
            waiting += [(second, (top + half, bottom), (left, right))]
        else:
            waiting += [(first, (top, bottom), (left, left + half))]
            waiting += [(second, (top, bottom), (left + half, right))]
    return cells


def _rectangle(top: int, left: int, bottom: int, right: int) -> Cells:
    """All cells of a rectangle, its bottom and right excluded."""
    rows, columns = np.mgrid[top:bottom, left:right]
    return np.stack([rows.ravel(), columns.ravel()], axis=1)


def _improve(
    places: NDArray[np.float64], cells: Cells, shape: tuple[int, int], shift: NDArray[np.int64]
) -> None:
    """Reassigns, in place, the points of each window to its cells, including free ones."""
    window = (cells + shift) // WINDOW
    order = np.lexsort((window[:, 1], window[:, 0]))
    changes = (np.diff(window[order], axis=0) != 0).any(axis=1)
    for members in np.split(order, np.flatnonzero(changes) + 1):
        start = window[members[0]] * WINDOW - shift
        top, left = np.maximum(start, 0)
        bottom, right = np.minimum(start + WINDOW, shape)
        cells[members] = _assign(places[members], _rectangle(top, left, bottom, right))


def snap_to_grid(places_N2: NDArray[np.float32]) -> tuple[Cells, int, int]:
    """Cells (N, 2), a different one for each point, and the numbers of rows and columns."""
    count = len(places_N2)
    rows, columns = grid_shape(count)
    places = _spread(places_N2, rows, columns)
    if count <= EXACT_UP_TO:
        return _assign(places, _rectangle(0, 0, rows, columns)), rows, columns
    cells = _halved(places, rows, columns)
    half = WINDOW // 2
    for sweep in range(SWEEPS):
        shift = np.array([half * (sweep % 2), half * (sweep // 2 % 2)])
        _improve(places, cells, (rows, columns), shift)
    return cells, rows, columns
