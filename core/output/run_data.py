"""The images of a finished run's data set, opened again if they still exist.

A run's files come from strangers and may name any path. Only images below folders that the user
named are opened, or any if the run has just been made by this process.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import shown_path

LONGEST = 640
"""Maximum side of a picture."""


class RunData:
    """The images of a finished run's data set, by the names that the run's files have for them."""

    def __init__(self, sources: Sequence[str], folders: Sequence[Path] | None) -> None:
        """Takes the sources as the run names them, and where images may be; None for anywhere."""
        self._sources, self._folders = sources, folders

    @cached_property
    def closed(self) -> bool:
        """Whether the run has images that may not be opened."""
        return not all(map(self._may_open, self._sources))

    def _may_open(self, source: str) -> bool:
        if self._folders is None:
            return True
        if "://" in source:
            return False  # the file of a run does not make anything be read from a network
        scheme, colon, rest = source.partition(":")
        path = Path(rest if colon and len(scheme) > 1 and rest else source)
        try:
            resolved = path.resolve()
            return any(resolved.is_relative_to(folder.resolve()) for folder in self._folders)
        except (OSError, ValueError, RuntimeError):
            return False

    @cached_property
    def _data(self) -> ImageData | None:
        try:
            return open_data(self._sources) if self._sources and not self.closed else None
        except CnnvizError:
            return None

    @cached_property
    def _places(self) -> dict[str, int]:
        examples = self._data.examples if self._data else ()
        return {shown_path(example.path): place for place, example in enumerate(examples)}

    def image(self, name: str) -> Image.Image | None:
        """An image in its original size; None if it no longer exists, or is an array."""
        place = self._places.get(name)
        if self._data is None or place is None or not self._may_open(name):
            return None
        try:
            image = self._data.open(place)
        except CnnvizError:
            return None
        return image if isinstance(image, Image.Image) else None

    def picture(self, name: str, box: Sequence[float] | None = None) -> NDArray[np.uint8] | None:
        """An image, or the part (y0, x0, y1, x1) of it, shrunk to at most `LONGEST` pixels."""
        image = self.image(name)
        if image is None:
            return None
        if box is not None:
            y0, x0, y1, x1 = box
            image = image.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
        image.thumbnail((LONGEST, LONGEST))
        return np.asarray(image)
