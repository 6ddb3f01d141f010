"""The images of a finished run's data set, opened again if they still exist."""

import math
from collections.abc import Sequence
from functools import cached_property

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

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources

    @cached_property
    def _data(self) -> ImageData | None:
        try:
            return open_data(self._sources) if self._sources else None
        except CnnvizError:
            return None

    @cached_property
    def _places(self) -> dict[str, int]:
        examples = self._data.examples if self._data else ()
        return {shown_path(example.path): place for place, example in enumerate(examples)}

    def image(self, name: str) -> Image.Image | None:
        """An image in its original size; None if it no longer exists, or is an array."""
        place = self._places.get(name)
        if self._data is None or place is None:
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
