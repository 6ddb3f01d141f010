"""Maps over their image: the photograph in colour, the map more opaque the larger its magnitude.

All analyses draw maps of an image here. A map is transparent at zero, so the photograph stays as
it is where nothing happens. Between positions it is interpolated for display; the numbers are the
same.
A pixel is composed once, at the resolution of the figure, so that PNG, PDF and SVG agree.
Shapes: H W rows and columns of the working image, h w of a picture, N colours.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, to_rgb
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.data.images import WorkingImage, file_crop
from cnnviz.core.output.canvas import Bar
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.layout import PANEL, Cell, picture
from cnnviz.core.output.options import DIVERGING, JET, Display, Ends, Look, colour_map

NEUTRAL = 1e-5
"""Neighbouring values of one position differ by less than this share of the largest."""
CENTRED = frozenset(
    (
        *("BrBG", "PRGn", "PiYG", "PuOr", "RdBu", "RdGy", "RdYlBu", "RdYlGn", "Spectral", "bwr"),
        *("coolwarm", "seismic", "berlin", "managua", "vanimo", DIVERGING),
    )
)
"""Colour maps whose middle means zero."""

LEVELS = 511  # odd, so that zero of a symmetric scale is one of them
SMALL_SIDE, COARSE, MISSING = 84.0, 16, 225
_RESIZED: deque[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = deque(maxlen=2)

Pixels = NDArray[np.uint8]
Values = NDArray[np.floating]


def photograph(image: WorkingImage) -> Pixels:
    """The picture below maps of an image, uint8 (h, w, 3): its crop in the file's pixels."""
    crop = file_crop(image)
    return image_pixels(image) if crop is None else crop


def cmap_of(name: str) -> Colormap:
    """The matplotlib colour map of a name."""
    return colormaps["RdBu_r" if name == DIVERGING else colour_map(name, "colormap")]


@dataclass(frozen=True, eq=False)
class Scale:
    """What the colours of a map mean.

    Attributes:
        low: the value of the first colour.
        high: the value of the last colour.
        colours: of `colours.N` values in between.
        label: what the colours measure.
        opacity: over an image, where the colours end.
        fading: whether the opacity is in proportion to the magnitude.
        beyond: whether there are values below and above the ends.
        first: where in `colours` the lowest value is; 0.5 for the upper half of diverging ones.
    """

    low: float
    high: float
    colours: Colormap
    label: str
    opacity: float
    fading: bool
    beyond: tuple[bool, bool] = (False, False)
    first: float = 0.0

    def levels(self, values: Values) -> NDArray[np.intp]:
        """The place of values in `table` and `weights`, 0 to `LEVELS` - 1."""
        share = (values - self.low) * ((LEVELS - 1) / (self.high - self.low))
        return np.asarray(np.clip(np.rint(share), 0, LEVELS - 1).astype(np.intp))

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """The colour of each level, (N, 3) in [0, 1]."""
        shown = self.colours(np.linspace(self.first, 1, LEVELS))
        return np.asarray(shown[:, :3], np.float32)

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """The opacity of each level over an image, (N, 1) in [0, 1]."""
        if not self.fading:
            return np.full((LEVELS, 1), self.opacity, np.float32)
        values = np.abs(np.linspace(self.low, self.high, LEVELS, dtype=np.float32))
        return np.asarray(self.opacity * values / values.max())[:, None]

    @cached_property
    def bar(self) -> Bar:
        """The colour bar of a map alone."""
        return Bar(self.table, self.low, self.high, self.label, self.beyond)

    @cached_property
    def bar_over(self) -> Bar:
        """The colour bar of a map over an image: its colours over the ground of the figure."""
        ground = np.array(to_rgb(rcParams["figure.facecolor"]))
        shown = self.weights * self.table + (1 - self.weights) * ground
        return Bar(shown, self.low, self.high, self.label, self.beyond)


