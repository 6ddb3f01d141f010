"""Places in images that a user names: boxes, polygons or a pixel, in pixels of the file.

Shapes: H W rows and columns of the working image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.path import Path as MplPath
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import exists, from_json, read_text
from cnnviz.core.models.load import Model
from cnnviz.core.models.targets import Region

FINE = 4
"""Rows and columns of points per pixel that decide whether an object touches it."""


@dataclass(frozen=True)
class Outline:
    """Where the object is in a file.

    Attributes:
        polygons: of (x, y) corners in the file's pixels, EXIF rotation applied.
        label: the object's class, if named.
    """

    polygons: tuple[tuple[tuple[float, float], ...], ...]
    label: str | None = None


def _box_outline(box: Sequence[float]) -> tuple[tuple[float, float], ...]:
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"box {list(box)} is empty; it is x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def _entry(content: object) -> Outline:
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
    return Outline(outlines, None if label is None else str(label))


class Outlines:
    """The expected object in each image: one box for all, or a file with an entry per image."""

    def __init__(self, source: str, common: Outline | None, named: Mapping[str, Outline]) -> None:
        self._source, self._common, self._named = source, common, named

    def label_of(self, path: str) -> str | None:
        """The class in a file's outline; None if it names none, or there is none."""
        outline = self._common or self._named.get(path) or self._named.get(Path(path).name)
        return outline.label if outline else None

    def for_image(self, path: str) -> Outline:
        """The outline for a file, by its path as given or by its name."""
        outline = self._common or self._named.get(path) or self._named.get(Path(path).name)
        if outline is None:
            raise CnnvizError(f"'{path}' has no entry '{Path(path).name}' in {self._source}")
        return outline


def read_outlines(text: str, option: str = "--expect") -> Outlines:
    """Reads the value of an option: `x0,y0,x1,y1`, or a JSON file.

    The file maps an image's name to `{"label": …, "boxes": [[x0, y0, x1, y1], …]}`, or to
    `"polygons"` [[[x, y], …], …], which are preferred if both are given.
    """
    parts = text.split(",")
    try:
        if len(parts) == 4 and not exists(Path(text)):
            outline = _box_outline([float(part) for part in parts])
            return Outlines(text, Outline((outline,)), {})
        content = from_json(read_text(text))
        if not isinstance(content, Mapping):
            raise ValueError("its top level is not an object of image names")
        return Outlines(text, None, {name: _entry(entry) for name, entry in content.items()})
    except (CnnvizError, ValueError, TypeError) as error:
        reason = one_line(error)
        raise UsageError(
            f"{option} '{text}' cannot be used ({reason}); it takes x0,y0,x1,y1 in the image "
            "file's pixels or a JSON file of boxes or polygons per image"
        ) from error


def outline_mask(outline: Outline, image: WorkingImage) -> Tensor:
    """(H, W) bool: the working image's pixels that the object touches."""
    height, width = image.pixels.shape[1:]
    rows, columns = (np.mgrid[: FINE * height, : FINE * width] + 0.5) / FINE
    places = np.stack([columns.ravel(), rows.ravel()], 1)
    touched = np.zeros(len(places), bool)
    for polygon in outline.polygons:
        corners = np.array([image.to_working(x, y) for x, y in polygon])
        near = ((places >= corners.min(0)) & (places <= corners.max(0))).all(1)
        touched[near] |= MplPath(corners).contains_points(places[near])
    parts = touched.reshape(height, FINE, width, FINE)
    mask_HW = torch.from_numpy(parts.any((1, 3)))
    if not mask_HW.any():
        raise CnnvizError(f"'{image.path}': the expected object lies outside the working image")
    return mask_HW


class Place:
    """Where a dense output is read: at a pixel, inside an outline, or at no particular place.

    Attributes:
        text: the user's value (of a file, its name), for captions; empty for no place.
    """

    def __init__(self, model: Model, at: tuple[float, float] | None, inside: str | None) -> None:
        """Takes a pixel (y, x), or an outline as `read_outlines` reads it."""
        if not isinstance(model.target, Region) and (at is not None or inside is not None):
            raise UsageError(
                "--at and --inside are for maps of classes; "
                f"{model.name} has {'boxes' if model.target else 'one row of scores per image'}"
            )
        if at is not None and inside is not None:
            raise UsageError("--at and --inside name two places; give one of them")
        self._at = at
        self._outlines = None if inside is None else read_outlines(inside, "--inside")
        self.text = f"inside {Path(inside).name}" if inside else ""
        if at is not None:
            self.text = f"at {at[0]:g},{at[1]:g}"

    def mask(self, image: WorkingImage) -> Tensor | None:
        """(H, W) bool: the working image's pixels at the place; None for no particular place."""
        if self._outlines is not None:
            return outline_mask(self._outlines.for_image(image.path), image)
        if self._at is None:
            return None
        column, row = image.to_working(self._at[1] + 0.5, self._at[0] + 0.5)
        mask_HW = torch.zeros(image.pixels.shape[1:], dtype=torch.bool)
        if not (0 <= row < mask_HW.shape[0] and 0 <= column < mask_HW.shape[1]):
            top, left, bottom, right = image.box_original
            raise CnnvizError(
                f"'{image.path}': --at {self._at[0]:g},{self._at[1]:g} is outside the working "
                f"image, which shows rows {top:.0f} to {bottom:.0f} and columns {left:.0f} to "
                f"{right:.0f} of the file"
            )
        mask_HW[int(row), int(column)] = True
        return mask_HW
