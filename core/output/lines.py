"""Lines: a text file that grows by one line of JSON for each image of a run.

Like a journal (`core/output/journal.py`), it records the run's identity and refuses another run's.
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import (
    DAMAGE,
    UNFINISHED,
    from_json,
    read_text,
    regular,
    replace_file,
    well_formed,
    write_atomically,
)
from cnnviz.core.output.journal import (
    BROKEN,
    VERSION,
    as_json,
    damaged,
    not_checked,
    read_header,
    refuse_other,
)
from cnnviz.core.output.record import Record
from cnnviz.core.output.record import from_json as to_record
from cnnviz.core.output.run_folder import RunFolder

LINES = "images.jsonl"
LONGEST_LINE = 1 << 26
"""Maximum bytes of a line of `images.jsonl`; longer ones are not read."""

CheckEntry = Callable[[Mapping[str, Any]], object]
"""Raises a CnnvizError if an entry of `images.jsonl` is not one of the analysis."""


@dataclass(frozen=True)
class _Line(Record):
    """What each line of `images.jsonl` has; the rest is the analysis'."""

    image: str
    files: tuple[str, ...]
    folder: str = ""


class Lines:
    """The entries of a run in `images.jsonl`, in the order in which they were written.

    A line is appended when an image's files are complete. It is an entry of the summary's
    `results`, with the image's `files`. Entries are read from disk each time, so memory does not
    grow with the number of images. `unfinished.json` holds the run's identity until the summary is
    written.

    Args:
        folder: the run's folder.
        identity: what the results depend on, as JSON data.
        resume: whether to keep the lines of an interrupted run.
        images: a digest of the images of a run that is joined from shares; another run may
            have more images when it resumes.
        changed: returns the time at which an image was written; an OSError if it does not exist.
        check: checks the entry of an image; raises a CnnvizError.

    Attributes:
        dropped: how many lines of an interrupted run were not kept.
    """

    def __init__(
        self,
        folder: RunFolder,
        identity: Mapping[str, Any],
        *,
        resume: bool,
        images: str = "",
        changed: Callable[[str], float] = lambda image: Path(image).stat().st_mtime,
        check: CheckEntry = not_checked,
    ) -> None:
        self._folder, self._path = folder, folder.path / LINES
        self._count, self._changed, self._check = 0, changed, check
        self._taken: set[str] = set()
        self.dropped = 0
        unfinished = folder.path / UNFINISHED
        if resume:
            if unfinished.exists():
                stored = _stored_identity(unfinished)
                expected = {**identity, "images": images} if "images" in stored else identity
                refuse_other(unfinished, stored, as_json(expected))
            self._keep_whole_lines()
        else:
            folder.write_text(LINES, "")
        folder.list(LINES)
        header = {"version": VERSION, "identity": identity}
        write_atomically(unfinished, json.dumps(header, indent=2).encode())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for entry, _files in read_lines(self._path):
            yield entry

    def add(self, entry: Mapping[str, Any], files: list[str]) -> None:
        """Appends the entry of an image whose files are written."""
        line = json.dumps({**entry, "files": files}, ensure_ascii=False, allow_nan=False) + "\n"
        before = self._path.stat().st_size
        try:
            with self._path.open("ab") as stream:
                stream.write(well_formed(line).encode())
                stream.flush()
        except BaseException as error:
            os.truncate(self._path, before)
            if isinstance(error, OSError):
                raise CnnvizError(f"cannot write {self._path}: {one_line(error)}") from error
            raise
        self._count += 1

    def adopt(self) -> set[str]:
        """Lists the files of finished images in the folder; returns the images' paths."""
        done = set()
        for entry, files in read_lines(self._path):
            if "folder" in entry:
                self._folder.adopt(str(entry["folder"]), files)
            done.add(str(entry["image"]))
        return done

    def take(self, other: Path, images: Collection[str] | None = None) -> None:
        """Adds the entries of another run in its folder, with copies of their files.

        If `images` are given, only theirs. A CnnvizError if there is an image twice.
        """
        inside, listed = other.resolve(), other / LINES
        if not listed.resolve().is_relative_to(inside):
            raise CnnvizError(f"{listed} is a link out of its folder")
        try:
            for entry, names in read_lines(listed, self._check):
                image = str(entry["image"])
                if images is not None and image not in images:
                    continue
                if image in self._taken:
                    raise CnnvizError(f"{listed} lists {image} a second time")
                self._taken.add(image)
                before = len(self._folder.files)
                if "folder" not in entry:
                    self.add(entry, [])
                    continue
                target = self._folder.subfolder(Path(image).stem)
                for name in map(Path, names):
                    if not (other / name).resolve().is_relative_to(inside):
                        raise CnnvizError(f"{listed} lists a file outside its folder: {name}")
                    target.copy(name.name, other / name)
                relative = target.path.relative_to(self._folder.path).as_posix()
                self.add(entry | {"folder": relative}, self._folder.files[before:])
        except DAMAGE as error:
            raise CnnvizError(f"'{other}' is damaged: {one_line(error)}") from error

    def close(self) -> None:
        """Marks the run as complete."""
        (self._folder.path / UNFINISHED).unlink(missing_ok=True)

    def _keep_whole_lines(self) -> None:
        """Drops lines that were cut off, and images whose files are missing or out of date."""
        images: set[str] = set()

        def write(stream: BinaryIO) -> None:
            for line in _raw_lines(self._path) if self._path.exists() else ():
                image = self._image(line)
                if image is None or image in images:
                    self.dropped += 1
                    continue
                images.add(image)
                stream.write(line)

        replace_file(self._path, write)
        self._count = len(images)

    def _image(self, line: bytes) -> str | None:
        """The image of a line; None if it was cut off, is damaged, or its files are not whole."""
        if not line.endswith(b"\n"):
            return None
        try:
            entry, names = _parsed(line)
            files = [self._folder.path / name for name in names]
            inside = self._folder.path.resolve()
            if not all(path.resolve().is_relative_to(inside) for path in files):
                return None
            self._check(entry)
            json.dumps(entry, allow_nan=False)
            image = str(entry["image"])
            changed = self._changed(image)
            return image if all(regular(p).stat().st_mtime >= changed for p in files) else None
        except (OSError, CnnvizError, *DAMAGE):
            return None


