"""Journals: how far a run over many images has come, so that it can resume and parts can be joined.

There are two kinds. A `Journal` is one file of arrays (sums over images, or rows for each of them),
replaced as a whole from time to time. `Lines` (`core/output/lines.py`) is a text file that grows by
one line of JSON for each image. Both record the run's identity: what its results depend on, as JSON
data. A journal of another run is refused.

A journal also records the block of the data set that its run covers. Journals of adjacent blocks
join into the journal of the larger block. Joining is associative, so a data set can be cut into
blocks, each computed anywhere, and joined in any tree.
"""

import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.shards import Block
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import DAMAGE, from_json, open_arrays, replace_file

VERSION = 3
"""The format of both kinds; files of another version are refused."""
SECONDS = 60.0
"""Time between two saves of a journal."""
IN_MEMORY = 1 << 30
"""Arrays of more bytes than this are mapped from their file instead of read."""
_HEADER = "journal"
BROKEN = (*DAMAGE, ArithmeticError, struct.error)
"""What reading a damaged journal raises."""

Arrays = Mapping[str, NDArray[Any]]
Merge = Callable[[Sequence[Arrays]], Arrays]
"""Joins the arrays of adjacent blocks, given in order; must be associative."""


@dataclass(frozen=True)
class Progress:
    """What a run has recorded of the images from `block.start` up to `done`.

    Attributes:
        block: the images that the run covers.
        done: index of the first image that is still to do.
        errors: index and message of each image that could not be used.
        arrays: what the analysis keeps.
    """

    block: Block
    done: int
    errors: Mapping[int, str]
    arrays: Arrays

    def check_images(self, indices: NDArray[np.int64], failed: int | None = None) -> None:
        """Raises a ValueError unless every image up to `done` is among `indices` once, or failed.

        `failed` counts the failed images of an analysis that does not have them in `errors`.
        """
        places = [place for place in self.errors if place < self.done]
        count = len(indices) + (len(places) if failed is None else failed)
        ascending = indices.ndim == 1 and (np.diff(indices) > 0).all()
        inside = ((indices >= self.block.start) & (indices < self.done)).all()
        distinct = not np.isin(places, indices).any()
        if not (ascending and inside and distinct and count == self.done - self.block.start):
            raise ValueError(f"it does not have each image up to {self.done} once")


Check = Callable[[Progress], None]
"""Raises a ValueError if the arrays contain what no run computes."""


def not_checked(_content: object) -> None:
    """Accepts everything."""


class Journal:
    """One run's file of arrays."""

    def __init__(
        self, path: Path, identity: Mapping[str, Any], block: Block, *, resume: bool = False
    ) -> None:
        self.path, self._block, self._resume = path, block, resume
        self._identity = as_json(identity)
        self._next = time.monotonic() + SECONDS

    @property
    def due(self) -> bool:
        """Whether it is time to save; saving takes a twentieth of a run at most."""
        return time.monotonic() > self._next

    def save(self, done: int, errors: Mapping[int, str], arrays: Arrays) -> None:
        """Replaces the file; raises a CnnvizError if it cannot be written."""
        started = time.monotonic()
        _write(self.path, self._identity, Progress(self._block, done, errors, arrays))
        ended = time.monotonic()
        self._next = ended + max(SECONDS, 20 * (ended - started))

    def load(
        self,
        like: Arrays,
        axes: Mapping[str, int] | None = None,
        check: Check = not_checked,
    ) -> Progress | None:
        """Reads the file; None if there is none, or the run does not resume.

        Args:
            like: arrays of the names, types and shapes that the file must have.
            axes: of arrays with one entry for each image used: along which axis.
            check: checks the values.
        """
        if not self._resume or not self.path.exists():
            return None
        identity, progress = _read(self.path)
        refuse_other(self.path, identity, self._identity)
        if progress.block != self._block:
            raise _other_run(self.path, ["--shard"])
        try:
            _check_arrays(progress, like, axes or {})
            check(progress)
        except BROKEN as error:
            raise damaged(self.path) from error
        return progress


def join(
    paths: Sequence[Path],
    path: Path,
    merge: Merge,
    *,
    check: Check = not_checked,
    whole: bool = True,
) -> None:
    """Writes the journal of a block from the journals of its parts.

    Args:
        paths: the parts' files, in the order of their blocks.
        path: the file to write.
        merge: joins their arrays.
        check: checks the values of each.
        whole: whether the parts must cover the data set from its first image to its last.
    """
    parts = [_read(part, check) for part in paths]
    identity, first = parts[0]
    start, _, total = first.block
    reached = 0 if whole else start
    for part, (other, progress) in zip(paths, parts, strict=True):
        refuse_other(part, other, identity)
        if progress.block.total != total:
            raise _other_run(part, ["data"])
        if _types(progress.arrays) != _types(first.arrays):
            raise damaged(part)
        if progress.block.start != reached or progress.done != progress.block.stop:
            raise UsageError(
                f"'{part}' has images {progress.block.start} to {progress.done} of a share that "
                f"ends at {progress.block.stop}; expected a complete share from image {reached} "
                "on; repeat its command with --resume"
            )
        reached = progress.block.stop
    if whole and reached != total:
        raise UsageError(f"the shares end at image {reached} of {total}; some are missing")
    try:
        arrays = merge([progress.arrays for _, progress in parts])
    except BROKEN as error:
        named = ", ".join(f"'{part}'" for part in paths)
        raise CnnvizError(f"the arrays of {named} do not fit together") from error
    errors = {place: text for _, progress in parts for place, text in progress.errors.items()}
    _write(path, identity, Progress(Block(start, reached, total), reached, errors, arrays))


