"""Passes over a data set that are computed block by block, anywhere, and joined.

A block is a range of the list of images. Its ends are multiples of the batch, so its results do not
depend on who computes it. The result of a block is a folder of files, `<start>-<stop>` below
`blocks/<pass>/` in the run's folder. It appears there at once, complete; it is the checkpoint from
which an interrupted run resumes. Folders of adjacent blocks are joined in a tree, in order.
"""

import io
import json
import math
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import BLOCKS, DAMAGE, read_text, write_atomically
from cnnviz.core.output.journal import (
    VERSION,
    Check,
    Journal,
    Merge,
    as_json,
    join,
    not_checked,
    read_header,
    refuse_other,
)

FAN = 8
"""How many adjacent folders of a level of the tree are joined at a time."""
MOST = 512
"""Blocks of a large data set; a block has more images rather than that there are more blocks."""
BATCHES, FEWEST = 8, 32
"""Batches of a block, unless there would be fewer blocks than `FEWEST`."""
JOURNAL = "journal.npz"
_NAME = re.compile(r"(\d{1,18})-(\d{1,18})")
_IDENTITY = "identity.json"


@dataclass(frozen=True)
class Pass:
    """One pass over a data set.

    Attributes:
        name: differs from those of the run's other passes.
        data: the images.
        batch: images of a batch.
        identity: what the results depend on, as JSON data.
        compute: computes the images of a block, `data.part`, and writes the files of its folder.
        progress: called with the number of images just finished.
        join: writes the folder of a block from the folders of its parts, in order; None if the
            files are as large together as apart.
    """

    name: str
    data: ImageData
    batch: int
    identity: Mapping[str, Any]
    compute: Callable[[ImageData, Path], None]
    progress: Callable[[int], None]
    join: Callable[[Sequence[Path], Path], None] | None = None


Elsewhere = Callable[[Pass], Sequence[Path] | None]
"""Computes a pass in other processes; returns the folders of its blocks, joined as far as they can
be. None if there are no other processes, and the pass is still to do."""


def alone(_step: Pass) -> None:
    """The `Elsewhere` of a run in one process."""


def of_journals(
    name: str,
    data: ImageData,
    batch: int,
    identity: Mapping[str, Any],
    compute: Callable[[ImageData, Journal], None],
    progress: Callable[[int], None],
    merge: Merge,
    check: Check = not_checked,
) -> Pass:
    """A pass whose blocks are one journal each.

    `compute` writes the journal of a block, `merge` joins the arrays of adjacent ones, and `check`
    checks their values; the others are those of `Pass`.
    """

    def write(block: ImageData, folder: Path) -> None:
        compute(block, Journal(folder / JOURNAL, identity, block.block))

    def joined(parts: Sequence[Path], folder: Path) -> None:
        files = [part / JOURNAL for part in parts]
        join(files, folder / JOURNAL, merge, check=check, whole=False)

    return Pass(name, data, batch, identity, write, progress, joined)


