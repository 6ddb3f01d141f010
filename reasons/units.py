"""The strongest patches of filters, from a finished run of `max-patches`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.errors import UsageError
from cnnviz.core.files import SUMMARY
from cnnviz.core.output.sheets import tiles
from cnnviz.core.output.summary import FinishedRun
from cnnviz.filters.patches import results as patches
from cnnviz.reasons.results import Carrier

SIDE, SHOWN = 96, 4
"""Pixels of a patch, and patches of a filter."""


class Units:
    """The filters of a run of `max-patches`.

    Attributes:
        summary: the file that was read.
        layers: those that the run watched.
        closed: whether the images of the patches may not be opened.
    """

    def __init__(self, run: FinishedRun) -> None:
        """Reads the run.

        Raises:
            UsageError: it is of another command.
            CnnvizError: its files are damaged.
        """
        if run.command != "max-patches":
            raise UsageError(
                f"--units takes a run of max-patches; '{run.folder}' is of {run.command}"
            )
        self._run, self.summary = run, run.folder / SUMMARY
        self.closed = run.data.closed
        with run.reading():
            result = patches.load(run)
        self.layers = tuple(row.layer for row in result.layers)
        self._patches = {(entry.layer, entry.filter): entry.patches for entry in result.filters}

    def patches(self, carrier: Carrier) -> NDArray[np.uint8] | None:
        """The strongest patches of a group's first filter side by side; None if there are none."""
        found = []
        for patch in self._patches.get((carrier.layer, carrier.filter), ())[:SHOWN]:
            pixels = self._run.data.picture(patch.image, patch.box_original)
            if pixels is not None and pixels.size:
                square = Image.fromarray(pixels).convert("RGB").resize((SIDE, SIDE))
                found.append(np.asarray(square))
        return tiles(np.stack(found), len(found)) if found else None
