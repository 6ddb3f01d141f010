"""Files that a user names: read only if they are regular files, and written whole or not at all.

A name can be anything (too long, with a NUL in it, of bytes that are not text), and it can belong
to a pipe that never ends. Text from strangers can be nested deeper than a parser can read.
"""

import json
import os
import secrets
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cnnviz.core.errors import CnnvizError

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 8 * 2**30
"""Bytes of arrays in a file, unpacked; more are refused before they are read."""

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
)
"""What damaged or foreign files have been seen to raise when they are read as arrays."""


def exists(path: Path) -> bool:
    """Whether there is something of that name; a name that cannot be one stands for nothing."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def shown_path(path: str) -> str:
    """A path as text that can be written: bytes that are no UTF-8 become a question mark."""
    return os.fsencode(path).decode("utf-8", "replace")


def regular(path: str | Path) -> Path:
    """The path of something that can be read to its end.

    Raises:
        CnnvizError: there is nothing of that name, or it is a folder, pipe, socket or device.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError as error:
        raise CnnvizError(f"no file '{path}'") from error
    except PermissionError as error:
        raise CnnvizError(f"'{path}' may not be read: permission denied") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CnnvizError(f"'{path}' is no file name: {reason}") from error
    if stat.S_ISDIR(mode):
        raise CnnvizError(f"'{path}' is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise CnnvizError(f"'{path}' is no file but a pipe, socket or device")
    return Path(path)


def read_text(path: str | Path) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        CnnvizError: it cannot be read (`regular`), or is not UTF-8.
    """
    try:
        return regular(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CnnvizError(f"'{path}' is not UTF-8 text") from error
    except OSError as error:
        raise CnnvizError(f"'{path}' cannot be read: {error.strerror or error}") from error


def lines(text: str) -> list[str]:
    """The lines of a text; only line feeds end them (with or without a carriage return)."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


@contextmanager
def open_arrays(path: Path) -> "Iterator[Mapping[str, NDArray[Any]]]":
    """The arrays of an .npz file, each read when it is asked for; nothing is unpickled.

    Raises:
        ValueError: it unpacks to more than `LARGEST`.
        CnnvizError: it is no file (`regular`).
        Exception: whatever of `DAMAGE` numpy raises on a damaged one.
    """
    import numpy as np

    with regular(path).open("rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
        with np.load(stream, allow_pickle=False) as arrays:
            yield arrays


def from_json(text: str) -> object:
    """What JSON says.

    Raises:
        ValueError: it is none, or is nested deeper than can be read.
    """
    try:
        content: object = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a temporary file next to `path`, then renames it to `path`.

    Raises:
        CnnvizError: the file system refuses (permissions, full disk, …).
    """
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
