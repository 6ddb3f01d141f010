"""Somebody else's transform of pictures, measured: resize, crop, mean and std from what it does.

Libraries describe their transforms each in its own words, which change with versions. What counts
is what comes out, so two plain pictures, and one of noise, are sent through: the plain ones give
mean and deviation, the noise is compared with what our own resizing makes of it.

Shapes: C channels, H W rows and columns.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnnviz.core.models.preprocess import Preprocess

Transform = Callable[[Image.Image], Tensor]
"""An RGB picture to normalised pixels (C, H, W)."""

SIDES = (320, 240)
"""Columns and rows of the pictures sent through, of neither square."""
MODES = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
ALIKE = 2 / 255
"""Mean difference of pixels up to which two ways to resize are the same: they round differently."""


def measured(transform: Transform, resize: Iterable[int], name: str) -> tuple[Preprocess, str]:
    """The preprocessing that does what a transform does.

    Args:
        transform: it.
        resize: sides that it may resize pictures to before it crops, beside the crop's own.
        name: of the network, for the note.

    Returns:
        The preprocessing, and a line where it is not the same; empty where it is.
    """
    black, white = (
        transform(Image.new("RGB", SIDES, value)).double() for value in ("black", "white")
    )
    rows, columns = black.shape[-2:]
    low, high = (found[:, rows // 2, columns // 2] for found in (black, white))
    std = 1 / (high - low)
    mean = -low * std
    base = Preprocess(None, (rows, columns), _rounded(mean), _rounded(std))
    if transform(Image.new("RGB", SIDES[::-1])).shape != black.shape:
        side = min(rows, columns)
        return replace(base, resize=side, crop=(side, side)), (
            f"{name} takes pictures of any proportions; here their central square is taken, "
            f"{side}x{side} (--size HxW for another)"
        )
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(SIDES, Image.Resampling.BICUBIC)
    right = transform(picture).double() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)

    def distance(tried: Preprocess) -> float:
        pixels = torch.from_numpy(np.array(tried.cut(picture))).movedim(2, 0) / 255
        return float((pixels - right).abs().mean())

    best = min(_candidates(base, resize), key=distance)
    apart = distance(best)
    if apart <= ALIKE:
        return best, ""
    return best, (
        f"{name} prepares pictures in a way that is not followed here exactly: pixels "
        f"differ by {apart:.2g} of their range in the mean"
    )


def _rounded(values_C: Tensor) -> tuple[float, ...]:
    """To what people write: 0.485, 0.4815."""
    return tuple(round(value, 6) for value in values_C.tolist())


def _candidates(base: Preprocess, resize: Iterable[int]) -> Iterator[Preprocess]:
    rows, columns = base.crop
    for side in dict.fromkeys((min(base.crop), *resize)):
        share = side / min(base.crop)
        size = (round(rows * share), round(columns * share))
        for squash in (False, True):
            for mode in MODES:
                yield replace(base, resize=size, squash=squash, interpolation=mode)
    yield replace(base, resize=None)
