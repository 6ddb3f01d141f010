"""Rasters: arrays and multi-band TIFF, for networks with any number of channels.

A raster is (H, W, C) float32 with values as the network's normalisation expects them: bytes divided
by 255, floats in [0, 1] as they are, or what `--range` maps to 0 and 1. Nothing is guessed: other
values are refused with the remedy.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE, LARGEST, open_arrays, regular
from cnnviz.core.models.preprocess import Preprocess

ARRAYS = frozenset({".npy", ".npz"})
_NPY = b"\x93NUMPY"
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"),
    *("AVIF", "DIB", "ICO", "JPEG2000", "MPO", "PCX", "PPM", "SGI", "TGA"),
)
TIFFS = frozenset({".tif", ".tiff"})
Raster = NDArray[np.float32]


def is_array(path: str | Path) -> bool:
    """Whether the file is an array, by its suffix."""
    return Path(path).suffix.lower() in ARRAYS


def is_raster(path: str | Path, preprocess: Preprocess) -> bool:
    """Whether a file is read as channels: arrays, and images that are not RGB."""
    scaled = preprocess.scale is not None and Path(path).suffix.lower() in TIFFS
    return preprocess.channels != 3 or is_array(path) or scaled


def read_raster(path: str | Path, preprocess: Preprocess) -> Raster:
    """Reads a file with as many channels as the network has, (H, W, C) float32.

    Args:
        path: `.npy`, `.npz` with one array of 2 or 3 axes, a TIFF, or what Pillow opens.
        preprocess: has the number of channels, and the values that become 0 and 1.
    """
    try:
        values = _read(regular(path))
    except DAMAGE as error:
        raise CnnvizError(f"'{path}' cannot be read as an array: {one_line(error)}") from error
    if values.dtype.kind not in "uif":
        raise CnnvizError(f"'{path}' holds values of type {values.dtype}, not numbers")
    bands = _channels_last(values, preprocess.channels, str(path))
    if not 0 < bands[..., 0].size <= _most_pixels():
        raise CnnvizError(f"'{path}' has shape {_shape(values)}: not an image, or too large")
    return _scaled(bands, preprocess.scale, str(path))


def read_map(path: str | Path, size: tuple[int, int]) -> Raster:
    """Reads a map from a `.npy` file, (H, W) float32.

    Args:
        path: the file.
        size: H and W of the working image, which the map must have.
    """
    try:
        values = _read_npy(regular(path))
    except DAMAGE as error:
        raise CnnvizError(f"'{path}' cannot be read as an array: {one_line(error)}") from error
    if values.dtype.kind not in "uif" or values.shape != size:
        raise CnnvizError(
            f"'{path}' is {values.dtype} {_shape(values)}; a map of this image has a number for "
            f"each pixel of the working image, {size[0]}x{size[1]} (sum it over channels, and "
            "enlarge it according to the image's crop)"
        )
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise CnnvizError(f"'{path}' holds values that are not finite")
    return numbers


def read_labels(path: str | Path) -> NDArray[np.int64]:
    """Reads a label image, (rows, columns) of whole numbers, from an array or an image file."""
    try:
        values = _read(regular(path))
    except DAMAGE as error:
        raise CnnvizError(f"'{path}' cannot be read as labels: {one_line(error)}") from error
    if values.dtype.kind not in "uib" or values.ndim != 2 or not values.size:
        raise CnnvizError(
            f"'{path}' is {values.dtype} {_shape(values)}; a label image has one whole number for "
            "each pixel, the number of its segment"
        )
    return values.astype(np.int64)


def check_npy(path: Path) -> None:
    """Raises a CnnvizError if a file is not a `.npy` file, by its first bytes."""
    with regular(path).open("rb") as file:
        if file.read(len(_NPY)) != _NPY:
            raise CnnvizError(f"--map takes a .npy file (numpy.save); '{path}' is not one")


def _read_npy(path: Path) -> NDArray[np.generic]:
    with path.open("rb") as file:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        try:
            array: NDArray[np.generic] = np.load(file, allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" in str(error):  # which is not what to do
                raise ValueError("it does not hold an array of numbers") from error
            raise
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, not one array")
    return array


@cache
def formats() -> tuple[str, ...]:
    """The formats that may be decoded, by Pillow's names, regardless of a file's suffix.

    Other decoders are never called: one of them starts another program (EPS: Ghostscript).
    """
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _most_pixels() -> float:
    return Image.MAX_IMAGE_PIXELS or math.inf


def _read(path: Path) -> NDArray[np.generic]:
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _again(_read_npy if suffix == ".npy" else _of_archive, path)
    if suffix in TIFFS:
        import tifffile

        try:
            with tifffile.TiffFile(path) as tiff:
                series = tiff.series[0]
                if series.nbytes > LARGEST:
                    raise ValueError(f"it is larger than {LARGEST:,} bytes")
                return np.asarray(series.asarray())
        except tifffile.TiffFileError as error:  # not a ValueError in every version
            raise ValueError(one_line(error)) from error
    with Image.open(path, formats=formats()) as picture:
        if picture.width * picture.height > _most_pixels():
            raise ValueError("it has more pixels than Pillow's safety limit")
        return np.asarray(ImageOps.exif_transpose(picture))


def _again(
    read: Callable[[Path], NDArray[np.generic]], path: Path, tries: int = 10
) -> NDArray[np.generic]:
    """What `read` returns for a file; it is called again if Python itself fails.

    numpy parses an array's header as Python source. If two threads do so at the same time, Python
    3.11 sometimes raises a SystemError for a good file (cpython gh-106905).
    """
    try:
        return read(path)
    except SystemError:
        if tries == 1:
            raise
        return _again(read, path, tries - 1)


def _of_archive(path: Path) -> NDArray[np.generic]:
    with open_arrays(path) as archive:
        found = dict(archive)
    pictures = {name: array for name, array in found.items() if array.ndim in (2, 3)}
    if len(pictures) != 1:
        raise ValueError(f"it holds {len(pictures)} arrays with 2 or 3 axes, not one")
    return next(iter(pictures.values()))


def _shape(values: NDArray[np.generic]) -> str:
    return "x".join(map(str, values.shape)) or "of one number"


def _channels_last(values: NDArray[np.generic], channels: int, path: str) -> NDArray[np.generic]:
    """Moves channels last; a network of RGB images also takes one band."""
    if values.ndim == 2:
        values = values[..., None]
    accepted = (channels, 1) if channels == 3 else (channels,)
    if values.ndim == 3:
        for count in accepted:
            if values.shape[2] == count:
                return np.repeat(values, channels // count, 2)
            if values.shape[0] == count:
                return np.repeat(np.moveaxis(values, 0, 2), channels // count, 2)
    counts = " or ".join(map(str, sorted(accepted)))
    raise CnnvizError(
        f"'{path}' has shape {_shape(values)}, and the network takes {counts} channels, before or "
        "after rows and columns"
    )


def _scaled(bands: NDArray[np.generic], scale: tuple[float, float] | None, path: str) -> Raster:
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        exact = bands.astype(np.float64)
    if not np.isfinite(exact).all():
        raise CnnvizError(f"'{path}' holds values that are not finite")
    if scale is None and bands.dtype == np.uint8:
        scale = (0.0, 255.0)
    low, high = float(exact.min()), float(exact.max())
    if scale is None and not (bands.dtype.kind == "f" and 0 <= low <= high <= 1):
        raise CnnvizError(
            f"'{path}' holds {bands.dtype} values from {low:g} to {high:g}; name with "
            "--range LOW,HIGH those that become 0 and 1"
        )
    bottom, top = scale or (0.0, 1.0)
    return ((exact - bottom) / (top - bottom)).astype(np.float32)
