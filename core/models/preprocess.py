"""How a model's images are prepared: the publisher's way, and the user's changes to it.

Shapes: C channels (3 colours, as a rule), H W rows and columns.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cnnviz.core.errors import UsageError

IMAGENET_SIZE = 224
IMAGENET_RESIZE = 256
COLOURS = 3


SPARE = 2
"""Least ratio of an image that is decoded at a reduced size and the resized image."""
_ORIGINAL, _COVERED = "cnnviz original", "cnnviz covered"
_ORIENTATION = 0x0112
_TURNS = {
    number: (number >= 5, number in (2, 3, 6, 7), number in (3, 4, 7, 8)) for number in range(1, 9)
}
"""For each orientation of EXIF: rows become columns, left becomes right, top becomes bottom."""


@dataclass(frozen=True)
class Preprocess:
    """How a model's images are prepared: resize, crop, then normalise per channel.

    Attributes:
        resize: length of the shorter side after resizing, or the (rows, columns) that the image
            just covers; None keeps the size.
        crop: (rows, columns) cut out of the centre.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by.
        interpolation: Pillow's and torchvision's name: "bilinear", "bicubic", "nearest", …
        squash: the image is resized to `resize`, regardless of its proportions.
        scale: the values of an array that become 0 and 1; None: by their type.
        show: the channels drawn as red, green and blue; None: the first three, or the first one.
        fast: large JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, but not below
            `SPARE` times the resized image.
        bars: per channel, the colour beside an image that is fitted whole into `crop`; None: its
            centre is cut out.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    squash: bool = False
    scale: tuple[float, float] | None = None
    show: tuple[int, ...] | None = None
    fast: bool = False
    bars: tuple[float, ...] | None = None

    @property
    def geometry(self) -> str:
        """Its resize and crop, in words."""
        if self.bars is not None:
            return "fitted into {}x{}".format(*self.crop)
        rows, columns = both(self.resize or self.crop)
        resize = f"{rows}" if rows == columns and not self.squash else f"{rows}x{columns}"
        crop = "{}x{}".format(*self.crop)
        same = (rows, columns) == self.crop
        return f"resized to {resize}" + ("" if same else f", centre {crop}")

    @property
    def channels(self) -> int:
        """C of the network's input."""
        return len(self.mean)

    @property
    def bands(self) -> tuple[int, ...]:
        """The channels that are drawn: three as colours, or one as grey."""
        return self.show or (tuple(range(3)) if self.channels >= 3 else (0,))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) that an image of `size` is resized to, rounded as torchvision does."""
        if self.resize is None:
            return size
        (height, width), (rows, columns) = size, both(self.resize)
        if self.squash:
            return rows, columns
        whole = self.bars is not None
        rows, columns = self.crop if whole else (rows, columns)
        if (height * columns <= width * rows) != whole:
            return rows, max(1, int(rows * width / height))
        return max(1, int(columns * height / width)), columns

    def _corner(self, resized: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of the crop in the resized image; negative where the image is smaller."""
        top, left = (_offset(s, c) for s, c in zip(resized, self.crop, strict=True))
        return top, left

    def cut(self, image: Image.Image) -> Image.Image:
        """Resize and crop an image, or one plane of it; 0 outside the image."""
        height, width = self.resized(original_size(image))
        if (height, width) != (image.height, image.width):
            # Pillow filters before it shrinks, as torchvision does for Pillow images.
            mode = Image.Resampling[self.interpolation.upper()]
            image = image.resize((width, height), mode, image.info.get(_COVERED))
        top, left = self._corner((height, width))
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def fitted(self) -> "Preprocess":
        """The one that shows images whole, beside bars of the mean colour."""
        return dataclasses.replace(self, bars=self.bars or self.mean)

    def framed(self, pixels_CHW: Tensor, size: tuple[int, int]) -> Tensor:
        """The working image of an image of `size` with its bars, if it has any."""
        if self.bars is None:
            return pixels_CHW
        height, width = self.resized(size)
        top, left = (-side for side in self._corner((height, width)))
        framed = torch.tensor(self.bars).view(-1, 1, 1).expand_as(pixels_CHW).clone()
        inside = (slice(None), slice(top, top + height), slice(left, left + width))
        framed[inside] = pixels_CHW[inside]
        return framed

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """y0, x0, y1, x1 of the crop, in pixels of an image of `size` (rows, columns)."""
        resized = self.resized(size)
        (top, left), (rows, columns) = self._corner(resized), self.crop
        y, x = (whole / part for whole, part in zip(size, resized, strict=True))
        return top * y, left * x, (top + rows) * y, (left + columns) * x

    def with_channels(self, channels: int) -> "Preprocess":
        """For another number of channels: shared means and stds stay, others become 0 and 1."""
        if channels == self.channels:
            return self
        mean = self.mean[0] if len(set(self.mean)) == 1 else 0.0
        std = self.std[0] if len(set(self.std)) == 1 else 1.0
        return dataclasses.replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (…, C, H, W) in [0, 1] to zero mean and unit variance."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


def original_size(image: Image.Image) -> tuple[int, int]:
    """(rows, columns) of an image, or of its file if it was decoded at a reduced size."""
    size: tuple[int, int] = image.info.get(_ORIGINAL, (image.height, image.width))
    return size


