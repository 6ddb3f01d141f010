"""Features on disk: `features.npz`, for other programs and for the next run.

The file carries the key of its features (`features.features_key`), a hash over the weights, the
network's structure, the preprocessing and the data. A run that would compute the same key uses the
file in place of the network.

Shapes: N images, D features.
"""

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import DAMAGE, open_arrays
from cnnviz.embeddings.features.extract import MEMORY_BUDGET, Features, shown_path

FEATURES = "features.npz"


def to_arrays(features: Features, data: ImageData) -> dict[str, NDArray[Any]]:
    """What `features.npz` holds; readable by `load_features` and by anybody's numpy."""
    examples = [data.examples[index] for index in features.indices_N]
    labels = [-1 if e.label is None else e.label for e in examples]
    # A file that leaves images out would hide their errors when it is used again.
    key = "" if features.errors else features.key
    return {
        "features": features.values_ND,
        "images": np.array([shown_path(e.path) for e in examples]),
        "labels": np.array(labels, np.int64),
        "classes": np.array(data.classes or (), dtype=np.str_),
        "predicted": features.predicted_N,
        "indices": features.indices_N,
        "key": np.array(key),
    }


def load_features(path: Path, key: str, layer: str) -> Features | None:
    """Features that an earlier run wrote, if they are what this one would compute.

    Returns:
        None where there is no such file, it is damaged, or the key is another one.
    """
    try:
        with open_arrays(path) as stored:
            if str(stored["key"]) != key:
                return None
            indices, predicted = stored["indices"], stored["predicted"]
        values = _mapped(path) if path.stat().st_size > MEMORY_BUDGET else _read(path)
    except (*DAMAGE, CnnvizError, struct.error):
        return None
    rows = {array.shape[:1] for array in (values, indices, predicted)}
    if values.ndim != 2 or values.dtype != np.float32 or len(rows) > 1:
        return None
    return Features(values, indices, predicted, layer, (), key, reused=True)


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
