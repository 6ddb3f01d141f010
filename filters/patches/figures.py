"""The sheets of a scan: one row per filter, its strongest patches from left to right.

`patches.png` shows the patches, cut from the file's own pixels. All of a layer have the same scale,
so a patch cut off at the edge of its image is smaller, unless the sizes of patches differ
(`Crop.EFFECTIVE`). `images.png` shows the whole images with each patch as a white box.
`evidence.png` shows under each patch what in it drives the filter. Lengths are in pixels of the
sheet.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import image_pixels, in_colour, to_uint8
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.text import shortened, wrap
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.evidence import Evidence, to_arrays
from cnnviz.filters.patches.options import Crop, Ranking
from cnnviz.filters.patches.results import FilterPatches, MaxPatches, Patch

ROWS, EVIDENCE_ROWS = 25, 8
"""Filters on one page of patches, and of evidence."""

PATCH_SIDE, IMAGE_SIDE = 120, 112
GAP, MARGIN, NAMES, LINE, NARROWEST = 10, 14, 180, 17, 460
FONT, SMALL, LARGE, HEADING = "DejaVu Sans", 12, 14, 16
GREY = 236
_LIMIT = 0.995  # quantile of |evidence| that has the fullest colour
BLOCKY = 12  # patches up to this size are enlarged without interpolation
RANKED = {
    Ranking.MAX: "largest activation",
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


def count_evidence(result: MaxPatches, layer: str) -> int:
    """The number of sheets that `draw_evidence` makes of a layer."""
    return -(-len(result.of(layer)) // EVIDENCE_ROWS)


def draw(result: MaxPatches, layer: str, images: PatchImages) -> Iterator[tuple[str, Pixels]]:
    """Draws a layer's sheets (uint8 RGB), page by page, each with its file name.

    Raises:
        CnnvizError: an image can no longer be read.
    """
    paint = _patch_painter(_frame(result, layer))
    for rows, number, which in _pages(result.of(layer), ROWS):
        read = images.fetch(patch.index for entry in rows for patch in entry.patches)
        heading = f"{layer}: {{}} by {RANKED[result.score]}{which}"
        patches, whole = (heading.format(f"strongest {what}") for what in ("patches", "images"))
        yield f"patches{number}.png", _sheet(rows, read, patches, PATCH_SIDE, {"": paint})
        yield f"images{number}.png", _sheet(rows, read, whole, IMAGE_SIDE, {"": _paint_image})


def draw_evidence(
    result: MaxPatches,
    layer: str,
    images: PatchImages,
    trace: Callable[[Sequence[FilterPatches]], Sequence[Sequence[Evidence]]],
) -> Iterator[tuple[str, dict[str, np.ndarray], Pixels]]:
    """Draws each patch above its gradient and its guided back-projection, page by page.

    Yields:
        The name of the page's files without a suffix, its arrays, its sheet (uint8 RGB).

    Raises:
        CnnvizError: an image can no longer be read, or the network has no gradient.
    """
    frame = _frame(result, layer)
    for rows, number, which in _pages(result.of(layer), EVIDENCE_ROWS):
        traced = trace(rows)
        read = images.fetch(patch.index for entry in rows for patch in entry.patches)
        of_patch = {
            id(patch): evidence
            for entry, row in zip(rows, traced, strict=True)
            for patch, evidence in zip(entry.patches, row, strict=True)
        }
        paints: dict[str, Paint] = {
            "": _patch_painter(frame),
            "gradient": partial(_paint_evidence, of_patch, "gradient", frame),
            "guided back-projection": partial(_paint_evidence, of_patch, "guided", frame),
        }
        heading = f"{layer}: what in the patches drives the filters{which}"
        sheet = _sheet(rows, read, heading, PATCH_SIDE, paints)
        yield f"evidence{number}", to_arrays(rows, traced), sheet


def _pages(
    filters: Sequence[FilterPatches], size: int
) -> Iterator[tuple[Sequence[FilterPatches], str, str]]:
    """The filters of each page, the page's ending of file names, and of headings."""
    pages = -(-len(filters) // size)
    for page in range(pages):
        which = f", page {page + 1} of {pages}" if pages > 1 else ""
        yield filters[page * size : (page + 1) * size], f"-{page + 1}" if page else "", which


def _frame(result: MaxPatches, layer: str) -> int | None:
    """The side that fills a cell, if all patches have one scale; None if each fills its cell."""
    if result.crop is not Crop.RECEPTIVE_FIELD:
        return None
    return max(_longer(patch) for entry in result.of(layer) for patch in entry.patches)


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


def _paint_evidence(
    of_patch: Mapping[int, Evidence],
    kind: str,
    frame: int | None,
    patch: Patch,
    image: WorkingImage,
) -> Pixels:
    """Paints the evidence in a patch around a mid grey that means zero, each at its own scale."""
    values_CHW = getattr(of_patch[id(patch)], kind)
    if not values_CHW.size:
        return np.full((1, 1, 3), GREY, np.uint8)
    limit = float(np.quantile(np.abs(values_CHW), _LIMIT)) or float(np.abs(values_CHW).max())
    pixels = to_uint8(in_colour(0.5 + values_CHW / (2 * limit or 1.0), image.bands))
    side = frame or _longer(patch)
    return _resized(pixels, PATCH_SIDE / side, side <= BLOCKY)


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
    paints: Mapping[str, Paint],
) -> Pixels:
    """Draws a row per filter, of a line of pictures per painter, which are named at the left."""
    columns = max(len(entry.patches) for entry in rows)
    lines = max(len(_below(patch)) for entry in rows for patch in entry.patches)
    step_x, step_y = side + GAP, len(paints) * (side + GAP) + lines * LINE
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
        bottom = top + step_y - GAP - lines * LINE
        for line, (what, paint) in enumerate(paints.items()):
            y = top + line * step_x
            texts.append(_Text(MARGIN, y + side / 2, what, SMALL, NAMES - GAP))
            for place, patch in enumerate(entry.patches):
                x = MARGIN + NAMES + place * step_x
                _paste(sheet[y : y + side, x : x + side], paint(patch, images[patch.index]))
        for place, patch in enumerate(entry.patches):
            middle = MARGIN + NAMES + place * step_x + side / 2
            for line, text in enumerate(_below(patch)):
                y = bottom + round((0.6 + line) * LINE)
                texts.append(_Text(middle, y, text, SMALL, side, True))
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
    lines.append("dead" if entry.dead else f"active on {100 * entry.active_share:.0f} % of images")
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
