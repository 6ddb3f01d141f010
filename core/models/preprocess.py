"""What a model wants done to its images, and what the user wants done differently.

Shapes: 3 colours, H W rows and columns.
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


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images: resize, crop, then normalise per channel.

    Attributes:
        resize: length of the shorter side after resizing, or (rows, columns) that the image is made
            just large enough to cover; None leaves the size alone.
        crop: (rows, columns) cut out of the centre.
        mean: per channel, subtracted from pixels in [0, 1].
        std: per channel, divided by.
        interpolation: Pillow's and torchvision's name for it: "bilinear", "bicubic", "nearest", …
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (…, 3, H, W) in [0, 1] to zero mean and unit variance, same shape and device."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


def _channels(option: str, values: Sequence[float] | None, low: float) -> tuple[float, ...] | None:
    if values is None:
        return None
    if len(values) not in (1, 3) or not all(math.isfinite(v) and v > low for v in values):
        shown = ",".join(f"{value:g}" for value in values)
        raise UsageError(
            f"--{option} {shown}: it takes one number, or three (one per channel)"
            + (", all above 0" if low == 0 else "")
        )
    return tuple(float(v) for v in values) * (3 // len(values))


def both(size: int | tuple[int, int]) -> tuple[int, int]:
    """One side to (rows, columns)."""
    return (size, size) if isinstance(size, int) else size


def checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """The (rows, columns) of a working image that a user asks for.

    Raises:
        UsageError: a side is below 1, or there are more pixels than Pillow would decode.
    """
    rows, columns = both(size)
    limit = Image.MAX_IMAGE_PIXELS
    if min(rows, columns) < 1 or (limit is not None and rows * columns > limit):
        most = f"{limit:,}" if limit is not None else "any number of"
        raise UsageError(
            f"--size {rows}x{columns} is out of range; it takes a side (224) or HxW (160x224), "
            f"from 1 pixel to {most} pixels in all"
        )
    return rows, columns


def _in_proportion(
    crop: tuple[int, int], resize: tuple[int, int], published: tuple[int, int]
) -> int | tuple[int, int]:
    """What to resize to before that crop, as `resize` is to the published crop."""
    rows, columns = (round(c * r / p) for c, r, p in zip(crop, resize, published, strict=True))
    return rows if rows == columns else (rows, columns)


def adjust(
    base: Preprocess,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocess:
    """The preprocessing with the user's own size, mean and std in place of its own."""
    resize, crop = base.resize, base.crop
    if size is not None:
        crop = checked_size(size)
        if base.resize is not None:
            resize = _in_proportion(crop, both(base.resize), base.crop)
    return dataclasses.replace(
        base,
        resize=resize,
        crop=crop,
        mean=_channels("mean", mean, -math.inf) or base.mean,
        std=_channels("std", std, 0) or base.std,
    )


def plain(size: int | tuple[int, int] | None) -> Preprocess:
    """For networks nobody published a transform of: ImageNet's, or all of the image at `size`."""
    if size is None:
        return Preprocess(IMAGENET_RESIZE, (IMAGENET_SIZE, IMAGENET_SIZE))
    return Preprocess(size, both(size))
