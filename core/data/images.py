"""From any picture file to the working image: what the model sees, before normalisation.

Files come from strangers. Whatever Pillow can decode becomes 8-bit RGB (rotated as its EXIF says,
16 bits scaled to 8, alpha laid over mid grey); whatever it cannot is an error that names the file.
The working image is the RGB image after the model's own resize and crop, with pixels in [0, 1];
it knows where it was cut from, so that a box in it can be given in the file's own pixels.

Shapes: C channels (3 colours, as a rule), H W rows and columns.
"""

import logging
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cnnviz.core.data.rasters import Raster, is_array, is_raster, read_raster
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import exists, regular
from cnnviz.core.models.preprocess import Preprocess

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

# Formats that Pillow only recognises, or that need a program beside it.
_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_COMPANIONS = frozenset(
    {".cfg", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".md", ".py", ".txt", ".xml"}
    | {".yaml", ".yml"}
)
_log = logging.getLogger("cnnviz")
MID_GREY = (128, 128, 128, 255)

# What Pillow grumbles about in damaged files either shows as an error here or does not matter;
# a filter for the length of a call would not be safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Everything that Pillow's decoders have been seen to raise on damaged files.
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
"""Difference of the scales of rows and columns, as a share, from which it is no rounding."""


@dataclass(frozen=True, eq=False)
class WorkingImage:
    """A picture as the model gets it, before normalisation.

    Attributes:
        path: the file as the user named it.
        pixels: (C, H, W) float32 in [0, 1], on the CPU.
        box_original: y0, x0, y1, x1 of the crop in the file's pixels (after EXIF rotation).
        original_size: (rows, columns) of the file after EXIF rotation.
        bands: the channels that are drawn, as red, green and blue, or one as grey.
        raster: whether the file was read as values of channels, not as a picture in RGB.
        label: its class in the data set that it is of, by name.
        reopen: decodes it again, where it is no file of its own.
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
        """A place (x, y) in the file's pixels as (x, y) in the working image's; may lie outside."""
        top, left, bottom, right = self.box_original
        height, width = self.pixels.shape[-2:]
        return (x - left) * (width / (right - left)), (y - top) * (height / (bottom - top))

    def to_original(self, box: Sequence[float]) -> tuple[int, int, int, int]:
        """A box (y0, x0, y1, x1) of the working image in the file's pixels, clipped to the file."""
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
    """Brings 16-bit and float greyscale to 8 bits; other modes are returned as they are."""
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
    """Converts pixels to another mode; of a large picture, no third copy of it is ever held."""
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
    """Any Pillow mode to 8-bit RGB; what is transparent shows mid grey.

    Raises:
        ValueError: the mode has no RGB reading (LAB, floats outside 0…1).
    """
    image = _scale_wide(image)
    if image.has_transparency_data:
        return _by_strips(image, "RGB", _over_grey)
    return image if image.mode == "RGB" else image.convert("RGB")


def read_rgb(path: str | Path) -> Image.Image:
    """Decodes a picture file (the first frame of it) to 8-bit RGB, upright.

    Raises:
        CnnvizError: the file is missing, no image, truncated, or larger than Pillow's bomb limit.
    """
    try:
        return decode_rgb(regular(path), path)
    except PermissionError as error:
        raise CnnvizError(f"'{path}' may not be read: permission denied") from error


def decode_rgb(content: Path | BinaryIO, path: str | Path) -> Image.Image:
    """Decodes the content of a picture file, which messages call `path`; see `read_rgb`."""
    try:
        with Image.open(content) as file:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and file.width * file.height > limit:
                raise Image.DecompressionBombError(f"{file.width}x{file.height} is over {limit}")
            ImageOps.exif_transpose(file, in_place=True)
            file.load()
            return to_rgb(file)
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
    """A file as the network's channels have it: a picture in 8-bit RGB, else a raster.

    Raises:
        CnnvizError: see `read_rgb` and `read_raster`.
    """
    if is_raster(path, preprocess):
        return read_raster(path, preprocess)
    return read_rgb(path)


