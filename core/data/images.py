"""Working images: what the model sees of an image file, before normalisation.

Files come from strangers. What Pillow can decode becomes 8-bit RGB (rotated according to EXIF, 16
bits scaled to 8, transparency over mid grey); anything else is an error that names the file. The
working image is the RGB image after the model's resize and crop, with pixels in [0, 1]; it records
the crop, so that a box in it can be converted to pixels of the file.

Shapes: C channels (3 colours, as a rule), H W rows and columns.
"""

import logging
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cnnviz.core.data.rasters import Raster, formats, is_array, is_raster, read_raster
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import exists, regular
from cnnviz.core.models.preprocess import Preprocess, original_size, reduce

__all__ = [
    "Preprocess",
    "WorkingImage",
    "decode_rgb",
    "find_images",
    "images_below",
    "prepare",
    "read_image",
    "read_picture",
    "read_rgb",
    "to_rgb",
]

_COMPANIONS = frozenset(
    {".cfg", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".py", ".txt", ".xml"}
    | {".yaml", ".yml"}
)
_log = logging.getLogger("cnnviz")
MID_GREY = (128, 128, 128, 255)

# Pillow's warnings about damaged files either become errors here or do not matter; a filter for the
# duration of a call would not be safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Errors that Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


_STRIP = 2**20  # pixels that are converted at a time
SQUASHED = 0.02
"""Relative difference of the scales of rows and columns that is more than rounding."""


