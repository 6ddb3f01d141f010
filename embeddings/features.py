"""The features of a whole data set, computed in one pass over it, and their file.

Images are decoded ahead and run in batches. Their features are kept in memory up to a budget, and
in an unnamed file on disk beyond it. Images that cannot be read, or whose features are not finite,
are listed and left out.

`features.npz` serves other programs, the next run, and `cnnviz merge`. The file is the run's
journal. Its identity is a key: a hash of all that the features depend on (weights, the network's
structure, preprocessing, data). A run with the same key uses the file instead of the network.

Shapes: N images kept, D features, K classes.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData, batches, none_usable
from cnnviz.core.device import in_batches
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import open_arrays, shown_path
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.behaviour import FirstBatch
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import JOURNAL, Elsewhere, alone, of_journals
from cnnviz.core.output.journal import Arrays, Journal, Progress, damaged
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.embeddings.quality import UNKNOWN

FEATURES = "features.npz"
MEMORY_BUDGET = 1 << 30
FORMAT = "cnnviz features 1"
LONGEST = 2.0**62
"""The maximum length of a vector of features: squared distances must fit into float32."""
_AXES = {"features": 0, "predicted": 0, "indices": 0}
_LIKE = {"predicted": np.empty(0, np.int64), "indices": np.empty(0, np.int64)}


@dataclass(frozen=True, eq=False)
class Features:
    """A vector for each image that could be used, and its predicted class.

    Attributes:
        values_ND: in memory, or mapped from a file.
        indices_N: each image's place in the data set.
        predicted_N: index of the predicted class, -1 without a classifier.
        layer: a description of the layer.
        errors: (image, message) of each image that was left out.
        key: a hash of all that the features depend on.
        reused: whether they come from an earlier run's file.
    """

    values_ND: NDArray[np.float32]
    indices_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    layer: str
    errors: tuple[tuple[str, str], ...]
    key: str
    reused: bool = False


def usable(values_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which vectors are finite and short enough to be compared, (N,)."""
    squares_N = np.einsum("nd,nd->n", values_ND, values_ND, dtype=np.float64)
    return np.asarray(squares_N <= LONGEST**2)


def _structure(model: Model) -> str:
    """The network's layers and, where it can be traced, what its code does with them."""
    try:
        return f"{model.module}\n{trace(model.module).code}"
    except Untraceable:
        return str(model.module)


def features_key(model: Model, data: ImageData, extractor: FeatureExtractor) -> str:
    """SHA-256 of all that the features depend on."""
    parts = (
        FORMAT,
        model.weights_sha256,
        _structure(model),
        str(model.preprocess),
        f"{model.precision}",
        f"{extractor.layer} {extractor.pool} {model.choices}",
        data.fingerprint,
    )
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


class _Store:
    """Rows that arrive in batches; in memory or, above the budget, in an unnamed file."""

    def __init__(self, max_rows: int, scratch: Path | None) -> None:
        self._max_rows, self._scratch = max_rows, scratch
        self._rows: NDArray[np.float32] | None = None
        self.count = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        if self._rows is None:
            self._rows = self._allocate(rows.shape[1])
        self._rows[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def _allocate(self, width: int) -> NDArray[np.float32]:
        shape = (self._max_rows, width)
        if 4 * self._max_rows * width <= MEMORY_BUDGET:
            return np.empty(shape, np.float32)
        try:
            with tempfile.TemporaryFile(dir=self._scratch) as file:
                return np.memmap(file, np.float32, "w+", shape=shape)
        except OSError as error:
            size = 4 * self._max_rows * width / 1e9
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
    classes: int
    indices: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)

    def add(self, indices: list[int], features: NDArray[np.float32], logits: torch.Tensor) -> None:
        good_N = usable(features) & logits.isfinite().all(dim=1).numpy()
        self.store.add(features[good_N])
        predicted = logits.argmax(1).tolist() if self.classes else [UNKNOWN] * len(indices)
        for index, good, best in zip(indices, good_N, predicted, strict=True):
            if good:
                self.indices.append(index)
                self.predicted.append(best)
            else:
                text = "its features are not finite or too large; try --precision fp32"
                self.errors.append((index, text))


def default_batch_size(device: torch.device) -> int:
    """The initial batch size; it is halved when memory runs out."""
    return 256 if device.type == "cuda" else 32


def extract(
    model: Model,
    data: ImageData,
    extractor: FeatureExtractor,
    *,
    batch_size: int | None = None,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
    spread: Elsewhere = alone,
) -> Features:
    """Runs every image through the network and collects a layer's features.

    `scratch` is a folder for features that exceed the memory budget; `spread` computes blocks of
    the images in other processes. A CnnvizError if the layer gives no features, or no image could
    be used.
    """
    size = model.batch_size(batch_size) or default_batch_size(model.device)
    key = features_key(model, data, extractor)
    looked = FirstBatch(model.outputs, model.name)

    def block(part: ImageData, journal: Journal) -> None:
        found = _extract(model, part, extractor, size, key, looked)
        journal.save(part.part.stop, {}, _arrays(found, part))

    merged = partial(merge, scratch=scratch)
    of = {"features": key}
    step = of_journals("features", data, size, of, block, progress, merged, check)
    if (folders := spread(step)) is not None:
        found = load_features(folders[0] / JOURNAL, key, data, extractor.layer)
        if found is None:
            raise damaged(folders[0] / JOURNAL)
        found = replace(found, reused=False)
    else:
        found = _extract(model, data, extractor, size, key, looked, scratch, progress)
    if not len(found.indices_N):
        raise none_usable(data, found.errors)
    return found


