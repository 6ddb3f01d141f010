"""A data set without its copies: of files with the same bytes the first in order stays.

Only files that share their size with another are read. Pictures that are no files of their own
(torchvision's data sets) are compared by their pixels.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from cnnviz.core.data.datasets import Example, ImageData
from cnnviz.core.errors import CnnvizError


def distinct(data: ImageData) -> tuple[ImageData, tuple[tuple[str, str], ...]]:
    """The data set with each content once, and (copy, original) of what was dropped.

    A file that cannot be read stays in; whoever streams the data set reports it.
    """
    sizes = [_size(example) for example in data.examples]
    shared = {size for size, count in Counter(sizes).items() if count > 1}
    first: dict[bytes, Example] = {}
    kept: list[Example] = []
    copies: list[tuple[str, str]] = []
    for index, (example, size) in enumerate(zip(data.examples, sizes, strict=True)):
        digest = _digest(data, index, size) if size in shared else None
        original = first.setdefault(digest, example) if digest else example
        if original is example:
            kept.append(example)
        else:
            copies.append((example.path, original.path))
    if not copies:
        return data, ()
    rows = " ".join(str(example.row) for example in kept)
    fingerprint = hashlib.sha256(f"{data.fingerprint} {rows}".encode()).hexdigest()
    return replace(data, examples=tuple(kept), fingerprint=fingerprint), tuple(copies)


def _size(example: Example) -> int | None:
    """Of the file in bytes; None where the picture is no file of its own."""
    try:
        return Path(example.path).stat().st_size
    except (OSError, ValueError):
        return None


def _digest(data: ImageData, index: int, size: int | None) -> bytes | None:
    try:
        if size is not None:
            with Path(data.examples[index].path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        image = np.asarray(data.open(index))
    except (OSError, CnnvizError):
        return None
    return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()
