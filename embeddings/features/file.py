"""Features on disk: `features.npz`, for other programs, the next run, and `cnnviz merge`.

The file is the run's journal. Its identity is the key of the features (`extract.features_key`), a
hash of the weights, the network's structure, the preprocessing and the data. A run with the same
key uses the file instead of the network.

Shapes: N images, D features.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import shown_path
from cnnviz.core.output.journal import Arrays, Journal
from cnnviz.embeddings.features.extract import Features

FEATURES = "features.npz"
_AXES = {"features": 0, "predicted": 0, "indices": 0}
_LIKE = {"predicted": np.empty(0, np.int64), "indices": np.empty(0, np.int64)}


def _journal(path: Path, key: str, data: ImageData) -> Journal:
    return Journal(path, {"features": key}, data.block, resume=True)


def save_features(path: Path, features: Features, data: ImageData) -> None:
    """Writes `features.npz`, readable by `load_features` and by numpy."""
    examples = [data.examples[index] for index in features.indices_N]
    labels = [-1 if e.label is None else e.label for e in examples]
    arrays = {
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
    _journal(path, features.key, data).save(data.part.stop, {}, arrays)


def load_features(path: Path, key: str, data: ImageData, layer: str) -> Features | None:
    """Loads the features of an earlier run; None if this run would compute others."""
    try:
        progress = _journal(path, key, data).load(_LIKE, _AXES)
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


def merge(parts: Sequence[Arrays], scratch: Path) -> Arrays:
    """The arrays of all images from those of their blocks.

    Args:
        parts: the blocks', in order.
        scratch: folder for features that may not fit in memory.
    """
    first, last = parts[0], parts[-1]
    rows = ("images", "labels", "predicted", "indices", "errors")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in rows}
    count, width = len(joined["indices"]), first["features"].shape[1]
    with tempfile.TemporaryFile(dir=scratch) as file:
        values = np.memmap(file, np.float32, "w+", shape=(count, width))
    np.concatenate([part["features"] for part in parts], out=values)
    part = np.array([first["part"][0], last["part"][1], first["part"][2]])
    return {**first, **joined, "features": values, "part": part}