def join_lines(
    shares: Sequence[Path],
    folder: RunFolder,
    identity: Mapping[str, Any],
    check: CheckEntry = not_checked,
) -> None:
    """Copies the entries and files of all shares into one folder, in which a run can resume."""
    whole = Lines(folder, identity, resume=False, check=check)
    for share in shares:
        whole.take(share)


def read_lines(
    path: Path, check: CheckEntry = not_checked
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The entries in `images.jsonl`, which `check` accepts, and the files of each."""
    for number, line in enumerate(_raw_lines(path), start=1):
        try:
            entry, files = _parsed(line)
            check(entry)
        except (ValueError, CnnvizError) as error:
            raise CnnvizError(f"'{path}', line {number}, is damaged: {one_line(error)}") from error
        yield entry, files


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with regular(path).open("rb") as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise CnnvizError(
                        f"'{path}' has a line of more than {LONGEST_LINE:,} bytes; start again "
                        "with --overwrite"
                    )
                yield line
    except OSError as error:
        raise CnnvizError(f"cannot read {path}: {one_line(error)}") from error


def _parsed(line: bytes) -> tuple[dict[str, Any], list[str]]:
    """The entry in a line, and its files; a ValueError or CnnvizError if it is not one."""
    content: Any = from_json(line.decode())
    files = list(to_record(_Line, content).files)
    return {key: value for key, value in content.items() if key != "files"}, files


def _stored_identity(path: Path) -> dict[str, Any]:
    try:
        return dict(read_header(path, read_text(path))["identity"])
    except BROKEN as error:
        raise damaged(path) from error
