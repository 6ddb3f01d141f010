"""The images into which patches are pasted and to which residuals are added.

They stay in memory, with the network's probabilities of them as they are.

Shapes: H hosts, C channels, K classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.audit.rows import Rows
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import in_batches
from cnnviz.core.models.load import Model

POOL = 192
Open = Callable[[int], WorkingImage]
"""Opens the image of a row."""


class Hosts:
    """A sample of the images, with equal numbers of each predicted class where possible.

    Attributes: `rows_H` has their places in the rows, `predicted_H` their predicted classes,
    `pixels_H` (H, C, rows, columns) in [0, 1], `base_HK` the probabilities of the images as they
    are; `draw` is the generator that drew them, for whoever draws among them.
    """

    def __init__(
        self, model: Model, rows: Rows, read: Open, batch_size: int | None, seed: int
    ) -> None:
        """Draws the sample, and runs the network on it."""
        self._model = model
        self._batch = model.batch_size(batch_size) or 64
        self.draw = np.random.default_rng(seed)
        self.rows_H = self._pool(rows.predicted_N)
        self.predicted_H = rows.predicted_N[self.rows_H]
        self.pixels_H = torch.stack([read(place).pixels for place in self.rows_H.tolist()])
        self.base_HK = self.probabilities(self.pixels_H)

    def _pool(self, predicted_N: NDArray[np.int64]) -> NDArray[np.int64]:
        order = self.draw.permutation(len(predicted_N))
        turn: dict[int, int] = {}
        turns = []
        for predicted in predicted_N[order].tolist():
            turn[predicted] = turn.get(predicted, -1) + 1
            turns.append(turn[predicted])
        chosen = order[np.argsort(np.array(turns), kind="stable")][:POOL]
        return np.sort(chosen)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> NDArray[np.float64]:
        """Of the classes, for images (N, C, rows, columns) in [0, 1]."""
        parts: list[Tensor] = []

        def run(part: slice) -> None:
            normalised = self._model.preprocess.normalise(images[part])
            parts.append(self._model.head.readings(self._model.logits(normalised).cpu()))

        for _, fitting in in_batches(len(images), self._batch, run):
            self._batch = fitting
        return torch.cat(parts).double().numpy()

    def others(self, target: int | None) -> NDArray[np.int64]:
        """The places in the pool of images with another prediction."""
        return np.flatnonzero(self.predicted_H != target)
