"""Files that a user names: read only if they are regular files, and written whole or not at all.

A name can be anything (too long, with a NUL in it, of bytes that are not text), and it can belong
to a pipe that never ends. Text from strangers can be nested deeper than a parser can read.
"""

import csv
import io
import json
import os
import re
import secrets
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cnnviz.core.errors import CnnvizError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUMMARY = "summary.json"
UNFINISHED = "unfinished.json"
"""In the folder of a run over many images that is not complete: see `core/output/journal.py`."""
BLOCKS = "blocks"
"""Folder of finished blocks in that of a run with `--cluster`: see `core/output/blocks.py`."""
LONGEST_NAME = 80
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""The beginning of a formula, after any number of apostrophes."""
_SURROGATE = re.compile("[\ud800-\udfff]")
LARGEST = 8 * 2**30
"""Maximum bytes of the arrays in a file, unpacked; more are refused before they are read."""
LARGEST_TEXT = 2**30
"""Maximum bytes of JSON, CSV and other text; larger files are refused before they are read."""
LONGEST_CELL = 2**20
"""Maximum characters of a cell of a CSV file."""

DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    csv.Error,
)
"""What reading damaged or foreign files raises."""


def exists(path: Path) -> bool:
    """Whether a file or folder of that name exists; false for an impossible name."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def well_formed(text: str) -> str:
    """The text with U+FFFD for what UTF-8 cannot express, as single bytes of file names."""
    return _SURROGATE.sub("\ufffd", text)


def shown_path(path: str) -> str:
    """A path as text that can be written: bytes that are not UTF-8 become a question mark."""
    return os.fsencode(path).decode("utf-8", "replace")


def safe_name(text: str) -> str:
    """`text` as the name of a file in a folder: no separators, no leading dots, not long."""
    kept = re.sub(r"[^\w .+,()=@-]", "_", text).strip(" .")
    return kept.encode()[:LONGEST_NAME].decode(errors="ignore") or "unnamed"


def regular(path: str | Path) -> Path:
    """Return the path of a regular file; CnnvizError if it is missing, or anything else."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(path))
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError as error:
        raise CnnvizError(f"no file '{shown}'") from error
    except PermissionError as error:
        raise CnnvizError(f"'{shown}' may not be read: permission denied") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CnnvizError(f"'{shown}' is not a file name: {reason}") from error
    if stat.S_ISDIR(mode):
        raise CnnvizError(f"'{shown}' is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise CnnvizError(f"'{shown}' is not a file but a pipe, socket or device")
    return Path(path)


def read_text(path: str | Path) -> str:
    """Read a file's text, without a byte-order mark; CnnvizError if it is not UTF-8, or large."""
    try:
        if (size := regular(path).stat().st_size) > LARGEST_TEXT:
            raise CnnvizError(f"'{path}' has {size:,} bytes; at most {LARGEST_TEXT:,} are read")
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CnnvizError(f"'{path}' is not UTF-8 text") from error
    except OSError as error:
        raise CnnvizError(f"'{path}' cannot be read: {error.strerror or error}") from error


def lines(text: str) -> list[str]:
    """Split a text into lines, only at line feeds (with or without a carriage return)."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


@contextmanager
def open_arrays(path: Path) -> "Iterator[Mapping[str, NDArray[Any]]]":
    """Open the arrays of an .npz file, each read on access; nothing is unpickled.

    Raises:
        CnnvizError: it is not a file (`regular`).
        Exception: any of `DAMAGE` for a damaged file; ValueError if it unpacks to `LARGEST`.
    """
    import numpy as np

    with regular(path).open("rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        with np.load(stream, allow_pickle=False) as arrays:
            yield arrays


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file, in which no cell is a formula for spreadsheets.

    Text that begins like a formula (=, +, -, @) gets an apostrophe, unless it is a number;
    `csv_rows` takes it away again.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows(
        [f"'{cell}" if isinstance(cell, str) and _formula(cell) else cell for cell in row]
        for row in rows
    )
    return stream.getvalue()


def csv_rows(text: str) -> list[list[str]]:
    """The rows of a CSV file that `csv_text` wrote; csv.Error if it is damaged."""
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    return [
        [cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell for cell in row]
        for row in rows
    ]


def _formula(cell: str) -> bool:
    if not _FORMULA.match(cell):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def from_json(text: str) -> object:
    """Parse JSON; ValueError if it is invalid, nested too deeply, or has huge numbers."""
    try:
        content: object = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # of Python's int, whose remedy is not the user's
        raise ValueError("it has a number of thousands of digits") from error
    return content


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a temporary file next to `path`, then renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as stream:
                write(stream)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CnnvizError(f"cannot write {path}: {error.strerror or error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that `path` is at every moment absent, old or complete."""
    replace_file(path, lambda stream: stream.write(data))
