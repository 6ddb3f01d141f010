"""Where the object is, and whether the evidence is there.

The user names the object by boxes or polygons in the file's own pixels. A map is then judged by the
pointing game (Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop"; here without
their 15-pixel tolerance): is its peak on the object? And by the share of its positive evidence that
lies on the object. Shapes: H W rows and columns of the working image.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError

PLATEAU = 1e-6  # map values this close to the peak, relative to it, are the peak


@dataclass(frozen=True)
class Expectation:
    """Where the object is in one file.

    Attributes:
        outlines: polygons of (x, y) corners in the file's pixels, EXIF rotation applied.
        label: the object's class, if named.
    """

    outlines: tuple[tuple[tuple[float, float], ...], ...]
    label: str | None = None


@dataclass(frozen=True)
class Verdict:
    """How one map agrees with an expectation.

    Attributes:
        hit: whether the map's peak is on the object (the pointing game).
        inside: share of the positive evidence on the object; None where there is none at all.
        object_share: the object's share of the working image, what `inside` would be by chance.
    """

    hit: bool
    inside: float | None
    object_share: float


def _box_outline(box: Sequence[float]) -> tuple[tuple[float, float], ...]:
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"box {list(box)} is empty; it is x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def _entry(content: object) -> Expectation:
    if not isinstance(content, Mapping):
        raise ValueError("each image's entry is an object with 'boxes' or 'polygons'")
    polygons = [tuple((float(x), float(y)) for x, y in p) for p in content.get("polygons") or []]
    boxes = [_box_outline(box) for box in content.get("boxes") or []]
    outlines = tuple(polygons or boxes)
    if not outlines or any(len(outline) < 3 for outline in outlines):
        raise ValueError(
            "each entry needs 'boxes' [[x0,y0,x1,y1], …] or 'polygons' [[[x,y], …], …]"
        )
    label = content.get("label")
    return Expectation(outlines, None if label is None else str(label))


class Expectations:
    """What the user expects of each image: one box for all, or a file with an entry per image."""

    def __init__(
        self, source: str, common: Expectation | None, named: Mapping[str, Expectation]
    ) -> None:
        self._source, self._common, self._named = source, common, named

    def for_image(self, path: str) -> Expectation:
        """The expectation for a file, by its path as given or by its name.

        Raises:
            CnnvizError: there is no entry for it.
        """
        found = self._common or self._named.get(path) or self._named.get(Path(path).name)
        if found is None:
            raise CnnvizError(f"'{path}' has no entry '{Path(path).name}' in {self._source}")
        return found


def read_expectations(text: str) -> Expectations:
    """Reads `--expect`: `x0,y0,x1,y1`, or a JSON file.

    The file maps an image's name to `{"label": …, "boxes": [[x0, y0, x1, y1], …]}`, or to
    `"polygons"` [[[x, y], …], …], which are taken in place of the boxes where both are given.

    Raises:
        UsageError: neither four numbers nor a readable file of that form.
    """
    parts = text.split(",")
    try:
        if len(parts) == 4 and not Path(text).exists():
            outline = _box_outline([float(part) for part in parts])
            return Expectations(text, Expectation((outline,)), {})
        content = json.loads(Path(text).read_text(encoding="utf-8"))
        if not isinstance(content, Mapping):
            raise ValueError("its top level is not an object of image names")
        return Expectations(text, None, {name: _entry(entry) for name, entry in content.items()})
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(
            f"--expect '{text}' cannot be used ({reason}); it takes x0,y0,x1,y1 in the image "
            "file's pixels or a JSON file of boxes or polygons per image"
        ) from error


def object_mask(expectation: Expectation, image: WorkingImage) -> Tensor:
    """(H, W) bool: the working image's pixels that lie on the object.

    Raises:
        CnnvizError: nothing of the object is in the working image.
    """
    height, width = image.pixels.shape[1:]
    top, left, bottom, right = image.box_original
    scale_x, scale_y = width / (right - left), height / (bottom - top)
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    for outline in expectation.outlines:
        # Pillow's polygon corners are pixel centres, ours are pixel edges.
        corners = [((x - left) * scale_x - 0.5, (y - top) * scale_y - 0.5) for x, y in outline]
        pen.polygon(corners, fill=1)
    mask_HW = torch.from_numpy(np.array(canvas))
    if not mask_HW.any():
        raise CnnvizError(f"'{image.path}': the expected object lies outside the working image")
    return mask_HW


def judge(map_HW: Tensor, object_HW: Tensor) -> Verdict:
    """Holds a map (H, W; positive is evidence) against the object's pixels (H, W) bool."""
    evidence = map_HW.double().clamp(min=0)
    total = float(evidence.sum())
    rows, columns = torch.where(map_HW >= map_HW.max() - PLATEAU * map_HW.abs().max())
    center = torch.stack([rows, columns], 1).double().mean(0)
    nearest = int(((rows - center[0]) ** 2 + (columns - center[1]) ** 2).argmin())
    return Verdict(
        hit=bool(object_HW[rows[nearest], columns[nearest]]),
        inside=float(evidence[object_HW].sum()) / total if total > 0 else None,
        object_share=float(object_HW.double().mean()),
    )
