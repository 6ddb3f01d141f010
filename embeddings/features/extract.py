"""The features of a whole data set, streamed through the network once.

Images are decoded ahead and run in batches; what comes out is kept in memory up to a budget and in
a nameless file on disk beyond it. Images that cannot be read, or whose features are not finite, are
named and left out. What the features depend on is summed up in a key, by which `file.py`
recognises them.

Shapes: N images kept, D features, K classes.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData, batches, none_usable
from cnnviz.core.device import in_batches
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import shown_path
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.load import Model
from cnnviz.embeddings.features.penultimate import FeatureExtractor

MEMORY_BUDGET = 1 << 30
FORMAT = "cnnviz features 1"


@dataclass(frozen=True, eq=False)
class Features:
    """One vector per image, and what the network made of it.

    Attributes:
        values_ND: (N, D) float32, in memory or mapped from a file.
        indices_N: (N,) int64, each image's place in the data set.
        predicted_N: (N,) int64, the model's class for it.
        layer: where they were taken, for people.
        errors: (image, message) of each image that was left out.
        key: names the circumstances; the same key gives the same features.
        reused: whether they come from an earlier run's file.
    """

    values_ND: NDArray[np.float32]
    indices_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    layer: str
    errors: tuple[tuple[str, str], ...]
    key: str
    reused: bool = False


def _structure(model: Model) -> str:
    """The network's layers and, where it can be traced, what its code does with them."""
    try:
        return f"{model.module}\n{trace(model.module).code}"
    except Untraceable:
        return str(model.module)


def features_key(model: Model, data: ImageData, extractor: FeatureExtractor) -> str:
    """SHA-256 over all that the features depend on."""
    parts = (
        FORMAT,
        model.weights_sha256,
        _structure(model),
        str(model.preprocess),
        f"{model.precision} {model.device.type}",
        f"{extractor.layer} {extractor.pool}",
        data.fingerprint,
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


class _Store:
    """Rows that arrive in batches, in memory or, above the budget, in a file without a name."""

    def __init__(self, most_rows: int, scratch: Path | None) -> None:
        self._most_rows, self._scratch = most_rows, scratch
        self._rows: NDArray[np.float32] | None = None
        self.count = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        if self._rows is None:
            self._rows = self._allocate(rows.shape[1])
        self._rows[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def _allocate(self, width: int) -> NDArray[np.float32]:
        shape = (self._most_rows, width)
        if 4 * self._most_rows * width <= MEMORY_BUDGET:
            return np.empty(shape, np.float32)
        try:
            with tempfile.TemporaryFile(dir=self._scratch) as file:
                return np.memmap(file, np.float32, "w+", shape=shape)
        except OSError as error:
            size = 4 * self._most_rows * width / 1e9
            raise CnnvizError(
                f"no room for {size:.1f} GB of features on disk: {error.strerror or error}; "
                "use --limit, --pool mean or another --layer"
            ) from error

    def rows(self) -> NDArray[np.float32]:
        """All rows so far."""
        if self._rows is None:
            return np.empty((0, 0), np.float32)
        return self._rows[: self.count]


@dataclass
class _Collected:
    store: _Store
    indices: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def add(self, indices: list[int], features: NDArray[np.float32], logits: torch.Tensor) -> None:
        finite = np.isfinite(features).all(axis=1) & logits.isfinite().all(dim=1).numpy()
        self.store.add(features[finite])
        for index, good, best in zip(indices, finite, logits.argmax(1).tolist(), strict=True):
            if good:
                self.indices.append(index)
                self.predicted.append(best)
            else:
                self.errors.append((index, "its features are not finite; try --precision fp32"))


def default_batch_size(device: torch.device) -> int:
    """Images at a time to start with; out of memory halves it."""
    return 256 if device.type == "cuda" else 32


def extract(
    model: Model,
    data: ImageData,
    extractor: FeatureExtractor,
    *,
    batch_size: int | None = None,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
) -> Features:
    """Runs every image through the network and keeps a layer's features.

    Args:
        model: from `load_model`.
        data: from `open_data`.
        extractor: which features.
        batch_size: images at a time; None for automatic.
        scratch: folder for features that do not fit the memory budget.
        progress: called with the number of images just done.

    Raises:
        CnnvizError: the layer gives no features, or no image could be used.
    """
    got = _Collected(_Store(len(data), scratch))

    def failed(index: int, message: str) -> None:
        got.errors.append((index, message))
        progress(1)

    size = model.batch_size(batch_size) or default_batch_size(model.device)
    for batch in batches(data, model.preprocess, size, on_error=failed):

        def run(part: slice, batch: Any = batch) -> None:
            features, logits = extractor(batch.images[part])
            indices = batch.indices[part].tolist()
            got.add(indices, features.cpu().numpy(), logits.cpu())

        # The batch size that fitted is kept.
        for _, fitting in in_batches(len(batch.indices), size, run):
            size = fitting
        progress(len(batch.indices))
    named = [(shown_path(data.examples[i].path), text) for i, text in sorted(got.errors)]
    if not got.store.count:
        raise none_usable(data, named)
    key = features_key(model, data, extractor)
    return Features(
        got.store.rows(),
        np.array(got.indices, np.int64),
        np.array(got.predicted, np.int64),
        extractor.layer,
        tuple(named),
        key,
    )
