"""The sheets of a scan: one row per filter, its strongest patches from left to right.

`patches.png` shows the patches, all of a layer at one scale (a patch that is cut off at the edge
of its image is smaller) unless each has a size of its own (`Crop.EFFECTIVE`); `images.png` the
whole images with the patch as a white box. A sheet is one array of pixels with text over it, so a
page of hundreds of patches is one picture.

Lengths are in pixels of the sheet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import escape, image_pixels
from cnnviz.filters.patches.choices import Crop, Ranking
from cnnviz.filters.patches.images import PatchImages
from cnnviz.filters.patches.max_patches import FilterPatches, MaxPatches, Patch

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 25
"""Filters on one page."""

PATCH_SIDE, IMAGE_SIDE = 84, 112
GAP, MARGIN, HEADER, NAMES, LINE, NARROWEST = 8, 12, 44, 150, 17, 460
FONT, SMALL, LARGE, HEADING = "DejaVu Sans", 12, 14, 16
GREY = 236
BLOCKY = 12  # patches up to this size are enlarged pixel by pixel
RANKED = {
    Ranking.MAX: "largest unit",
    Ranking.NORM: "norm of the map",
    Ranking.MEAN: "mean of the map",
}

Paint = Callable[[Patch, WorkingImage], "NDArray[np.uint8]"]


@dataclass(frozen=True)
class _Text:
    """A line of text, its height centred on y."""

    x: float
    y: float
    text: str
    size: int
    longest: int
    centred: bool = False


def count_sheets(result: MaxPatches, layer: str) -> int:
    """How many sheets `draw` makes of a layer."""
    return 2 * -(-len(result.of(layer)) // ROWS)


def draw(
    result: MaxPatches, layer: str, images: PatchImages
) -> "Iterator[tuple[str, NDArray[np.uint8]]]":
    """A layer's sheets (uint8 RGB) with the file names they are meant for, a page at a time.

    Args:
        result: of the scan.
        layer: one of its layers.
        images: of the same data set.

    Raises:
        CnnvizError: an image can no longer be read.
    """
    filters = result.of(layer)
    pages = count_sheets(result, layer) // 2
    one_scale = result.plan.spec.crop is Crop.RECEPTIVE_FIELD
    frame = max(_longer(patch) for entry in filters for patch in entry.patches)
    paint = _patch_painter(frame if one_scale else None)
    for page in range(pages):
        rows = filters[page * ROWS : (page + 1) * ROWS]
        found = images.fetch(patch.index for entry in rows for patch in entry.patches)
        of = f", page {page + 1} of {pages}" if pages > 1 else ""
        ending = f"-{page + 1}.png" if page else ".png"
        heading = f"{layer}: {{}} by {RANKED[result.plan.spec.score]}{of}"
        patches, whole = (heading.format(f"strongest {what}") for what in ("patches", "images"))
        yield f"patches{ending}", _sheet(rows, found, patches, PATCH_SIDE, paint)
        yield f"images{ending}", _sheet(rows, found, whole, IMAGE_SIDE, _paint_image)


def _longer(patch: Patch) -> int:
    """The longer side of the patch."""
    y0, x0, y1, x1 = patch.box
    return max(y1 - y0, x1 - x0)


def _resized(pixels: "NDArray[np.uint8]", scale: float, blocky: bool) -> "NDArray[np.uint8]":
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    how = Image.Resampling.NEAREST if blocky else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def _patch_painter(frame: int | None) -> Paint:
    """Cuts patches and enlarges them so that `frame` pixels, or each by itself, fill a cell."""

    def paint(patch: Patch, image: WorkingImage) -> "NDArray[np.uint8]":
        y0, x0, y1, x1 = patch.box
        if y0 == y1 or x0 == x1:
            return np.full((1, 1, 3), GREY, np.uint8)
        side = frame or _longer(patch)
        return _resized(image_pixels(image)[y0:y1, x0:x1], PATCH_SIDE / side, side <= BLOCKY)

    return paint


def _paint_image(patch: Patch, image: WorkingImage) -> "NDArray[np.uint8]":
    """The whole image with the patch's outline, white between thin black lines."""
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
    found: dict[int, WorkingImage],
    heading: str,
    side: int,
    paint: Paint,
) -> "NDArray[np.uint8]":
    columns = max(len(entry.patches) for entry in rows)
    lines = 2 if any(patch.label is not None for entry in rows for patch in entry.patches) else 1
    step_y, step_x = side + lines * LINE + GAP, side + GAP
    width = max(MARGIN + NAMES + columns * step_x, NARROWEST)
    sheet = np.full((HEADER + len(rows) * step_y, width, 3), 255, np.uint8)
    texts = [_Text(MARGIN, HEADER / 2, heading, HEADING, width // 9)]
    for number, entry in enumerate(rows):
        top = HEADER + number * step_y
        texts += _name(entry, top, side)
        for place, patch in enumerate(entry.patches):
            left = MARGIN + NAMES + place * step_x
            _paste(sheet[top : top + side, left : left + side], paint(patch, found[patch.index]))
            middle, under = left + side / 2, top + side + 0.6 * LINE
            texts.append(_Text(middle, under, f"{patch.score:.4g}", SMALL, side // 7, True))
            if patch.label is not None:
                texts.append(_Text(middle, under + LINE, patch.label, SMALL, side // 7, True))
    return _written(sheet, texts)


def _paste(cell: "NDArray[np.uint8]", picture: "NDArray[np.uint8]") -> None:
    """Puts a picture in the middle of its cell."""
    cell[:] = GREY
    height, width = (min(a, b) for a, b in zip(picture.shape[:2], cell.shape[:2], strict=True))
    top, left = (cell.shape[0] - height) // 2, (cell.shape[1] - width) // 2
    cell[top : top + height, left : left + width] = picture[:height, :width]


def _name(entry: FilterPatches, top: int, side: int) -> Iterator[_Text]:
    """Which filter, which class prevails, how often it fires: beside the row."""
    lines = [f"filter {entry.filter}"]
    if entry.classes:
        label, count = next(iter(entry.classes.items()))
        lines.append(f"{count} of {len(entry.patches)}: {label}")
    lines.append("dead" if entry.active_share == 0 else f"active on {entry.active_share:.0%}")
    first = top + side / 2 - (len(lines) - 1) * LINE / 2
    for number, text in enumerate(lines):
        size = SMALL if number else LARGE
        yield _Text(MARGIN, first + number * LINE, text, size, NAMES // 7)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(FONT), size)


def _written(sheet: "NDArray[np.uint8]", texts: Iterable[_Text]) -> "NDArray[np.uint8]":
    """The sheet with text over it."""
    image = Image.fromarray(sheet)
    brush = ImageDraw.Draw(image)
    for text in texts:
        shown = escape(text.text, text.longest).replace(r"\$", "$")
        anchor = "mm" if text.centred else "lm"
        brush.text((text.x, text.y), shown, fill=(0, 0, 0), font=_font(text.size), anchor=anchor)
    return np.asarray(image)