def reduce(file: Image.Image, preprocess: Preprocess) -> dict[str, object]:
    """Lets Pillow decode a JPEG file at a reduced size, if that is enough for the working image.

    Returns:
        What the `info` of the upright image must have: the size of the file, and the box of the
        reduced image that it covers (the last row and column may be covered in part).
    """
    turned, flip_x, flip_y = _TURNS.get(file.getexif().get(_ORIENTATION, 1), (False,) * 3)
    stored = (file.height, file.width)
    upright = stored[::-1] if turned else stored
    rows, columns = (SPARE * side for side in preprocess.resized(upright))
    drafted = file.draft(None, (rows, columns) if turned else (columns, rows))
    if drafted is None or file.size == stored[::-1]:
        return {}
    width, height = drafted[1][2:]
    spare_x, spare_y = file.width - width, file.height - height
    if turned:
        spare_x, spare_y, width, height = spare_y, spare_x, height, width
    left, top = spare_x * flip_x, spare_y * flip_y
    return {_ORIGINAL: upright, _COVERED: (left, top, left + width, top + height)}


def _offset(length: int, crop: int) -> int:
    """Start of a central crop, rounded as in torchvision; negative if the crop is longer."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)


def _channels(option: str, values: Sequence[float] | None, low: float) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not values or not all(math.isfinite(v) and v > low for v in values):
        shown = ",".join(f"{value:g}" for value in values)
        raise UsageError(
            f"--{option} {shown}: it takes one number, or one per channel"
            + (", all above 0" if low == 0 else "")
        )
    return tuple(float(v) for v in values)


def both(size: int | tuple[int, int]) -> tuple[int, int]:
    """Turn one side into (rows, columns)."""
    return (size, size) if isinstance(size, int) else size


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return the requested (rows, columns) of a working image; at most what Pillow would decode."""
    rows, columns = both(size)
    limit = Image.MAX_IMAGE_PIXELS
    if min(rows, columns) < 1 or (limit is not None and rows * columns > limit):
        maximum = f"{limit:,}" if limit is not None else "any number of"
        raise UsageError(
            f"--size {rows}x{columns} is out of range; it takes a side (224) or HxW (160x224), "
            f"from 1 pixel to {maximum} pixels in all"
        )
    return rows, columns


def _in_proportion(
    crop: tuple[int, int], resize: tuple[int, int], published: tuple[int, int]
) -> int | tuple[int, int]:
    """The resize for another crop, in the proportion of the published ones."""
    rows, columns = (round(c * r / p) for c, r, p in zip(crop, resize, published, strict=True))
    return rows if rows == columns else (rows, columns)


def adjust(
    base: Preprocess,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocess:
    """Return the preprocessing with the user's size, mean and std."""
    resize, crop = base.resize, base.crop
    if size is not None:
        crop = checked_size(size)
        if base.resize is not None:
            resize = _in_proportion(crop, both(base.resize), base.crop)
    given = {"mean": _channels("mean", mean, -math.inf), "std": _channels("std", std, 0)}
    counts = {len(values) for values in given.values() if values and len(values) > 1}
    if len(counts) > 1:
        raise UsageError("--mean and --std: they take one number each, or as many as each other")
    base = base.with_channels(next(iter(counts), base.channels))
    each = {k: v * (base.channels if len(v) == 1 else 1) for k, v in given.items() if v}
    return dataclasses.replace(
        base,
        resize=resize,
        crop=crop,
        mean=each.get("mean", base.mean),
        std=each.get("std", base.std),
    )


@dataclass(frozen=True)
class Assumed:
    """Whose preprocessing is taken for weights that do not define any."""

    by: str
    """What does not define it: a file or a network."""
    basis: str = "for ImageNet"
    option: str = ""
    """An option that takes another publisher's instead; empty if there is none."""

    def note(
        self,
        preprocess: Preprocess,
        size: object = None,
        mean: object = None,
        std: object = None,
    ) -> str:
        """What was assumed, and the options that change it; empty if the user gave all of it."""
        given = {"--size": size, "--mean": mean, "--std": std}
        if preprocess.channels != COLOURS:  # nothing is normalised, which another note says
            given |= {"--mean": 0, "--std": 1}
        open_ = [option for option, value in given.items() if value is None]
        values = {
            "--size": preprocess.geometry,
            "--mean": "mean " + ",".join(f"{value:g}" for value in preprocess.mean),
            "--std": "std " + ",".join(f"{value:g}" for value in preprocess.std),
        }
        if not open_:
            return ""
        options = ", ".join([*open_, *filter(None, [self.option])])
        what = ", ".join(values[option] for option in open_)
        return (
            f"{self.by} does not define how to prepare images; assumed: as {self.basis}, "
            f"{what} ({options})"
        )


def plain(size: int | tuple[int, int] | None) -> Preprocess:
    """For networks without a published transform: ImageNet's, or the whole image at `size`."""
    if size is None:
        return Preprocess(IMAGENET_RESIZE, (IMAGENET_SIZE, IMAGENET_SIZE))
    return Preprocess(size, both(size))


def plain_for(size: int | tuple[int, int] | None) -> Preprocess:
    """`plain` for a network that takes this size alone: that of ImageNet is taken as ImageNet's."""
    return plain(None if size is None or both(size) == (IMAGENET_SIZE,) * 2 else size)
