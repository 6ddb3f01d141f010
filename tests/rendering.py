"""Figures are made, written and listed, but not rendered: it takes longer than most analyses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pytest
from matplotlib.figure import Figure
from PIL import Image

_SAVE = Figure.savefig


def skip_rendering() -> None:
    """PNG files of figures hold one pixel, from now on."""
    Figure.savefig = _save_one_pixel  # type: ignore[method-assign, assignment]


def _save_one_pixel(figure: Figure, place: BinaryIO, **options: Any) -> None:
    if options.get("format") == "png":
        Image.new("RGB", (1, 1)).save(place, "PNG")
    else:
        _SAVE(figure, place, **options)


@contextmanager
def rendered() -> Iterator[None]:
    """Renders figures while the block runs; tests have the marker `pictures` for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _SAVE)
        yield