def block_size(images: int, batch: int) -> int:
    """The number of images of a block; it does not depend on the number of workers."""
    size = max(math.ceil(images / MOST), min(BATCHES * batch, images // FEWEST))
    return max(1, math.ceil(size / batch)) * batch


class Blocks:
    """The folders of finished blocks of a pass.

    Attributes:
        finished: the ranges of images that they cover, in order.
        partial: the folder of a result that lacks blocks, if there is one.
    """

    def __init__(self, root: Path, step: Pass, *, resume: bool) -> None:
        """Takes over the blocks of an interrupted run if `resume`, else deletes them."""
        self._step, self._size = step, 1
        self._folder = root / BLOCKS / step.name
        self.partial = self._folder / f".0-{len(step.data)}.partial"
        identity = as_json({**step.identity, "data": step.data.fingerprint, "batch": step.batch})
        stored = self._folder / _IDENTITY
        if not resume or not stored.exists():
            delete(root, step.name)
        else:
            try:
                refuse_other(stored, read_header(stored, read_text(stored))["identity"], identity)
            except DAMAGE as error:
                raise CnnvizError(f"'{stored}' is damaged; start again with --overwrite") from error
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(stored, json.dumps({"version": VERSION, "identity": identity}).encode())
        self.finished: list[range] = []
        for found in sorted(self._stored(), key=len, reverse=True):
            if any(
                found.start < other.stop and other.start < found.stop for other in self.finished
            ):
                shutil.rmtree(self._path(found))  # a part of one that it was joined into
            else:
                self._insert(found)

    def _stored(self) -> list[range]:
        """The ranges of the folders that are there; deletes those that were not completed."""
        found = []
        for path in self._folder.iterdir():
            if path.is_symlink() or not path.is_dir():
                continue
            match = _NAME.fullmatch(path.name)
            block = range(*map(int, match.groups())) if match else range(0)
            if len(block) and block.stop <= len(self._step.data):
                found.append(block)
            elif path.name.startswith("."):
                shutil.rmtree(path)
        return found

    def _path(self, block: range) -> Path:
        return self._folder / f"{block.start}-{block.stop}"

    def _insert(self, block: range) -> None:
        self.finished = sorted([*self.finished, block], key=lambda part: part.start)

    def missing(self, size: int) -> list[range]:
        """The blocks of at most `size` images that are still to compute."""
        self._size, reached, gaps = size, 0, []
        total = len(self._step.data)
        for part in [*self.finished, range(total, total)]:
            gaps += [
                range(at, min(at + size, part.start)) for at in range(reached, part.start, size)
            ]
            reached = part.stop
        return gaps

    def add(self, block: range, content: bytes) -> None:
        """Stores the folder of a block, and joins what can be joined."""
        self._write(block, lambda folder: unpack(content, folder))
        self._insert(block)
        while group := self._group():
            self._join(group)

    def _write(self, block: range, fill: Callable[[Path], None]) -> None:
        """Writes a block's folder, which gets its name when it is complete."""
        folder = self._folder / f".{block.start}-{block.stop}.{secrets.token_hex(4)}"
        folder.mkdir()
        fill(folder)
        folder.rename(self._path(block))

    def _level(self, block: range) -> int:
        """The level of the tree: a block has level 0, `FAN` joined ones have level 1."""
        parts, level = math.ceil(len(block) / self._size), 0
        while parts >= FAN:
            parts, level = parts // FAN, level + 1
        return level

    def _group(self) -> list[range] | None:
        """`FAN` adjacent blocks of one level."""
        if self._step.join is None:
            return None
        group: list[range] = []
        for part in self.finished:
            fits = group and part.start == group[-1].stop
            if not fits or self._level(part) != self._level(group[0]):
                group = []
            group.append(part)
            if len(group) == FAN:
                return group
        return None

    def _join(self, group: Sequence[range]) -> None:
        """Replaces the folders of adjacent blocks by that of the larger one."""
        join, whole = self._step.join, range(group[0].start, group[-1].stop)
        assert join is not None  # noqa: S101
        self._write(whole, lambda folder: join([self._path(part) for part in group], folder))
        for part in group:
            shutil.rmtree(self._path(part))
            self.finished.remove(part)
        self._insert(whole)

    def joined(self) -> list[Path]:
        """The folders of the whole pass: one if blocks can be joined, else all of them in order."""
        while self._step.join is not None and len(self.finished) > 1:
            self._join(self.finished[:FAN])
        return [self._path(part) for part in self.finished]

    def joined_without(self, given_up: Mapping[range, str]) -> list[Path]:
        """The same where blocks were given up: their images fail, for these reasons.

        The finished blocks stay as they are, for the run that resumes; the rest is in `partial`.
        """
        self.partial.mkdir()
        folders = {part: self._path(part) for part in self.finished}
        for block, reason in given_up.items():
            folders[block] = self.partial / f"{block.start}-{block.stop}"
            folders[block].mkdir()
            self._step.compute(self._step.data.within(block).refused(reason), folders[block])
        parts = [folders[part] for part in sorted(folders, key=lambda part: part.start)]
        while self._step.join is not None and len(parts) > 1:
            whole = self.partial / f"joined-{len(parts)}"
            whole.mkdir()
            self._step.join(parts[:FAN], whole)
            for part in parts[:FAN]:
                if part.parent == self.partial:
                    shutil.rmtree(part)
            parts[:FAN] = [whole]
        return parts


def delete(root: Path, name: str = "") -> None:
    """Deletes the blocks of a run, or of one of its passes; nothing that has other names."""
    folder = root / BLOCKS
    for step in [folder / name] if name else list(folder.glob("*")):
        if step.is_symlink() or not (step / _IDENTITY).is_file():
            continue
        for path in step.iterdir():
            if _NAME.fullmatch(path.name.lstrip(".").partition(".")[0]) and not path.is_symlink():
                shutil.rmtree(path)
        (step / _IDENTITY).unlink()
        if not any(step.iterdir()):
            step.rmdir()
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def pack(folder: Path) -> bytes:
    """The files of a folder, to be sent."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    return stream.getvalue()


def unpack(content: bytes, folder: Path) -> None:
    """The inverse of `pack`; nothing is written out of the folder."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise CnnvizError(f"cannot write {folder}: {one_line(error)}") from error
