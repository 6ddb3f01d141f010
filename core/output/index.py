"""What a run over many pictures has found so far: a line of JSON for each, on disk.

`images.jsonl` grows by a line when a picture's files are written, so that a run that was cut off
knows which pictures are done, and memory does not grow with their number. A line is an entry of
the summary's `results` with the picture's `files`. While the run is under way, `unfinished.json`
beside it says what the run is of; it goes when the summary is written.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import from_json, read_text
from cnnviz.core.output.run_folder import UNFINISHED, RunFolder, to_json, write_atomically

LINES = "images.jsonl"


class EntryIndex:
    """The entries of a run, in the order in which they were written; read from disk each time."""

    def __init__(
        self,
        folder: RunFolder,
        identity: Mapping[str, Any],
        *,
        resume: bool,
        images: str = "",
        changed: Callable[[str], float] = lambda image: Path(image).stat().st_mtime,
    ) -> None:
        """Starts the index, or goes on with the one that is there.

        Args:
            folder: the run's.
            identity: what the run is of: JSON data, the same for the run that goes on.
            resume: keep the lines of a run that was cut off.
            images: a digest of what it goes through, which the shares of one run have in common; a
                run alone may have more images when it goes on.
            changed: when a picture was written; an OSError where it is not there.

        Raises:
            UsageError: these lines are of another run.
            CnnvizError: the folder cannot be written to.
        """
        self._folder, self._path = folder, folder.path / LINES
        self._count, self._changed = 0, changed
        wanted = json.loads(json.dumps(identity))
        if resume:
            _refuse_other(folder.path / UNFINISHED, wanted, images)
            self._keep_whole_lines()
        else:
            folder.write_text(LINES, "")
        folder.list(LINES)
        write_atomically(folder.path / UNFINISHED, to_json(wanted).encode())

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines():
            line.pop("files")
            yield line

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as stream:
            for line in stream:
                yield json.loads(line)

    def add(self, entry: Mapping[str, Any], files: list[str]) -> None:
        """Appends a line; whoever reads it can rely on the files.

        Raises:
            CnnvizError: the disk is full.
        """
        line = json.dumps({**entry, "files": files}, ensure_ascii=False, allow_nan=False) + "\n"
        before = self._path.stat().st_size
        try:
            with self._path.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
        except BaseException as error:
            os.truncate(self._path, before)
            if isinstance(error, OSError):
                raise CnnvizError(f"cannot write {self._path}: {one_line(error)}") from error
            raise
        self._count += 1

    def _keep_whole_lines(self) -> None:
        """Drops what was cut off in the middle, and pictures whose files are not all there."""
        try:
            text = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise CnnvizError(f"cannot read {self._path}: {one_line(error)}") from error
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and self._is_whole(line)]
        write_atomically(self._path, b"".join(kept))
        self._count = len(kept)

    def _is_whole(self, line: bytes) -> bool:
        try:
            entry = from_json(line.decode())
            files = [self._folder.path / str(name) for name in entry["files"]]  # type: ignore[index]
            image = str(entry["image"])  # type: ignore[index]
            inside = self._folder.path.resolve()
            if not all(path.resolve().is_relative_to(inside) for path in files):
                return False
            changed = self._changed(image)
            return all(path.stat().st_mtime >= changed for path in files)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def adopt(self) -> set[str]:
        """Takes the files of the finished pictures over; the pictures' paths."""
        done = set()
        for line in self._lines():
            if "folder" in line:
                self._folder.adopt(str(line["folder"]), [str(name) for name in line["files"]])
            done.add(str(line["image"]))
        return done

    def close(self) -> None:
        """Says that the run is complete."""
        (self._folder.path / UNFINISHED).unlink(missing_ok=True)


def join(shares: Sequence[Path], folder: RunFolder, identity: Mapping[str, Any]) -> None:
    """Makes a folder one in which all that the shares have done is done.

    Args:
        shares: their folders, in their order.
        folder: of the whole run, which will go on with it.
        identity: what the run is of.

    Raises:
        CnnvizError: a share lists a file that it does not have, or the folder cannot be written to.
    """
    index = EntryIndex(folder, identity, resume=False)
    for share in shares:
        inside = share.resolve()
        try:
            with (share / LINES).open("rb") as stream:
                for line in stream:
                    entry = json.loads(line)
                    before, files = len(folder.files), entry.pop("files")
                    if "folder" not in entry:
                        index.add(entry, [])
                        continue
                    target = folder.subfolder(Path(entry["image"]).stem)
                    for name in map(Path, files):
                        if not (share / name).resolve().is_relative_to(inside):
                            raise CnnvizError(f"{share / LINES} lists what is not its own: {name}")
                        target.write_bytes(name.name, (share / name).read_bytes())
                    placed = target.path.relative_to(folder.path).as_posix()
                    index.add(entry | {"folder": placed}, folder.files[before:])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CnnvizError(f"'{share}' is damaged: {one_line(error)}") from error


def _refuse_other(path: Path, wanted: Mapping[str, Any], images: str) -> None:
    if not path.exists():
        return
    try:
        found: Any = from_json(read_text(path))
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        differing += ["images"] * (found.get("images", images) != images)
    except (ValueError, AttributeError) as error:
        raise CnnvizError(f"'{path}' is damaged; start again with --overwrite") from error
    if differing:
        raise UsageError(
            f"'{path.parent}' holds a run with other {', '.join(differing)}; repeat its command "
            "to resume it, or start again with --overwrite"
        )
