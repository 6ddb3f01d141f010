"""Figures are made, written and listed, but not rendered: it takes longer than most analyses."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib.figure import Figure

from cnnviz.core.output import run_folder

_RENDER = run_folder.pixels_of


def skip_rendering() -> None:
    """PNG files of figures hold one pixel, from now on."""
    run_folder.pixels_of = _one_pixel


def _one_pixel(figure: Figure) -> np.ndarray:
    return np.zeros((1, 1, 3), np.uint8)


@contextmanager
def rendered() -> Iterator[None]:
    """Renders figures while the block runs; tests have the marker `pictures` for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "pixels_of", _RENDER)
        yield
