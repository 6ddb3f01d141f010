"""Inputs of a network that stay fixed, from files.

An image is prepared like the image that is explained. The whole numbers of an array (.npy) stay so;
a row of a table (.json, .csv) is of floating-point numbers.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.data.images import read_image
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import from_json, read_text, regular
from cnnviz.core.models.preprocess import Preprocess

MOST_NUMBERS = 100_000_000


def read_input(key: str, file: str, preprocess: Preprocess) -> Tensor:
    """Reads the value of an input, for one image and without the axis of the batch.

    Raises:
        CnnvizError: the file cannot be read, or holds other than finite numbers.
    """
    path, suffix = Path(file), Path(file).suffix.lower()
    try:
        if suffix == ".npy":
            values = np.load(regular(path), allow_pickle=False)
        elif suffix == ".json":
            values = _numbers(from_json(read_text(path)))
        elif suffix == ".csv":
            values = _csv_row(read_text(path))
        else:
            return preprocess.normalise(read_image(path, preprocess).pixels)
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise ValueError("it holds something other than finite numbers")
        if not 0 < values.size <= MOST_NUMBERS:
            raise ValueError(f"it holds {values.size:,} numbers")
        whole = values.dtype.kind in "iub" and suffix == ".npy"
        with np.errstate(over="ignore"):  # refused here
            kept = values.astype(np.int64 if whole else np.float32)
        if not np.isfinite(kept).all() or ((kept < 0) & (values > 0)).any():
            raise ValueError(f"it holds numbers too large for {kept.dtype}")
    except (ValueError, TypeError, OSError, EOFError, MemoryError) as error:
        raise CnnvizError(f"--input {key}={file} cannot be read: {one_line(error)}") from error
    return torch.from_numpy(kept)


def _numbers(content: object) -> NDArray[np.float64]:
    """A list of numbers, nested or not, or the values of an object."""
    return np.array(list(content.values()) if isinstance(content, Mapping) else content, np.float64)


def _csv_row(text: str) -> NDArray[np.float64]:
    """The only row of numbers of a table, below a header or alone."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if len(rows) == 2:
        rows = rows[1:]
    if len(rows) != 1:
        raise ValueError(f"it has {len(rows)} rows; expected one of numbers, below a header or not")
    return np.array([float(cell) for cell in rows[0]])
