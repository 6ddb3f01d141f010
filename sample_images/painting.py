"""A small painter: supersampled shapes, lit as if they were inflated, over arrays of colour.

Everything is measured in the picture's own pixels; the canvas works at `SCALE` times that and is
averaged down at the end. Light falls from the upper left. Colours are RGB in [0, 1]. All chance
comes from the canvas's own seeded generator, so a picture can be painted again pixel by pixel.
Shapes: H W rows and columns of the supersampled canvas.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SCALE = 3
LIGHT = (0.45, 0.89)
WARM, COOL = np.array([1.0, 0.96, 0.86]), np.array([0.90, 0.96, 1.0])

Array = npt.NDArray[np.float64]
Points = Sequence[tuple[float, float]]
Window = tuple[slice, slice]


def rgb(code: str) -> Array:
    """The colour written as six hexadecimal digits."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])


def mix(low: Array, high: Array, share: Array | float) -> Array:
    """`low` where `share` is 0, `high` where it is 1; a map of shares gives an (H, W, 3) field."""
    weight = np.asarray(share, dtype=float)
    weight = weight[..., None] if weight.ndim == 2 else weight
    mixed: Array = low + (high - low) * weight
    return mixed


def spline(points: Points, *, closed: bool = True, steps: int = 10) -> Points:
    """The Catmull-Rom curve through the points, `steps` corners to each stretch."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [p[:1], p, p[-1:]])
    t = (np.arange(steps) / steps)[:, None]
    curve = [
        0.5
        * (
            2 * b
            + (c - a) * t
            + (2 * a - 5 * b + 4 * c - d) * t**2
            + (3 * b - a - 3 * c + d) * t**3
        )
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    corners = np.concatenate(curve if closed else [*curve, p[-1:]])
    return [(float(x), float(y)) for x, y in corners]


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Points:
    """Corners of an ellipse around (x, y), turned clockwise by `tilt` degrees."""
    angle, turn = np.linspace(0, 2 * np.pi, 72, endpoint=False), np.deg2rad(tilt)
    u, v = rx * np.cos(angle), ry * np.sin(angle)
    xs, ys = x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)
    return [(float(a), float(b)) for a, b in zip(xs, ys, strict=True)]


def limb(points: Points, widths: Sequence[float]) -> Points:
    """The outline of a limb: a smooth centre line, a width at each of its points, round ends."""
    rows = [(x, y) for x, y in points]
    line = np.array(spline(rows, closed=False))
    width = np.array(spline([(w, 0.0) for w in widths], closed=False))[:, :1]
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    half = np.deg2rad(np.arange(-75, 90, 15))[:, None]
    caps = [
        middle + side * (np.sin(half) * over + np.cos(half) * np.array([over[1], -over[0]]))
        for middle, over, side in ((line[-1], across[-1], 1), (line[0], across[0], -1))
    ]
    outline = np.concatenate([line - across, caps[0], (line + across)[::-1], caps[1]])
    return [(float(x), float(y)) for x, y in outline]


def moved(points: Points, dx: float = 0.0, dy: float = 0.0, size: float = 1.0) -> Points:
    """The points scaled about the origin, then shifted."""
    return [(x * size + dx, y * size + dy) for x, y in points]


def _box_blur(rows: Array, radius: int) -> Array:
    """Each row's mean with the `radius` rows before and after it; the outermost rows go on."""
    height = len(rows)
    inner = np.clip(np.arange(-radius - 1, height + radius), 0, height - 1)
    sums = np.cumsum(rows[inner], axis=0)
    return (sums[2 * radius + 1 :] - sums[:height]) / (2 * radius + 1)


def blur(field: Array, radius: float) -> Array:
    """Three box blurs down and across, nearly a Gaussian one of `radius` picture pixels."""
    for _ in range(2):
        steps = round(radius * SCALE / 1.7)
        for _ in range(3 if steps > 0 else 0):
            field = _box_blur(field, steps)
        field = np.ascontiguousarray(np.swapaxes(field, 0, 1))
    return field