def scales(
    maps: Sequence[Values],
    look: Look,
    label: str,
    *,
    one_sided: bool = False,
    ends: Sequence[float] | None = None,
) -> list[Scale]:
    """The scale of each map of a figure; the same one for all unless `look.scale` is `own`.

    Args:
        maps: of one unit.
        look: colours, and where they end.
        label: what the values are.
        one_sided: whether diverging colours start at zero if no value is negative.
        ends: magnitude at which the colours of each map end, instead of its largest.
    """
    found = [float(np.abs(values).max(initial=0.0)) for values in maps] if ends is None else ends
    if look.limit is not None:
        found = [look.limit] * len(maps)
    if look.scale is Ends.OWN:
        return [
            _scale([values], look, label, one_sided, end)
            for values, end in zip(maps, found, strict=True)
        ]
    return [_scale(maps, look, label, one_sided, max(found))] * len(maps)


def _scale(maps: Sequence[Values], look: Look, label: str, one_sided: bool, limit: float) -> Scale:
    low, high = (float(end([end(values) for values in maps])) for end in (np.min, np.max))
    limit = limit if limit > 1e-12 else 1.0  # a map of zeros is blank
    colours, first = cmap_of(look.colormap), 0.0
    centred = look.colormap.removesuffix("_r") in CENTRED
    if one_sided and low >= 0 and (centred or look.limit is not None):
        bottom, top, first = 0.0, limit, 0.5 if centred else 0.0
    elif centred or look.limit is not None:
        bottom, top = -limit, limit
    else:
        bottom, top = max(low, -limit), min(high, limit)
    return Scale(
        bottom,
        max(top, bottom + 1e-12),
        colours,
        label,
        look.opacity,
        look.colormap.removesuffix("_r") != JET,
        (low < bottom, high > top),
        first,
    )


def paint_map(
    axes: Axes,
    values_HW: Values,
    scale: Scale,
    display: Display = Display.SMOOTH,
    over: Pixels | None = None,
    joined: Callable[[tuple[int, int]], NDArray[np.float32]] | None = None,
) -> None:
    """Draws a map on axes, alone or over a picture (h, w, 3).

    With `joined`, which gives the map at any size, it is that map that is shown.
    """
    size = (values_HW.shape[0], values_HW.shape[1])
    rows, columns = _dots(axes)
    enlarge = joined or (lambda dots: enlarged(values_HW, dots, display))
    shown_hw = enlarge((rows, columns))
    levels = scale.levels(shown_hw)
    if over is None:
        show(axes, np.rint(255 * scale.table).astype(np.uint8).take(levels, axis=0), size)
        return
    show(axes, _mixed(levels, scale.table, scale.weights, over), size)


def draw_picture(axes: Axes, pixels: Pixels, size: tuple[int, int]) -> None:
    """Draws a picture (h, w, 3) on H×W units of the axes."""
    show(axes, _resized(pixels, _dots(axes)), size)


def paint_kinds(
    axes: Axes, kinds_HW: NDArray[np.intp], rgba_N4: NDArray[np.float32], over: Pixels
) -> None:
    """Draws pixels in the colour and with the opacity of their kind, over a picture."""
    size = (kinds_HW.shape[0], kinds_HW.shape[1])
    rows, columns = _nearest(size, _dots(axes))
    kinds = kinds_HW[rows, columns]
    show(axes, _mixed(kinds, rgba_N4[:, :3], rgba_N4[:, 3:], over), size)


def _mixed(
    kinds: NDArray[np.intp],
    rgb_N3: NDArray[np.float32],
    weights_N1: NDArray[np.float32],
    over: Pixels,
) -> Pixels:
    """Each pixel's kind, of a colour and an opacity, over a picture."""
    own, rest = 255 * weights_N1 * rgb_N3 + 0.5, (1 - weights_N1[:, 0]).take(kinds)
    beneath = _resized(over, (kinds.shape[0], kinds.shape[1]))
    mixed = np.empty(beneath.shape, np.uint8)
    for channel in range(beneath.shape[2]):  # six times as fast as all channels together
        mixed[..., channel] = own[:, channel].take(kinds) + rest * beneath[..., channel]
    return mixed


