"""Parts of an image: a grid, superpixels, or a label image of the user.

Shapes: L cells, H W rows and columns of the working image.
"""

import math
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.rasters import read_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.extras import required
from cnnviz.core.files import exists
from cnnviz.core.output.drawing import image_pixels

GRID, SLIC = "grid", "slic"
MOST = 400
"""Parts of a label image, at most."""


def check_segments(requested: str | None) -> None:
    """Raises UsageError if there can be no such parts."""
    if requested == SLIC:
        _slic()
    elif requested not in (None, GRID) and not exists(Path(str(requested))):
        raise UsageError(
            f"no file '{requested}'; --segments takes grid, slic or a label image (.npy, .png)"
        )


@dataclass(frozen=True, eq=False)
class Parts:
    """The part of each pixel, (H, W) from 0, the labels of the parts, and what made them."""

    labels_HW: Tensor
    names: list[int]
    source: str


def parts_of(image: WorkingImage, requested: str, parts: int) -> Parts:
    """Cuts an image into parts; `parts` is the number of those of grid and slic."""
    height, width = image.pixels.shape[1:]
    if requested == GRID:
        labels_HW = _grid((height, width), parts)
    elif requested == SLIC:
        labels_HW = _slic()(image_pixels(image), n_segments=parts, start_label=0)
    else:
        labels_HW = _of_file(requested, image)
    names, numbered = np.unique(labels_HW, return_inverse=True)
    if not 2 <= len(names) <= MOST:
        raise CnnvizError(
            f"'{requested}' has {len(names)} parts on '{image.path}'; 2 to {MOST} are possible"
        )
    numbered_HW = torch.from_numpy(numbered.reshape(height, width))
    return Parts(numbered_HW, names.tolist(), Path(requested).name)


def cells(size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The boxes (L, 4) of a grid, row by row."""
    down, across = (
        [round(place * side / count) for place in range(count + 1)]
        for side, count in zip(size, (rows, columns), strict=True)
    )
    sides = product(pairwise(down), pairwise(across))
    return torch.tensor([(y0, x0, y1, x1) for (y0, y1), (x0, x1) in sides])


def _grid(size: tuple[int, int], parts: int) -> NDArray[np.int64]:
    """At most so many parts, as square as possible."""
    height, width = size
    columns = min(max(1, round(math.sqrt(parts * width / height))), parts, width)
    labels_HW = np.empty(size, np.int64)
    for part, (y0, x0, y1, x1) in enumerate(cells(size, min(parts // columns, height), columns)):
        labels_HW[y0:y1, x0:x1] = part
    return labels_HW


def _slic() -> Any:
    return required("skimage.segmentation", "--segments slic", "segments").slic


def _of_file(path: str, image: WorkingImage) -> NDArray[np.int64]:
    """A label image of the working image's size, or of the file's, which is cropped alike."""
    labels, size = read_labels(path), image.pixels.shape[1:]
    if labels.shape == tuple(size):
        return labels
    if labels.shape != image.original_size:
        raise CnnvizError(
            f"'{path}' has {labels.shape[0]}x{labels.shape[1]} pixels; a label image of "
            f"'{image.path}' has those of the file ({image.original_size[0]}x"
            f"{image.original_size[1]}) or of input.png ({size[0]}x{size[1]})"
        )
    ends = zip(image.box_original[:2], image.box_original[2:], size, labels.shape, strict=True)
    rows, columns = (
        np.clip(low + (np.arange(n) + 0.5) * (high - low) / n, 0, limit - 1).astype(int)
        for low, high, n, limit in ends
    )
    return np.asarray(labels[rows[:, None], columns])
