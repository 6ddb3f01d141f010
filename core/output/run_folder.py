"""The folder that a run writes to: every file whole or absent, the summary last.

A file is written under a temporary name in its folder and then renamed, so a name never belongs to
half a file. `summary.json` comes last: a folder that has one is complete. Nothing is replaced
without `overwrite`, and then only what an earlier summary lists, or what has the same name.
One process at a time writes to a folder.
"""

import io
import json
import os
import re
import shutil
import struct
import sys
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from cnnviz.core.choices import FigureFormat
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import version
from cnnviz.core.files import (
    LARGEST,
    SUMMARY,
    csv_text,
    exists,
    from_json,
    read_text,
    regular,
    replace_file,
    safe_name,
    well_formed,
    write_atomically,
)
from cnnviz.core.models.load import Model
from cnnviz.core.output import mirrors, parquet
from cnnviz.core.output.canvas import pixels_of, sign
from cnnviz.core.output.record import to_json as to_data
from cnnviz.core.output.style import WRITING
from cnnviz.core.output.summary import ModelRecord

_UNDATED: dict[FigureFormat, dict[str, None]] = {
    FigureFormat.PDF: {"Creator": None, "Producer": None, "CreationDate": None},
    FigureFormat.SVG: {"Creator": None, "Date": None},
}
"""Metadata that matplotlib would write: its version and the date."""
_HERE = "\0results\0"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels, (H, W) or (H, W, 3).

    Each row is stored as its difference from the row above, in runs of equal bytes. Pillow takes
    two to eight times as long, since it tries five ways for each row, for files 7 to 20 % smaller.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    lines = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # 2: difference from the row above
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    kind = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    runs = zlib.compressobj(1, memLevel=9, strategy=zlib.Z_RLE)
    data = runs.compress(lines.tobytes()) + runs.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def identity(path: Path) -> tuple[int, int]:
    """What identifies a file or folder, regardless of its name."""
    status = path.stat()
    return status.st_dev, status.st_ino


class Lock:
    """Keeps other processes out of a folder while it exists; this process may lock it again.

    The system releases it when the process ends, however that happens; nothing is written.
    """

    _held: ClassVar["WeakValueDictionary[tuple[int, int], Lock]"] = WeakValueDictionary()

    def __init__(self, file: int) -> None:
        """Locks an open folder; a BlockingIOError if another process has locked it."""
        import fcntl

        self._file = file
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise  # other errors: the file system has no locks

    def __del__(self) -> None:
        os.close(self._file)

    @classmethod
    def of(cls, path: Path) -> "Lock | None":
        """The lock of a folder that no other process holds; None if the system has no locks."""
        if os.name != "posix":
            return None
        key = identity(path)
        try:
            lock = cls._held.get(key) or cls(os.open(path, os.O_RDONLY))
        except BlockingIOError as error:
            raise CnnvizError(
                f"another run writes to {path}; wait for it, or give --out another folder"
            ) from error
        cls._held[key] = lock
        return lock