def _dots(axes: Axes) -> tuple[int, int]:
    """Rows and columns of the figure's pixels that the axes have."""
    box = axes.bbox
    return max(1, round(box.height)), max(1, round(box.width))


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The picture in the figure's pixels; the last few are kept, as panels show the same one."""
    if pixels.shape[:2] == size:
        return pixels
    for known, shown in _RESIZED:
        if known is pixels and shown.shape[:2] == size:
            return shown
    image = Image.fromarray(pixels)
    shown = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    _RESIZED.append((pixels, shown))
    return shown


def show(axes: Axes, pixels: Pixels, size: tuple[int, int]) -> None:
    """Draws pixels on H×W units of the axes, regardless of their resolution."""
    extent = (0.0, float(size[1]), float(size[0]), 0.0)
    image = Composed(axes, interpolation="nearest", extent=extent)
    image.set_data(pixels)
    axes.add_image(image)
    axes.set(xlim=extent[:2], ylim=extent[2:])


class Composed(AxesImage):
    """A picture that has as many pixels as the figure has there: it is copied, not resampled."""

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        """The picture and its lower left corner, for the renderer."""
        box, pixels = self.axes.bbox, np.asarray(self.get_array())
        if (round(box.height), round(box.width)) != pixels.shape[:2] or magnification != 1.0:
            return super().make_image(renderer, magnification, unsampled)
        opaque = np.asarray(Image.fromarray(pixels).convert("RGBA"))[::-1]
        return np.ascontiguousarray(opaque), round(box.x0), round(box.y0), IdentityTransform()


def enlarged(values_HW: Values, size: tuple[int, int], display: Display) -> NDArray[np.float32]:
    """A map in the figure's pixels: its exact tiles, or interpolated between their centres.

    Tiles are found where neighbouring rows and columns are equal; the value at the centre of each
    is kept.
    """
    values = np.asarray(values_HW, np.float32)
    if display is Display.CELLS:
        rows, columns = _nearest(values.shape, size)
        return values[rows, columns]
    tiny = NEUTRAL * float(np.abs(values).max(initial=0.0))
    for axis in (0, 1):
        lines = values if axis == 0 else values.T
        firsts = _firsts(lines, tiny)
        centres = (firsts + np.append(firsts[1:], len(lines))) / 2
        dots = (np.arange(size[axis]) + 0.5) * len(lines) / size[axis]
        place = np.interp(dots, centres, np.arange(len(firsts))).astype(np.float32)
        shown = _between(lines[firsts], place)
        values = shown if axis == 0 else shown.T
    return values