def _types(arrays: Arrays) -> dict[str, tuple[type, int]]:
    return {name: (array.dtype.type, array.ndim) for name, array in arrays.items()}


def _write(path: Path, identity: Mapping[str, Any], progress: Progress) -> None:
    header = {
        "version": VERSION,
        "identity": identity,
        "block": progress.block,
        "done": progress.done,
        "errors": sorted(progress.errors.items()),
    }
    content: dict[str, Any] = {_HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8)}
    content |= progress.arrays
    replace_file(path, lambda stream: np.savez(stream, allow_pickle=False, **content))


def _read(path: Path, check: Check = not_checked) -> tuple[dict[str, Any], Progress]:
    """The identity and the progress in a file."""
    try:
        with open_arrays(path) as file:
            header = read_header(path, bytes(file[_HEADER]).decode() if _HEADER in file else "{}")
            large = _mapped(path) if path.stat().st_size > IN_MEMORY else {}
            arrays = {
                name: large[name] if name in large else file[name]
                for name in file
                if name != _HEADER
            }
        block, done = Block(*map(int, header["block"])), int(header["done"])
        errors = {int(place): str(message) for place, message in header["errors"]}
        if not 0 <= block.start <= done <= block.stop <= block.total:
            raise ValueError(f"{done} of {block}")
        if not all(block.start <= place < block.stop for place in errors):
            raise ValueError("an error outside the block")
        if any(array.dtype.kind == "c" for array in arrays.values()):
            raise TypeError("complex numbers")
        progress = Progress(block, done, errors, arrays)
        check(progress)
        return dict(header["identity"]), progress
    except OSError as error:
        raise CnnvizError(f"cannot read {path}: {error.strerror or error}") from error
    except BROKEN as error:
        raise damaged(path) from error


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The large, uncompressed arrays of an .npz file, mapped from the file."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for entry in archive.infolist():
            if entry.compress_type == zipfile.ZIP_STORED and entry.file_size > IN_MEMORY:
                stream.seek(entry.header_offset + 26)
                lengths = struct.unpack("<HH", stream.read(4))
                stream.seek(sum(lengths), os.SEEK_CUR)
                np.lib.format.read_magic(stream)
                shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
                if by_column or dtype.hasobject:  # numpy would take bytes of the file for pointers
                    raise ValueError(f"{entry.filename} is not a plain array")
                name = entry.filename.removesuffix(".npy")
                arrays[name] = np.memmap(stream, dtype, "r", stream.tell(), shape)
    return arrays


def _check_arrays(progress: Progress, like: Arrays, axes: Mapping[str, int]) -> None:
    """Raises a ValueError or LookupError where arrays have other names, types or shapes."""
    used = set()
    for name, expected in like.items():
        array, shape = progress.arrays[name], list(expected.shape)
        if name in axes:
            shape[axes[name]] = array.shape[axes[name]]
            used.add(shape[axes[name]])
        if array.dtype != expected.dtype or array.shape != tuple(shape):
            raise ValueError(f"{name} has type {array.dtype} and shape {array.shape}")
    if len(used) > 1 or any(count > progress.done - progress.block.start for count in used):
        raise ValueError(f"{used} images of {progress.done}")


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it comes back from a file: tuples become lists."""
    return dict(json.loads(json.dumps(identity)))


def read_header(path: Path, text: str) -> dict[str, Any]:
    """The header of a file of either kind; one of those in `BROKEN` if it is damaged."""
    header = from_json(text)
    if not isinstance(header, dict):
        raise TypeError("a header is an object")
    if header.get("version") != VERSION:
        raise CnnvizError(
            f"'{path}' was written by another version of cnnviz; start again with --overwrite"
        )
    return header


def refuse_other(path: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises a UsageError unless what a file records belongs to the run of this identity."""
    differing = [key for key in identity if stored.get(key) != identity[key]]
    if differing:
        raise _other_run(path, differing)


def _other_run(path: Path, differing: Sequence[str]) -> UsageError:
    return UsageError(
        f"'{path}' belongs to a run with other {', '.join(differing)}; "
        "repeat that command to resume it, or start again with --overwrite"
    )


def damaged(path: Path) -> CnnvizError:
    """The error for a file whose content no run writes."""
    return CnnvizError(f"'{path}' is damaged; start again with --overwrite")
