"""The sheets of a scan: one row per filter, its strongest patches from left to right.

`patches.png` shows the patches, cut from the file's own pixels. All of a layer have the same scale,
so a patch cut off at the edge of its image is smaller, unless the sizes of patches differ
(`Crop.EFFECTIVE`). `images.png` shows the whole images with each patch as a white box. Lengths are
in pixels of the sheet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.text import shortened, wrap
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.options import Crop, Ranking
from cnnviz.filters.patches.results import FilterPatches, MaxPatches, Patch

ROWS = 25
"""Filters on one page."""

PATCH_SIDE, IMAGE_SIDE = 120, 112
GAP, MARGIN, NAMES, LINE, NARROWEST = 10, 14, 165, 17, 460
FONT, SMALL, LARGE, HEADING = "DejaVu Sans", 12, 14, 16
GREY = 236
BLOCKY = 12  # patches up to this size are enlarged without interpolation
RANKED = {
    Ranking.MAX: "largest unit",
    Ranking.NORM: "norm of the map",
    Ranking.MEAN: "mean of the map",
}

Pixels = NDArray[np.uint8]
Paint = Callable[[Patch, WorkingImage], Pixels]


@dataclass(frozen=True)
class _Text:
    """A line of text, its height centred on y."""

    x: float
    y: float
    text: str
    size: int
    width: float
    centred: bool = False


def count_sheets(result: MaxPatches, layer: str) -> int:
    """The number of sheets that `draw` makes of a layer."""
    return 2 * -(-len(result.of(layer)) // ROWS)


def draw(result: MaxPatches, layer: str, images: PatchImages) -> Iterator[tuple[str, Pixels]]:
    """Draws a layer's sheets (uint8 RGB), page by page, each with its file name.

    Raises:
        CnnvizError: an image can no longer be read.
    """
    filters = result.of(layer)
    pages = count_sheets(result, layer) // 2
    one_scale = result.crop is Crop.RECEPTIVE_FIELD
    frame = max(_longer(patch) for entry in filters for patch in entry.patches)
    paint = _patch_painter(frame if one_scale else None)
    for page in range(pages):
        rows = filters[page * ROWS : (page + 1) * ROWS]
        read = images.fetch(patch.index for entry in rows for patch in entry.patches)
        which = f", page {page + 1} of {pages}" if pages > 1 else ""
        ending = f"-{page + 1}.png" if page else ".png"
        heading = f"{layer}: {{}} by {RANKED[result.score]}{which}"
        patches, whole = (heading.format(f"strongest {what}") for what in ("patches", "images"))
        yield f"patches{ending}", _sheet(rows, read, patches, PATCH_SIDE, paint)
        yield f"images{ending}", _sheet(rows, read, whole, IMAGE_SIDE, _paint_image)


def _longer(patch: Patch) -> int:
    """The longer side of the patch."""
    y0, x0, y1, x1 = patch.box
    return max(y1 - y0, x1 - x0)


def _resized(pixels: Pixels, scale: float, blocky: bool) -> Pixels:
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    how = Image.Resampling.NEAREST if blocky else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _patch_painter(frame: int | None) -> Paint:
    """Paints patches so that `frame` pixels fill a cell; without `frame`, so that each fills it."""

    def paint(patch: Patch, image: WorkingImage) -> Pixels:
        y0, x0, y1, x1 = patch.box
        if y0 == y1 or x0 == x1:
            return np.full((1, 1, 3), GREY, np.uint8)
        side, pixels = frame or _longer(patch), photograph(image)
        finer = pixels.shape[0] / image.pixels.shape[-2]
        y0, x0, y1, x1 = (round(edge * finer) for edge in patch.box)
        return _resized(pixels[y0:y1, x0:x1], PATCH_SIDE / (side * finer), side <= BLOCKY)

    return paint


def _paint_image(patch: Patch, image: WorkingImage) -> Pixels:
    """Paints the whole image with the outline of the patch, white between thin black lines."""
    pixels = image_pixels(image)
    scale = IMAGE_SIDE / max(pixels.shape[:2])
    shown = _resized(pixels, scale, blocky=scale >= 3).copy()
    bottom, right = shown.shape[0] - 1, shown.shape[1] - 1
    y0, x0, y1, x1 = (round(edge * scale) for edge in patch.box)
    for inset, level in ((0, 0), (1, 255), (2, 255), (3, 0)):
        top, left = min(y0 + inset, bottom), min(x0 + inset, right)
        low, far = max(y1 - 1 - inset, top), max(x1 - 1 - inset, left)
        shown[[top, low], left : far + 1] = level
        shown[top : low + 1, [left, far]] = level
    return shown


def _sheet(
    rows: Sequence[FilterPatches],
    images: dict[int, WorkingImage],
    heading: str,
    side: int,
    paint: Paint,
) -> Pixels:
    columns = max(len(entry.patches) for entry in rows)
    lines = max(len(_below(patch)) for entry in rows for patch in entry.patches)
    step_y, step_x = side + lines * LINE + GAP, side + GAP
    width = max(2 * MARGIN + NAMES + columns * step_x - GAP, NARROWEST)
    title = wrap(heading, HEADING, width - 2 * MARGIN)
    header = 2 * MARGIN + len(title) * 20
    sheet = np.full((header + len(rows) * step_y, width, 3), 255, np.uint8)
    texts = [
        _Text(MARGIN, MARGIN + 20 * (place + 0.5), line, HEADING, width)
        for place, line in enumerate(title)
    ]
    for number, entry in enumerate(rows):
        top = header + number * step_y
        texts += _name(entry, top, side)
        for place, patch in enumerate(entry.patches):
            left = MARGIN + NAMES + place * step_x
            _paste(sheet[top : top + side, left : left + side], paint(patch, images[patch.index]))
            middle = left + side / 2
            for line, text in enumerate(_below(patch)):
                under = top + side + (0.6 + line) * LINE
                texts.append(_Text(middle, under, text, SMALL, side, True))
    return _add_texts(sheet, texts)


def _below(patch: Patch) -> list[str]:
    """The text under a patch: its score, its class and its image."""
    labels = [patch.class_] if patch.class_ else []
    return [f"{patch.score:.4g}", *labels, Path(patch.image).name]


def _paste(cell: Pixels, picture: Pixels) -> None:
    """Puts a picture in the centre of its cell."""
    cell[:] = GREY
    height, width = (min(a, b) for a, b in zip(picture.shape[:2], cell.shape[:2], strict=True))
    top, left = (cell.shape[0] - height) // 2, (cell.shape[1] - width) // 2
    cell[top : top + height, left : left + width] = picture[:height, :width]


def _name(entry: FilterPatches, top: int, side: int) -> Iterator[_Text]:
    """The text left of a row: filter, most frequent class, share of images it is active on."""
    lines = [f"filter {entry.filter}"]
    if entry.classes:
        label, count = next(iter(entry.classes.items()))
        lines.append(f"{count} of {len(entry.patches)}: {label}")
    lines.append("dead" if entry.dead else f"active on {entry.active_share:.0%} of images")
    first = top + side / 2 - (len(lines) - 1) * LINE / 2
    for number, text in enumerate(lines):
        size = SMALL if number else LARGE
        yield _Text(MARGIN, first + number * LINE, text, size, NAMES - GAP)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(FONT), size)


def _add_texts(sheet: Pixels, texts: Iterable[_Text]) -> Pixels:
    """The sheet with text on it."""
    image = Image.fromarray(sheet)
    brush = ImageDraw.Draw(image)
    for text in texts:
        shown = shortened(text.text, text.size, text.width)
        anchor = "mm" if text.centred else "lm"
        brush.text((text.x, text.y), shown, fill=(0, 0, 0), font=_font(text.size), anchor=anchor)
    return np.asarray(image)