def _between(lines: NDArray[np.float32], place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lines (n, m) at fractional places 0 to n - 1, by monotone cubic interpolation.

    Between two lines no value is beyond theirs, so a strong value has no ring of the other sign
    (Fritsch and Butland 1984, harmonic means of the slopes).
    """
    if len(lines) == 1:
        return np.repeat(lines, len(place), axis=0)
    steps = np.diff(lines, axis=0)
    slopes = np.zeros_like(lines)
    product, total = steps[:-1] * steps[1:], steps[:-1] + steps[1:]
    np.divide(2 * product, total, out=slopes[1:-1], where=product > 0)
    base = np.minimum(place.astype(np.intp), len(lines) - 2)
    t = (place - base)[:, None]
    rise = t * t * (3 - 2 * t)
    curved = lines[base] + rise * steps[base]
    curved += t * (1 - t) ** 2 * slopes[base] - t * t * (1 - t) * slopes[base + 1]
    return np.asarray(curved, np.float32)


def _nearest(
    shape: tuple[int, ...], size: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows (h, 1) and columns (w,) that are nearest to each dot of the figure."""
    rows, columns = (
        np.minimum(((np.arange(dots) + 0.5) * length / dots).astype(np.intp), length - 1)
        for dots, length in zip(size, shape, strict=True)
    )
    return rows[:, None], columns


def _firsts(values: NDArray[np.float32], tiny: float) -> NDArray[np.intp]:
    """The first line of each run of equal lines."""
    changed = (np.abs(np.diff(values, axis=0)) > tiny).any(axis=1)
    return np.concatenate([[0], np.flatnonzero(changed) + 1]).astype(np.intp)


def map_cell(
    values_HW: Values,
    scale: Scale,
    look: Look,
    over: Pixels | None,
    title: str = "",
    below: str = "",
    *,
    width: float = PANEL,
    mark: Callable[[Axes], None] = lambda _axes: None,
) -> Cell:
    """A cell for a map, alone or over a picture (h, w, 3), with its colour bar.

    `mark` draws on top of it.
    """

    def paint(axes: Axes) -> None:
        paint_map(axes, values_HW, scale, look.display, over)
        mark(axes)

    bar = scale.bar if over is None else scale.bar_over
    return picture(paint, (values_HW.shape[0], values_HW.shape[1]), title, below, bar, width)


def input_cell(pixels: Pixels, size: tuple[int, int], detail: str = "") -> Cell:
    """The image in colour, the first cell of every figure of an image."""
    title = f"input\n{detail}" if detail else "input"
    return picture(lambda axes: draw_picture(axes, pixels, size), size, title)


def small(
    pixels: Pixels | None, below: str = "", frame: str = "", width: float = SMALL_SIDE
) -> Cell:
    """A cell for a small picture of a strip, with a frame if it has a colour; grey if missing."""
    shown = np.full((8, 8, 3), MISSING, np.uint8) if pixels is None else pixels
    size = (shown.shape[0], shown.shape[1])

    def paint(axes: Axes) -> None:
        if min(size) < COARSE:  # the pixels of a kernel are to be seen
            rows, columns = _nearest(size, _dots(axes))
            show(axes, shown[rows, columns], size)
        else:
            draw_picture(axes, shown, size)
        if frame:
            edge = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False)
            edge.set(edgecolor=frame, linewidth=2.5)
            axes.add_patch(edge)

    text = below or ("not readable" if pixels is None else "")
    return picture(paint, size, below=text, width=width)


def outline_pixels(axes: Axes, inside_hw: NDArray[np.bool_], size: tuple[int, int]) -> None:
    """Draws a line around pixels (h, w) of the picture, on the H×W units of the axes."""
    if inside_hw.all():
        return
    padded = np.pad(inside_hw, 1).astype(float)
    rows, columns = (
        (np.arange(n + 2) - 0.5) * (s / n) for n, s in zip(inside_hw.shape, size, strict=True)
    )
    for colour, thick in (("white", 2.4), ("black", 1.0)):
        axes.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=thick)
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0))


def hatch_pixels(
    axes: Axes, inside_HW: NDArray[np.bool_], colour: str, hatch: str, wash: float = 0.0
) -> None:
    """Hatches pixels of a map, and outlines them.

    Args:
        axes: of the map.
        inside_HW: the pixels to hatch.
        colour: of the hatching and the outline.
        hatch: matplotlib's pattern.
        wash: opacity of white below the hatching, so that a dark one is visible on a dark image.
    """
    if not inside_HW.any():
        return
    padded = np.pad(inside_HW, 1).astype(float)
    rows, columns = (np.arange(n + 2) - 0.5 for n in inside_HW.shape)
    if wash:
        axes.contourf(columns, rows, padded, levels=[0.5, 1.5], colors="white", alpha=wash)
    marked = axes.contourf(columns, rows, padded, levels=[0.5, 1.5], colors="none", hatches=[hatch])
    marked.set(edgecolor=colour, linewidth=0.0)
    axes.contour(columns, rows, padded, levels=[0.5], colors=colour, linewidths=1.2)
    axes.set(xlim=(0, inside_HW.shape[1]), ylim=(inside_HW.shape[0], 0))
