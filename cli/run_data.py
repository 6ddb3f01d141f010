"""The data set that a finished run went through, opened again where it still is."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.core.errors import CnnvizError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from cnnviz.core.data.datasets import ImageData

    Pixels = NDArray[np.uint8]

SUMMARY = "summary.json"
LONGEST = 640
"""Pixels of the longer side of a picture that is shown."""


def run_folders(named: Path) -> list[Path]:
    """The run that a folder is, or those that lie in it; a summary stands for its folder.

    Raises:
        UsageError: there is none.
    """
    if named.is_file():
        return [named.parent]
    if (named / SUMMARY).exists():
        return [named]
    inside = sorted(path.parent for path in named.glob(f"*/{SUMMARY}"))
    if not inside:
        raise UsageError(f"no finished run in {named}: it has no {SUMMARY}")
    return inside


def inside(folder: Path, name: str) -> Path:
    """A file of a run; whatever a summary says, none outside.

    Raises:
        CnnvizError: it lies outside.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CnnvizError(f"{folder / SUMMARY} lists what is not its own: {name}")
    return path


class RunData:
    """Pictures by the names that a run's files have for them."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        """Takes the run's summary; nothing is opened yet."""
        results = summary["results"]
        data = results.get("data") if isinstance(results, Mapping) else None
        self._sources = [str(source) for source in data["sources"]] if data else []

    @cached_property
    def _data(self) -> "ImageData | None":
        from cnnviz.core.data.datasets import open_data

        try:
            return open_data(self._sources) if self._sources else None
        except CnnvizError:
            return None

    @cached_property
    def _places(self) -> dict[str, int]:
        from cnnviz.core.files import shown_path

        examples = self._data.examples if self._data else ()
        return {shown_path(example.path): place for place, example in enumerate(examples)}

    def image(self, name: str) -> "Image | None":
        """A picture in its own size; None where it is no longer there, or no picture in colours."""
        from PIL import Image

        place = self._places.get(name)
        if self._data is None or place is None:
            return None
        try:
            found = self._data.open(place)
        except CnnvizError:
            return None
        return found if isinstance(found, Image.Image) else None

    def picture(self, name: str, box: "Sequence[float] | None" = None) -> "Pixels | None":
        """A picture, or a part of it (y0, x0, y1, x1), no larger than `LONGEST`; None likewise."""
        import numpy as np

        found = self.image(name)
        if found is None:
            return None
        if box is not None:
            y0, x0, y1, x1 = box
            found = found.crop((math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)))
        found.thumbnail((LONGEST, LONGEST))
        return np.asarray(found)