class RunFolder:
    """Writes one run's files, and lists them.

    Attributes:
        path: the folder.
        files: paths relative to the run's root folder, in order of writing; shared with subfolders.
        figures: the format of figures; of subfolders, that of the root.
        caption: small text below every figure; of subfolders, that of the root.
        mark: a warning at the top of every figure; of subfolders, that of the root.
    """

    figures = FigureFormat.PNG
    caption = mark = ""

    def __init__(
        self, path: Path, root: "RunFolder | None" = None, inputs: Iterable[str | Path] = ()
    ) -> None:
        self.path = path
        self._inputs = tuple(inputs)
        self._root = root or self
        self.files: list[str] = root.files if root else []
        self._listed: set[str] = root._listed if root else set()
        self._taken: set[str] = set()
        self._names: dict[str, str] = {}
        self._lock: Lock | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        within: Path | None = None,
        inputs: Iterable[str | Path] = (),
    ) -> "RunFolder":
        """Creates the folder, or takes over an existing one.

        Args:
            path: the run's folder.
            overwrite: allow a folder that is not empty, and delete the files its summary lists.
            resume: allow a folder of a run that is not finished. The summary of one that lacks
                blocks is deleted, too, with the files that it lists.
            within: the folder that it must be in, also if it is a link.
            inputs: the user's files, which are never replaced.
        """
        try:
            if within is not None and not path.resolve().is_relative_to(within.resolve()):
                raise UsageError(f"{path} leads out of {within}; give --out another folder")
            occupied = mirrors.check_free(path, overwrite=overwrite, resume=resume)
            path.mkdir(parents=True, exist_ok=True)
            mirrors.fetch(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            reason = getattr(error, "strerror", None) or one_line(error)
            raise CnnvizError(f"cannot write to {path}: {reason}") from error
        if not os.access(path, os.W_OK):
            raise CnnvizError(
                f"cannot write to {path}: permission denied; give --out another folder"
            )
        folder = cls(path, inputs=inputs)
        folder._lock = Lock.of(path)
        folder._clear_leftovers()
        if occupied and (overwrite or resume):
            folder._remove_previous()
        return folder

    def _remove_previous(self) -> None:
        """Deletes the summary of an earlier run, then the files it lists inside this folder."""
        summary_path = self.path / SUMMARY
        try:
            written = from_json(read_text(summary_path))
            names = [str(name) for name in written["files"]]  # type: ignore[index]
            ours = str(written["schema"]).startswith("cnnviz.")  # type: ignore[index]
        except (CnnvizError, ValueError, KeyError, TypeError):
            return
        if not ours:
            return
        inside = self.path.resolve()
        try:
            # A link is deleted itself, not the file it leads to.
            listed = [self.path / name for name in names]
            old = [p for p in listed if p.parent.resolve().is_relative_to(inside) and p.is_file()]
            for path in old:
                self._check_kept(path)
            summary_path.unlink()
            for path in old:
                path.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            raise CnnvizError(f"cannot replace {self.path}: {one_line(error)}") from error

    def subfolder(self, name: str) -> "RunFolder":
        """A folder inside, with a safe name that differs from those of earlier subfolders."""
        base = candidate = safe_name(name)
        number = 1
        while candidate.lower() in self._taken:
            number += 1
            candidate = f"{base}-{number}"
        self._taken.add(candidate.lower())
        path = self.path / candidate
        if path.is_symlink():
            raise CnnvizError(f"{path} is a link and may lead out of {self.path}; remove it")
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise CnnvizError(f"cannot write to {path}: {error.strerror or error}") from error
        folder = RunFolder(path, self._root)
        folder._lock = Lock.of(path)
        folder._clear_leftovers()
        folder._remove_previous()  # an earlier run of this image alone
        return folder

    def _clear_leftovers(self) -> None:
        """Deletes temporary files of an earlier run that was killed while it wrote."""
        for path in self.path.glob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                path.unlink(missing_ok=True)

    def _check_kept(self, path: Path) -> None:
        """Refuses to replace a file that the run reads."""
        if mirrors.url_of(path) in self._root._inputs:
            raise CnnvizError(
                f"{mirrors.shown(path)} is one of the inputs; give --out another folder"
            )
        if path.exists() and identity(path) in self._root._kept:
            raise CnnvizError(f"{path} is one of the inputs; give --out another folder")

    @cached_property
    def _kept(self) -> frozenset[tuple[int, int]]:
        """The identities of the inputs."""
        return frozenset(identity(given) for given in map(Path, self._inputs) if exists(given))

    def _place(self, name: str) -> Path:
        """The path of a file: names that would be the same file get a number."""
        stem, dot, suffix = name.rpartition(".")
        base, number = safe_name(stem if dot else suffix), 1
        file_name = f"{base}.{safe_name(suffix)}" if dot else base
        while self._names.setdefault(file_name.lower(), name) != name:
            number += 1
            file_name = f"{base}-{number}{dot}{safe_name(suffix) if dot else ''}"
        return self.path / file_name

    def list(self, name: str) -> None:
        """Lists a file of the folder that was not written by this object."""
        self._list(self.path / name)

    def adopt(self, name: str, files: Iterable[str]) -> None:
        """Lists the files that an earlier part of the run wrote to a subfolder."""
        self._taken.add(name.lower())
        for listed in files:
            self._add(listed)

    def _list(self, path: Path) -> Path:
        self._add(path.relative_to(self._root.path).as_posix())
        return path

    def _add(self, name: str) -> None:
        if name not in self._listed:
            self._listed.add(name)
            self.files.append(name)

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Writes one file and lists it; `name` is used as `safe_name` makes it."""
        path = self._place(name)
        self._check_kept(path)
        write_atomically(path, data)
        return self._list(path)

    def copy(self, name: str, source: Path) -> Path:
        """Writes a copy of a file; raises a CnnvizError if it is larger than `LARGEST`."""
        size = regular(source).stat().st_size
        if size > LARGEST:
            raise CnnvizError(f"'{source}' has {size:,} bytes; at most {LARGEST:,} are copied")
        path = self._place(name)
        self._check_kept(path)
        with source.open("rb") as content:
            replace_file(path, partial(shutil.copyfileobj, content))
        return self._list(path)

    def write_text(self, name: str, text: str) -> Path:
        """Writes UTF-8 text."""
        return self.write_bytes(name, well_formed(text).encode())

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
        """Writes comma-separated values with a header; also as Parquet, if pyarrow is installed."""
        listed = list(rows)
        if parquet.available():
            content = io.BytesIO()
            parquet.write(content, header, listed)
            self.write_bytes(Path(name).stem + parquet.SUFFIX, content.getvalue())
        return self.write_text(name, csv_text([header, *listed]))

    def write_npz(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes arrays, compressed; objects are refused, since they would be pickled."""
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        return self.write_bytes(name, stream.getvalue())

    def write_large_npz(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes arrays uncompressed and straight to disk: they may be larger than the memory."""
        path = self._place(name)
        self._check_kept(path)
        replace_file(path, lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]
        return self._list(path)

    def write_image(self, name: str, pixels: np.ndarray) -> Path:
        """Writes uint8 pixels (H, W) or (H, W, 3) as a PNG of the same size."""
        return self.write_bytes(name, png(pixels))

    def write_figure(self, name: str, figure: Figure) -> Path:
        """Writes a figure in the format of `figures`, whose suffix replaces the .png of `name`.

        The same figure gives the same bytes.
        """
        kind = self._root.figures
        if self._root.caption or self._root.mark:
            sign(figure, self._root.caption, self._root.mark)
        stream = io.BytesIO()
        if kind is FigureFormat.PNG:
            stream.write(png(pixels_of(figure)))
        else:
            with rc_context(WRITING):
                figure.savefig(stream, format=kind.value, dpi=figure.dpi, metadata=_UNDATED[kind])
        return self.write_bytes(f"{name.removesuffix('.png')}.{kind.value}", stream.getvalue())

    def finish(self, content: Mapping[str, Any]) -> Path:
        """Writes `summary.json`, which marks the folder as complete; call it last."""
        path = self.path / SUMMARY
        self._check_kept(path)
        parts = (well_formed(part).encode() for part in json_parts(content))
        replace_file(path, lambda stream: stream.writelines(parts))
        return path


def json_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """The text of `to_json` in parts, where `results` may be any iterable of entries."""
    results = content.get("results")
    if results is None or isinstance(results, dict | list):
        yield to_json(content)
        return
    before, after = to_json({**content, "results": _HERE}).split(to_json(_HERE).rstrip())
    yield before + "["
    separator = "\n"
    for entry in results:
        yield separator + textwrap.indent(to_json(entry).rstrip(), "    ")
        separator = ",\n"
    yield ("]" if separator == "\n" else "\n  ]") + after


def to_json(content: object) -> str:
    """Indented strict JSON that ends in a line feed; a ValueError for NaN and infinity."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def summary(
    command: str,
    *,
    model: Model | None,
    seed: int,
    elapsed_seconds: float,
    results: object,
    files: Sequence[str],
    errors: Sequence[tuple[str, str]] = (),
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The content of `summary.json` with the keys that every command has.

    Args:
        command: its name on the command line.
        model: the network; None for commands without one.
        seed: the run's seed.
        elapsed_seconds: wall-clock time of the whole run.
        results: the command's part, as plain data.
        files: paths relative to the run folder.
        errors: (input, message) of each input that failed.
        argv: the arguments after the program's name; by default those of this process.
    """
    return {
        "schema": f"cnnviz.{command}/1",
        "command": command,
        "version": version(),
        "argv": list(sys.argv[1:] if argv is None else argv),
        "model": to_data(ModelRecord.of(model)) if model else None,
        "device": str(model.device) if model else None,
        "precision": model.precision if model else None,
        "seed": seed,
        "elapsed_seconds": round(elapsed_seconds, 3),
        "results": results,
        "files": list(files),
        "errors": [{"input": name, "message": message} for name, message in errors],
    }