@dataclass(frozen=True, eq=False)
class WorkingImage:
    """An image as the model sees it, before normalisation.

    Attributes:
        path: the file as the user named it.
        pixels: (C, H, W) float32 in [0, 1], on the CPU.
        box_original: y0, x0, y1, x1 of the crop in the file's pixels (after EXIF rotation).
        original_size: (rows, columns) of the file after EXIF rotation.
        bands: the channels that are drawn, as red, green and blue, or one as grey.
        raster: whether the file was read as values of channels, not as an RGB image.
        label: the name of its class in its data set.
        reopen: decodes it again, if it is not a file.
    """

    path: str
    pixels: Tensor
    box_original: tuple[float, float, float, float]
    original_size: tuple[int, int]
    bands: tuple[int, ...] = (0, 1, 2)
    raster: bool = False
    label: str | None = None
    reopen: Callable[[], Image.Image | Raster] | None = None

    def to_working(self, x: float, y: float) -> tuple[float, float]:
        """Converts (x, y) in the file's pixels to the working image's; may be outside."""
        top, left, bottom, right = self.box_original
        height, width = self.pixels.shape[-2:]
        return (x - left) * (width / (right - left)), (y - top) * (height / (bottom - top))

    def to_original(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """Converts a box (y0, x0, y1, x1) to the file's pixels, clipped to the file."""
        top, left, bottom, right = self.box_original
        height, width = self.pixels.shape[-2:]
        scale_y, scale_x = (bottom - top) / height, (right - left) / width
        y0, x0, y1, x1 = box
        rows, columns = self.original_size
        return (
            min(max(math.floor(top + y0 * scale_y), 0), rows),
            min(max(math.floor(left + x0 * scale_x), 0), columns),
            min(max(math.ceil(top + y1 * scale_y), 0), rows),
            min(max(math.ceil(left + x1 * scale_x), 0), columns),
        )


def _scale_wide(image: Image.Image) -> Image.Image:
    """Scales 16-bit and float greyscale to 8 bits; returns other modes unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    top = 1.0 if image.mode == "F" else 65535.0

    def to_bytes(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.float64)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):
            raise ValueError(f"its values run from {low:g} to {high:g}; 0 to {top:g} can be read")
        return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))

    return _by_strips(image, "L", to_bytes)


def _by_strips(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Converts to another mode by strips, so that a large image is not copied a third time."""
    whole = Image.new(mode, image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(convert(image.crop(box)), box)
    return whole


def _over_grey(strip: Image.Image) -> Image.Image:
    strip = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", strip.size, MID_GREY), strip).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB, with mid grey for transparency.

    Raises:
        ValueError: the mode has no RGB equivalent (LAB, floats outside 0…1).
    """
    image = _scale_wide(image)
    if image.has_transparency_data:
        return _by_strips(image, "RGB", _over_grey)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_rgb(path: str | Path, preprocess: Preprocess | None = None) -> Image.Image:
    """Decodes an image file (its first frame) to 8-bit RGB, upright."""
    try:
        return decode_rgb(regular(path), path, preprocess)
    except PermissionError as error:
        raise CnnvizError(f"'{path}' may not be read: permission denied") from error


def decode_rgb(
    content: Path | BinaryIO, path: str | Path, preprocess: Preprocess | None = None
) -> Image.Image:
    """Decodes the content of an image file, which messages call `path`; see `read_rgb`.

    At a reduced size if `preprocess` is fast.
    """
    try:
        with Image.open(content, formats=formats()) as file:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and file.width * file.height > limit:
                raise Image.DecompressionBombError(f"{file.width}x{file.height} is over {limit}")
            about = reduce(file, preprocess) if preprocess and preprocess.fast else {}
            ImageOps.exif_transpose(file, in_place=True)
            file.load()
            image = to_rgb(file)
            image.info.update(about)
            return image
    except PermissionError:
        raise
    except UnidentifiedImageError as error:
        raise CnnvizError(f"'{path}' is not an image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CnnvizError(
            f"'{path}' has more pixels than Pillow's safety limit of {Image.MAX_IMAGE_PIXELS}; "
            "make it smaller first"
        ) from error
    except _DECODER_ERRORS as error:
        raise CnnvizError(f"'{path}' cannot be decoded: {one_line(error)}") from error


def read_picture(path: str | Path, preprocess: Preprocess) -> Image.Image | Raster:
    """Reads a file as the network's channels need it: as 8-bit RGB, or as a raster."""
    if is_raster(path, preprocess):
        return read_raster(path, preprocess)
    return read_rgb(path, preprocess)


def prepare(
    picture: Image.Image | Raster, preprocess: Preprocess, path: str | Path
) -> WorkingImage:
    """Resizes and crops an RGB image or a raster as torchvision's presets do."""
    if isinstance(picture, Image.Image):
        if preprocess.channels != 3:
            raise CnnvizError(
                f"'{path}' has 3 channels, and the network takes {preprocess.channels}"
            )
        planes = [picture]
    else:
        planes = [Image.fromarray(band) for band in np.moveaxis(picture, 2, 0)]
    original = original_size(planes[0])
    if math.prod(preprocess.resized(original)) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise CnnvizError(
            f"'{path}' is {original[1]}x{original[0]}: too elongated to be resized for a working "
            f"image of {preprocess.crop[0]}x{preprocess.crop[1]}; crop it first"
        )
    cut = [torch.from_numpy(np.array(preprocess.cut(plane))) for plane in planes]
    if isinstance(picture, Image.Image):
        pixels = cut[0].permute(2, 0, 1).contiguous().float() / 255
    else:
        pixels = torch.stack(cut)
    pixels, box = preprocess.framed(pixels, original), preprocess.box(original)
    raster = not isinstance(picture, Image.Image)
    return WorkingImage(str(path), pixels, box, original, preprocess.bands, raster)


def read_image(path: str | Path, preprocess: Preprocess) -> WorkingImage:
    """Reads an image file as the working image.

    Raises:
        CnnvizError: it cannot be read, is too elongated, or has other channels.
    """
    return prepare(read_picture(path, preprocess), preprocess, path)


def file_crop(image: WorkingImage, longest: int = 640) -> NDArray[np.uint8] | None:
    """The crop of the working image in the file's pixels, for drawing maps over it.

    Args:
        image: as `read_image` returned it; its file is read again.
        longest: larger crops are reduced to this many pixels on the longer side.

    Returns:
        (h, w, 3) uint8 of the working image's proportions, or None if the file has no more pixels
        there than the working image, or is a raster.
    """
    top, left, bottom, right = image.box_original
    rows, columns = image.original_size
    inside = top >= 0 and left >= 0 and bottom <= rows and right <= columns
    if image.raster or not inside or bottom - top <= image.pixels.shape[-2]:
        return None
    whole = image.reopen() if image.reopen else read_rgb(image.path)
    assert isinstance(whole, Image.Image)  # noqa: S101 (not a raster)
    crop = whole.crop((round(left), round(top), round(right), round(bottom)))
    high, wide = image.pixels.shape[-2:]
    if abs((bottom - top) * wide / ((right - left) * high) - 1) > SQUASHED:
        share = min((bottom - top) / high, longest / max(high, wide))
        size = (round(wide * share), round(high * share))
        return np.asarray(crop.resize(size, Image.Resampling.LANCZOS))
    crop.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(crop)


@cache
def suffixes() -> frozenset[str]:
    """The lower-case suffixes of the formats that Pillow can decode here."""
    known = Image.registered_extensions()
    return frozenset(s for s, kind in known.items() if kind in formats())


def is_hidden(path: PurePath) -> bool:
    """Whether a file or a folder above it is hidden, or made by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _visible(folder: Path) -> Iterator[Path]:
    """All files below a folder and linked folders; a warning names the folders left out."""
    left_out: list[str] = []

    def unreadable(error: OSError) -> None:
        left_out.append(f"{error.filename} ({error.strerror})")

    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        below = [Path(place, name) for name in sorted(folders) if not is_hidden(Path(name))]
        twice = [path for path in below if os.path.realpath(path) in seen]
        left_out += [f"{path} (read already by another name)" for path in twice]
        folders[:] = [path.name for path in below if path not in twice]
        seen.update(os.path.realpath(path) for path in below)
        yield from (Path(place, name) for name in names if not is_hidden(Path(name)))
    if left_out:
        _log.warning("note: folders left out of %r: %s", str(folder), ", ".join(left_out))


def images_below(folder: Path) -> list[Path]:
    """All image files below a folder, by suffix, sorted, without hidden ones.

    If there are none: all arrays (.npy, .npz). A warning counts files of other suffixes, except
    for those that are usual next to images.
    """
    files = sorted(path for path in _visible(folder) if path.is_file())
    images = [path for path in files if path.suffix.lower() in suffixes()]
    images = images or [path for path in files if is_array(path)]
    note_unused(folder, (p.suffix.lower() for p in files), {p.suffix.lower() for p in images})
    return images


def note_unused(folder: str | Path, kinds: Iterable[str], used: Collection[str]) -> None:
    """Warns of the files of a folder with other suffixes than those that are used, if any is."""
    others = {k: n for k, n in Counter(kinds).items() if used and k not in {*used, *suffixes()}}
    note_left_out(folder, others, "not images by their suffix")


def note_left_out(source: str | Path, kinds: Mapping[str, int], why: str) -> None:
    """Warns of the files of a source that are not used, except those that are usual there."""
    others = {kind: count for kind, count in kinds.items() if kind not in _COMPANIONS}
    if others:
        named = ", ".join(f"{n} {kind or 'without a suffix'}" for kind, n in others.items())
        _log.warning("note: files left out of %r, %s: %s", str(source), why, named)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Lists files as they are named, and all images below folders."""
    images: list[Path] = []
    for path in map(Path, paths):
        if exists(path) and path.is_dir():
            below = images_below(path)
            if not below:
                raise UsageError(f"the folder '{path}' holds no image (.jpg .png .webp .tif ...)")
            images += below
        elif exists(path):
            images.append(path)
        else:
            raise UsageError(f"no file or folder '{path}'")
    if not images:
        raise UsageError("no image was named")
    return images