class Canvas:
    """A picture in the making, and which of its pixels belong to its subject."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self.width, self.height = width, height
        self.shape = (height * SCALE, width * SCALE)
        self.pixels: Array = np.zeros((*self.shape, 3))
        self.subject: Array = np.zeros(self.shape)
        self._chance = np.random.default_rng(seed)
        self._anchor, self._size = np.zeros(2), 1.0
        rows, columns = np.indices(self.shape)
        self.x: Array = (columns + 0.5) / SCALE
        self.y: Array = (rows + 0.5) / SCALE

    def scale(self, size: float, x: float, y: float) -> None:
        """From now on all that is drawn is `size` times as large, seen from the point (x, y)."""
        self._anchor, self._size = np.array([x, y], dtype=float), size
        self.x, self.y = x + (self.x - x) / size, y + (self.y - y) / size

    def _placed(self, points: Points) -> Array:
        """Corners in pixels of the supersampled canvas."""
        return (self._anchor + (np.asarray(points) - self._anchor) * self._size) * SCALE

    def uniform(self, low: float, high: float) -> float:
        """A random number between the two."""
        return low + (high - low) * float(self._chance.random())

    def window(self, points: Points, margin: float) -> Window:
        """The rows and columns of the supersampled canvas around a shape."""
        corners, reach = self._placed(points), margin * self._size * SCALE
        (x0, y0), (x1, y1) = corners.min(axis=0) - reach, corners.max(axis=0) + reach
        top, bottom = (int(np.clip(edge, 2, self.shape[0] - 2)) for edge in (y0, y1))
        left, right = (int(np.clip(edge, 2, self.shape[1] - 2)) for edge in (x0, x1))
        return slice(top - 2, bottom + 2), slice(left - 2, right + 2)

    def noise(self, size: float, *, stretch: float = 1.0, octaves: int = 3) -> Array:
        """Cloudy (H, W) noise in [0, 1], blotches `size` high and `size * stretch` wide."""
        total = np.zeros(self.shape)
        for octave in range(octaves):
            step = size / 2**octave
            cells = (
                max(2, round(self.width / (step * stretch)) + 1),
                max(2, round(self.height / step) + 1),
            )
            coarse = self._chance.random((cells[1], cells[0])).astype(np.float32)
            layer = Image.fromarray(coarse).resize(self.shape[::-1], Image.Resampling.BICUBIC)
            total += (np.asarray(layer, dtype=float) - 0.5) / 2**octave
        return np.clip(0.5 + total * 0.9, 0, 1)

    def mask(self, points: Points) -> Array:
        """1 inside the polygon, 0 outside; (H, W)."""
        return self._drawn([points], (slice(0, self.shape[0]), slice(0, self.shape[1])))

    def _drawn(self, polygons: Sequence[Points], window: Window) -> Array:
        rows, columns = window
        image = Image.new("L", (columns.stop - columns.start, rows.stop - rows.start), 0)
        for points in polygons:
            corners = self._placed(points) - (columns.start, rows.start)
            ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners], fill=1)
        return np.asarray(image, dtype=float)

    def lay(self, colour: Array, mask: Array | float = 1.0) -> None:
        """Paints a colour, or an (H, W, 3) field of it, where the mask says, as much as it says."""
        cover = np.asarray(mask, dtype=float)
        cover = cover[..., None] if cover.ndim == 2 else cover
        self.pixels += (colour - self.pixels) * cover

    def fill(
        self,
        points: Points,
        colour: Array,
        *,
        also: Sequence[Points] = (),
        volume: float = 0.0,
        depth: float = 1.0,
        texture: Array | None = None,
        soft: float = 0.0,
        opacity: float = 1.0,
        subject: bool = True,
        inside: Array | None = None,
    ) -> Array:
        """Paints a polygon and returns its mask.

        Args:
            points: The corners.
            colour: One colour, or a field of it.
            also: Further polygons that make one shape with the first.
            volume: How far from the rim the shape still curves; 0 leaves it flat.
            depth: How strongly light and shade differ.
            texture: An (H, W) map around 1 that the colour is multiplied with.
            soft: The blur of the rim.
            opacity: 1 covers what lies beneath.
            subject: Whether the shape is part of what the picture shows.
            inside: A mask that the shape is cut off by.
        """
        corners = [corner for outline in (points, *also) for corner in outline]
        window = self.window(corners, 2 + 3 * max(volume, soft))
        mask = self._drawn([points, *also], window)
        if inside is not None:
            mask = mask * inside[window]
        field = colour[window] if colour.ndim == 3 else np.broadcast_to(colour, (*mask.shape, 3))
        if texture is not None:
            field = field * texture[window][..., None]
        if volume:
            field = lit(field, mask, volume * self._size, depth)
        cover = opacity * (blur(mask, soft * self._size) if soft else mask)[..., None]
        self.pixels[window] += (np.clip(field, 0, 1) - self.pixels[window]) * cover
        whole = np.zeros(self.shape)
        whole[window] = mask
        if subject:
            self.subject[window] = np.maximum(self.subject[window], mask)
        return whole

    def shadow(self, points: Points, strength: float, soft: float) -> None:
        """Darkens what lies under a shape, with a soft rim."""
        window = self.window(points, 2 + 3 * soft)
        mask = blur(self._drawn([points], window), soft * self._size)
        self.pixels[window] *= 1 - strength * mask[..., None]

    def soften(self, radius: float) -> None:
        """Puts all that has been painted so far out of focus."""
        self.pixels = blur(self.pixels, radius)

    def image(self) -> Image.Image:
        """The picture at its own size, 8 bits a channel, in 128 grades that keep the file small."""
        small = self._averaged(np.clip(self.pixels, 0, 1))
        return Image.fromarray(np.round(np.round(small * 127) * (255 / 127)).astype(np.uint8))

    def subject_mask(self) -> npt.NDArray[np.bool_]:
        """The picture's pixels at least half covered by the subject, (height, width)."""
        inside: npt.NDArray[np.bool_] = self._averaged(self.subject) >= 0.5
        return inside

    def _averaged(self, field: Array) -> Array:
        tail = field.shape[2:]
        blocks = field.reshape(self.height, SCALE, self.width, SCALE, *tail)
        averages: Array = blocks.mean(axis=(1, 3))
        return averages


def lit(field: Array, mask: Array, volume: float, depth: float) -> Array:
    """The colours of a flat shape as if it bulged towards the viewer, lit from the upper left."""
    swell = blur(mask, volume) + 0.5 * blur(mask, volume / 3)
    down, right = np.gradient(swell)
    slope = (LIGHT[0] * right + LIGHT[1] * down) * volume * SCALE
    light = np.clip(slope * depth, -0.75, 0.75)[..., None]
    bright = field + (WARM - field) * np.clip(light, 0, 1) * 0.75
    result: Array = np.where(light > 0, bright, field * COOL ** (-2 * light) * (1 + light * 0.9))
    return result