def _extract(
    model: Model,
    data: ImageData,
    extractor: FeatureExtractor,
    size: int,
    key: str,
    looked: FirstBatch,
    scratch: Path | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
) -> Features:
    """Does the work of `extract`; no image need be usable."""
    got = _Collected(_Store(len(data), scratch), model.classes)

    def failed(index: int, message: str) -> None:
        got.errors.append((index, message))
        progress(1)

    for batch in batches(data, model.preprocess, size, on_error=failed):
        looked.check(batch.images)

        def run(part: slice, batch: Any = batch) -> None:
            features, logits = extractor(batch.images[part])
            indices = batch.indices[part].tolist()
            both = torch.cat([features, logits], 1).cpu()  # at once: each would wait for the device
            got.add(indices, both[:, : features.shape[1]].numpy(), both[:, features.shape[1] :])

        # The batch size that fits is kept.
        for _, fitting in in_batches(len(batch.indices), size, run):
            size = fitting
        progress(len(batch.indices))
    named = [(shown_path(data.examples[i].path), text) for i, text in sorted(got.errors)]
    return Features(
        got.store.rows(),
        np.array(got.indices, np.int64),
        np.array(got.predicted, np.int64),
        extractor.layer,
        tuple(named),
        key,
    )


def _journal(path: Path, key: str, data: ImageData) -> Journal:
    return Journal(path, {"features": key}, data.block, resume=True)


def save_features(path: Path, features: Features, data: ImageData) -> None:
    """Writes `features.npz`, readable by `load_features` and by numpy."""
    _journal(path, features.key, data).save(data.part.stop, {}, _arrays(features, data))


def _arrays(features: Features, data: ImageData) -> Arrays:
    examples = [data.examples[index] for index in features.indices_N]
    labels = [-1 if e.label is None else e.label for e in examples]
    return {
        "features": features.values_ND,
        "images": np.array([shown_path(e.path) for e in examples], np.str_),
        "labels": np.array(labels, np.int64),
        "classes": np.array(data.classes or (), dtype=np.str_),
        "predicted": features.predicted_N,
        "indices": features.indices_N,
        "key": np.array(features.key),
        "errors": np.array(features.errors, dtype=np.str_).reshape(-1, 2),
        "part": np.array(data.block),
    }


def load_features(path: Path, key: str, data: ImageData, layer: str) -> Features | None:
    """Loads the features of an earlier run; None if this run would compute others."""
    try:
        progress = _journal(path, key, data).load(_LIKE, _AXES, check)
        if progress is None:
            return None
        arrays = progress.arrays
        values, errors = arrays["features"], [(str(p), str(t)) for p, t in arrays["errors"]]
    except (CnnvizError, LookupError, TypeError, ValueError):
        return None
    if values.ndim != 2 or values.dtype != np.float32 or len(values) != len(arrays["indices"]):
        return None
    return Features(
        values, arrays["indices"], arrays["predicted"], layer, tuple(errors), key, reused=True
    )


def check(progress: Progress) -> None:
    """Raises a ValueError unless every image has features, a prediction, or an error."""
    arrays = progress.arrays
    values_ND, errors = arrays["features"], arrays["errors"]
    rows = [arrays[name] for name in ("labels", *_LIKE)]
    shaped = values_ND.ndim == 2 and values_ND.dtype == np.float32 and errors.shape[1:] == (2,)
    if not shaped or any(row.dtype != np.int64 for row in rows):
        raise ValueError("its arrays have other types or shapes")
    if any(row.shape != values_ND.shape[:1] for row in [*rows, arrays["images"]]):
        raise ValueError("its arrays are of different images")
    progress.check_images(arrays["indices"], len(errors))
    if not usable(values_ND).all() or (arrays["predicted"] < 0).any():
        raise ValueError("its numbers are out of range")


def merge(parts: Sequence[Arrays], scratch: Path | None) -> Arrays:
    """Joins the arrays of adjacent blocks; `scratch` is a folder for what exceeds the memory."""
    first, last = parts[0], parts[-1]
    rows = ("images", "labels", "predicted", "indices", "errors")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in rows}
    rows_used = [part["features"] for part in parts if len(part["features"])]
    if not rows_used:
        return {**first, **joined, "part": _ends(first, last)}
    count, width = len(joined["indices"]), rows_used[0].shape[1]
    with tempfile.TemporaryFile(dir=scratch) as file:
        values = np.memmap(file, np.float32, "w+", shape=(count, width))
    np.concatenate(rows_used, out=values)
    return {**first, **joined, "features": values, "part": _ends(first, last)}


def _ends(first: Arrays, last: Arrays) -> NDArray[np.int64]:
    return np.array([first["part"][0], last["part"][1], first["part"][2]])


def read_vectors(path: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Reads the features (N, D) and the names of their images from a finished run's file."""
    with open_arrays(path) as stored:
        values = np.array(stored["features"], np.float32)
        if not usable(values).all():
            raise ValueError("features are not finite or too large")
        return values, tuple(str(image) for image in stored["images"])
