"""Features on disk: `features.npz`, for other programs and for the next run.

The file carries the key of its features (`features.features_key`), a hash over the weights, the
network's structure, the preprocessing and the data. A run that would compute the same key uses the
file in place of the network. The file of a share says which one, and serves `join` alone.

Shapes: N images, D features.
"""

import os
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import DAMAGE, open_arrays, shown_path
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.embeddings.features.extract import MEMORY_BUDGET, Features

FEATURES = "features.npz"


def to_arrays(features: Features, data: ImageData) -> dict[str, NDArray[Any]]:
    """What `features.npz` holds; readable by `load_features` and by anybody's numpy."""
    examples = [data.examples[index] for index in features.indices_N]
    labels = [-1 if e.label is None else e.label for e in examples]
    return {
        "features": features.values_ND,
        "images": np.array([shown_path(e.path) for e in examples]),
        "labels": np.array(labels, np.int64),
        "classes": np.array(data.classes or (), dtype=np.str_),
        "predicted": features.predicted_N,
        "indices": features.indices_N,
        "key": np.array(features.key),
        "errors": np.array(features.errors, dtype=np.str_).reshape(-1, 2),
        "part": np.array([data.part.start, data.part.stop, len(data.examples)]),
    }


def load_features(path: Path, key: str, layer: str) -> Features | None:
    """Features that an earlier run wrote, if they are what this one would compute.

    Returns:
        None where there is no such file, it is damaged, or the key is another one.
    """
    try:
        with open_arrays(path) as stored:
            start, stop, total = stored["part"].tolist()
            if str(stored["key"]) != key or (start, stop) != (0, total):
                return None
            indices, predicted = stored["indices"], stored["predicted"]
            errors = tuple((str(path), str(text)) for path, text in stored["errors"])
        values = _mapped(path) if path.stat().st_size > MEMORY_BUDGET else _read(path)
    except (*DAMAGE, CnnvizError, struct.error):
        return None
    rows = {array.shape[:1] for array in (values, indices, predicted)}
    if values.ndim != 2 or values.dtype != np.float32 or len(rows) > 1:
        return None
    return Features(values, indices, predicted, layer, errors, key, reused=True)


def join(paths: Sequence[Path], folder: RunFolder) -> None:
    """Writes the features of the whole data set from those of its shares.

    Args:
        paths: the shares' files, in their order.
        folder: where the whole one goes; also for what does not fit the memory.

    Raises:
        UsageError: they are not of one data set and network, or a part is missing.
        CnnvizError: one is damaged, or the disk is full.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    rows: list[NDArray[np.float32]] = []
    key, reached, total = "", 0, -1
    for path in paths:
        try:
            with open_arrays(path) as stored:
                start, stop, of = map(int, stored["part"])
                own = str(stored["key"])
                if start != reached or (total, key) not in ((-1, ""), (of, own)):
                    raise UsageError(f"'{path}' is of other images or another network")
                for name in ("images", "labels", "predicted", "indices", "errors"):
                    found.setdefault(name, []).append(stored[name])
                classes = stored["classes"]
            rows.append(_mapped(path))
        except (*DAMAGE, struct.error) as error:
            raise CnnvizError(f"'{path}' holds no features of a share") from error
        key, reached, total = own, stop, of
    if reached != total:
        raise UsageError(f"the shares end at image {reached} of {total}; some are missing")
    count, width = sum(map(len, rows)), rows[0].shape[1]
    with tempfile.TemporaryFile(dir=folder.path) as scratch:
        values = np.memmap(scratch, np.float32, "w+", shape=(count, width))
        np.concatenate(rows, out=values)
        folder.write_large_npz(
            FEATURES,
            features=values,
            **{name: np.concatenate(parts) for name, parts in found.items()},
            classes=classes,
            key=np.array(key),
            part=np.array([0, total, total]),
        )


def _read(path: Path) -> NDArray[np.float32]:
    with open_arrays(path) as stored:
        values: NDArray[np.float32] = stored["features"]
    return values


def _mapped(path: Path) -> NDArray[np.float32]:
    """The features in place, where the archive holds them uncompressed."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("features.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        return _read(path)
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(name + extra, os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)