def prepare(
    picture: Image.Image | Raster, preprocess: Preprocess, path: str | Path
) -> WorkingImage:
    """Resizes and crops an RGB image or a raster as torchvision's presets do.

    Raises:
        CnnvizError: the image is so elongated that resizing it would explode, or of other channels.
    """
    if isinstance(picture, Image.Image):
        if preprocess.channels != 3:
            raise CnnvizError(
                f"'{path}' has 3 channels, and the network takes {preprocess.channels}"
            )
        planes = [picture]
    else:
        planes = [Image.fromarray(band) for band in np.moveaxis(picture, 2, 0)]
    original = (planes[0].height, planes[0].width)
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
    box = preprocess.box(original)
    raster = not isinstance(picture, Image.Image)
    return WorkingImage(str(path), pixels, box, original, preprocess.bands, raster)


def read_image(path: str | Path, preprocess: Preprocess) -> WorkingImage:
    """A picture file as the working image.

    Raises:
        CnnvizError: see `read_picture` and `prepare`.
    """
    return prepare(read_picture(path, preprocess), preprocess, path)


def file_crop(image: WorkingImage, longest: int = 640) -> NDArray[np.uint8] | None:
    """What the working image shows, in the file's own pixels: for drawing maps on.

    Args:
        image: as `read_image` returned it; its file is read again.
        longest: larger crops are shrunk to this many pixels on the longer side.

    Returns:
        (h, w, 3) uint8 of the working image's proportions, or None where the file has no more
        pixels there than the working image, or is a raster.

    Raises:
        CnnvizError: see `read_rgb`.
    """
    top, left, bottom, right = image.box_original
    rows, columns = image.original_size
    inside = top >= 0 and left >= 0 and bottom <= rows and right <= columns
    if image.raster or not inside or bottom - top <= image.pixels.shape[-2]:
        return None
    whole = image.reopen() if image.reopen else read_rgb(image.path)
    assert isinstance(whole, Image.Image)  # noqa: S101 (no raster)
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
    """The suffixes, in small letters, of the formats that Pillow can decode here."""
    known = Image.registered_extensions()
    return frozenset(s for s, kind in known.items() if kind in Image.OPEN.keys() - _NO_PICTURES)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _visible(folder: Path) -> Iterator[Path]:
    """All that lies below a folder, in linked folders too; folders left out are said in a line."""
    left: list[str] = []

    def unreadable(error: OSError) -> None:
        left.append(f"{error.filename} ({error.strerror})")

    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        below = [Path(place, name) for name in sorted(folders) if not _is_hidden(Path(name))]
        twice = [path for path in below if os.path.realpath(path) in seen]
        left += [f"{path} (read already by another name)" for path in twice]
        folders[:] = [path.name for path in below if path not in twice]
        seen.update(os.path.realpath(path) for path in below)
        yield from (Path(place, name) for name in names if not _is_hidden(Path(name)))
    if left:
        _log.warning("note: folders left out of %r: %s", str(folder), ", ".join(left))


def images_below(folder: Path) -> list[Path]:
    """All picture files below a folder, by their suffix, sorted; hidden ones are left out.

    Where there are none, all arrays (.npy, .npz).

    Files of other suffixes are counted in one line, but for those that lie beside pictures.
    """
    files = sorted(path for path in _visible(folder) if path.is_file())
    found = [path for path in files if path.suffix.lower() in suffixes()]
    kinds = Counter(path.suffix.lower() for path in files) if found else Counter[str]()
    found = found or [path for path in files if is_array(path)]
    others = {k: n for k, n in kinds.items() if k not in suffixes() | _COMPANIONS}
    if others:
        named = ", ".join(f"{n} {kind or 'without a suffix'}" for kind, n in others.items())
        _log.warning(
            "note: files left out of %r, no pictures by their suffix: %s", str(folder), named
        )
    return found


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are named, folders as all pictures below them.

    Raises:
        UsageError: a path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if exists(path) and path.is_dir():
            below = images_below(path)
            if not below:
                raise UsageError(f"the folder '{path}' holds no image (.jpg .png .webp .tif ...)")
            found += below
        elif exists(path):
            found.append(path)
        else:
            raise UsageError(f"no file or folder '{path}'")
    if not found:
        raise UsageError("no image was named")
    return found
