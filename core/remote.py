"""Files at URLs, through fsspec: listed, read in parts and copied.

A URL comes from a command line or a caller in Python, never from a file, except for names that the
reader of a manifest has joined to the folder of its URL (`within`). It stays text: a `Path` would
lose one of its slashes. Reads are ranges of bytes, repeated if they are interrupted.
"""

import atexit
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from itertools import count, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote

from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import LARGEST, safe_name

PACKAGES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "hf": ("huggingface_hub", "transformers"),
    "https": ("aiohttp", "http"),
    "memory": ("fsspec", "s3"),
}
"""The protocols that are taken: the package that each needs, and the extra that installs it."""
READERS = 32
"""Requests in flight."""
PART = 8 * 2**20
"""Bytes of a request, and of what is read ahead in a tar."""
LARGEST_IMAGE = 2**30
"""Maximum bytes of an image, which is read whole."""
ATTEMPTS, PAUSE, PATIENCE = 4, 0.5, 60.0
"""Tries of a request, seconds before the second one, and seconds after which no other is made."""
LONGEST = 120.0
"""Seconds that a request for a part of a file, or for its size, may take."""
_URL = re.compile(r"([A-Za-z][\w+.-]*)(?=://|::\S*://)")
_TAGS = ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "mtime", "created")
_TIMES = ("LastModified", "mtime", "updated", "created", "Last-Modified")
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError),
    *(ValueError, TypeError, LookupError, NotImplementedError),
)
_COPIES: dict[str, str] = {}
"""The folders of copies, with their URLs."""
Result = TypeVar("Result")


def is_url(text: str) -> bool:
    """Whether a text is a URL of any protocol; a file of that name is `./` and the name."""
    return _URL.match(text) is not None


def checked(url: str) -> str:
    """A URL of a protocol in `PACKAGES`, without the slashes at its end; else a UsageError."""
    scheme, _, rest = url.partition("://")
    known = ", ".join(f"{name}://" for name in PACKAGES)
    shown = "".join(letter if letter.isprintable() else "?" for letter in url)
    place, _, path = rest.partition("/")
    if "@" in place or (scheme == "https" and re.search("[?#]", rest)):
        shown = re.split("[?#]", shown)[0].replace(place, place.rpartition("@")[2])
        raise UsageError(
            f"'{shown}' is given with a password, query or fragment, which summaries would record; "
            "credentials belong to fsspec's configuration"
        )
    if "::" in shown.partition("://")[0]:
        raise UsageError(f"'{shown}' chains protocols; a URL is one of {known}")
    if scheme not in PACKAGES:
        raise UsageError(f"'{shown}' is a URL of another protocol than {known}; download it first")
    if not place or shown != url or not _plain(path.rstrip("/")):
        raise UsageError(f"'{shown}' is not a URL of a file or folder: it has an empty or odd name")
    return url.rstrip("/")


def _plain(path: str) -> bool:
    """Whether no part of a path leads out of its folder."""
    return ".." not in re.split(r"[/\\]", unquote(path)) and "\0" not in path


def within(folder: str, name: str) -> str:
    """The URL of a name in a file of a folder at a URL; a UsageError if it leads elsewhere."""
    url = name if is_url(name) else f"{folder}/{name.replace(chr(92), '/').removeprefix('./')}"
    inside = url.removeprefix(f"{folder}/")
    odd = scheme_of(folder) == "https" and re.search("[?#]", inside)
    if inside == url or inside.startswith("/") or not _plain(inside) or odd:
        raise UsageError(f"'{name[:200]}' is not below {folder}/, and nothing else is read there")
    return url


def scheme_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return url.partition("://")[0]


def system_of(url: str) -> Any:
    """The file system of a URL, with the user's configuration of fsspec."""
    scheme = scheme_of(url)
    required(PACKAGES[scheme][0], f"{scheme}://", PACKAGES[scheme][1])
    return file_system(scheme, os.getpid())


@cache
def file_system(scheme: str, _process: int) -> Any:
    """The file system that all threads share; fsspec would make one for each."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


def _limits(system: Any) -> dict[str, float]:
    """How long a request may take, of file systems that can be interrupted."""
    return {"timeout": LONGEST} if system.async_impl else {}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a URL.

    Attributes:
        url: its address.
        size: bytes.
        tag: text that changes with its content: an ETag, or the time of its last change.
        changed: that time in seconds; infinity if the server does not say.
    """

    url: str
    size: int
    tag: str
    changed: float

    @classmethod
    def of(cls, url: str, about: Mapping[str, Any]) -> "RemoteFile":
        """Makes one of fsspec's description."""
        if about.get("size") is None:
            raise CnnvizError(f"'{url}': its server does not say its size; download it first")
        times = (_seconds(about[key]) for key in _TIMES if about.get(key))
        tags = (about[key] for key in _TAGS if about.get(key))
        tag = next(tags, "")  # a time is a datetime in one answer of fsspec, a number in another
        tag = tag if isinstance(tag, str) else _seconds(tag)
        return cls(url, int(about["size"]), str(tag), next(filter(None, times), float("inf")))

    def __str__(self) -> str:
        return self.url

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.url).stem

    @property
    def stamp(self) -> str:
        """Text that changes when the file changes."""
        return f"{self.size} {self.tag}"

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of the file; a CnnvizError if they do not come."""
        stop = self.size if stop is None else stop
        if not 0 <= start <= stop <= self.size:
            raise CnnvizError(f"'{self.url}' has {self.size:,} bytes, not {stop:,}")
        edges = [*range(start, stop, PART), stop]
        parts = (self._part(a, b) for a, b in pairwise(edges))
        return b"".join(parts)

    def content(self, limit: int) -> bytes:
        """The whole file; a CnnvizError if it is larger than `limit`."""
        self._check_size(limit)
        return self.read()

    def _check_size(self, limit: int) -> None:
        if self.size > limit:
            raise CnnvizError(f"'{self.url}' has {self.size:,} bytes; at most {limit:,} are read")

    def _part(self, start: int, stop: int) -> bytes:
        system = system_of(self.url)

        def once() -> bytes:
            if scheme_of(self.url) == "https":
                part = _of_https(system, self.url, start, stop)
            else:
                part = system.cat_file(self.url, start=start, end=stop, **_limits(system))
            if len(part) != stop - start:
                raise EOFError(f"{len(part):,} of {stop - start:,} bytes came")
            return bytes(part)

        return patiently(self.url, once) if stop > start else b""

    def open(self, _mode: str = "rb") -> BinaryIO:
        """A stream that reads ahead, like that of a `Path`."""
        return io.BufferedReader(_Ranges(self), PART)

    def copy(self, folder: Path, limit: int = LARGEST) -> Path:
        """Copies the file to a local folder, under its name; of `limit` bytes at most."""
        self._check_size(limit)
        name = PurePosixPath(self.url).name
        suffix = safe_name(PurePosixPath(name).suffix)
        path = folder / (name if safe_name(name) == name else f"{safe_name(self.stem)}.{suffix}")
        self.copy_to(path)
        return path

    def copy_to(self, path: Path) -> None:
        """Copies the file to a local path, with its time."""
        try:
            with path.open("xb") as stream:
                for start in range(0, self.size, PART):
                    stream.write(self.read(start, min(start + PART, self.size)))
            if self.changed < float("inf"):
                os.utime(path, (self.changed, self.changed))
        except OSError as error:
            raise CnnvizError(f"'{self.url}' cannot be copied: {one_line(error)}") from error
        if self.size > PART and file_at(self.url).stamp != self.stamp:
            raise CnnvizError(f"'{self.url}' changed while it was read; try again")


class _Ranges(io.RawIOBase):
    """A file at a URL as a raw stream."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._file.size)
        part = self._file.read(self._at, stop) if self._at < stop else b""
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _of_https(system: Any, url: str, start: int, stop: int) -> bytes:
    """A range of bytes, of which never more are read than requested."""
    from aiohttp import ClientTimeout

    headers = {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={start}-{stop - 1}"
    options = {"headers": headers, "timeout": ClientTimeout(total=LONGEST)}
    part = bytearray()
    with system.open(url, "rb", block_size=0, size=stop, **options) as stream:
        if start and stream.r.status != 206:
            raise ValueError("its server does not serve parts of a file; download it first")
        while len(part) < stop - start and (chunk := stream.read(stop - start - len(part))):
            part += chunk
    return bytes(part)


def _seconds(value: object) -> float:
    """A time as seconds; 0 if it is not one."""
    if isinstance(value, int | float):
        return float(value)
    try:
        made = value if isinstance(value, datetime) else parsedate_to_datetime(str(value))
    except ValueError:
        return 0.0
    return made.timestamp()


def patiently(url: str, work: Callable[[], Result], verb: str = "read") -> Result:
    """Repeats work that is interrupted; a CnnvizError that names the URL if it does not help."""
    started = time.monotonic()
    for attempt in count(1):
        try:
            return work()
        except CnnvizError:
            raise
        except Exception as error:  # each library raises others
            late = attempt == ATTEMPTS or time.monotonic() - started > PATIENCE
            if late or _is_final(error):
                raise _failure(url, error, attempt, verb) from error
        time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError


def _cause(error: BaseException) -> BaseException:
    """The error of aiohttp, which fsspec may have turned into a FileNotFoundError."""
    cause = error.__cause__
    return cause if cause and type(cause).__module__.startswith("aiohttp") else error


def _is_final(error: BaseException) -> bool:
    """Whether repeating does not help."""
    status = getattr(_cause(error), "status", None)  # of aiohttp's errors
    if isinstance(status, int):
        return 400 <= status < 500 and status not in (408, 429)
    return isinstance(_cause(error), _FINAL) or type(error).__name__ == "NoCredentialsError"


def _failure(url: str, raised: Exception, attempts: int, verb: str) -> CnnvizError:
    error = _cause(raised)
    absent = isinstance(error, FileNotFoundError) or getattr(error, "status", 0) == 404
    if absent and verb == "read":
        return UsageError(f"no file or folder '{url}'")
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return CnnvizError(
            f"'{url}' may not be {verb}: {one_line(error)}; credentials are those that fsspec finds"
        )
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    return CnnvizError(f"'{url}' cannot be {verb}: {one_line(error)}{tried}")


def described(url: str) -> RemoteFile | None:
    """The file at a URL; None if it is a folder, a UsageError if there is nothing."""
    system = system_of(url)
    about = patiently(url, partial(system.info, url, **_limits(system)))
    return None if about["type"] == "directory" else RemoteFile.of(url, about)


def file_at(url: str) -> RemoteFile:
    """The file at a URL; a UsageError if it is a folder."""
    file = described(checked(url))
    if file is None:
        raise UsageError(f"'{url}' is a folder, not a file")
    return file


def files_at(urls: list[str]) -> list[RemoteFile | None]:
    """The files at some URLs, None for each that does not exist; many are asked for at a time."""

    def one(url: str) -> RemoteFile | None:
        try:
            return described(url)
        except UsageError:
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(one, urls))


def below(folder: str) -> list[tuple[str, RemoteFile]]:
    """The files below a folder by their names in it, in the order in which local ones are."""
    if scheme_of(folder) == "https":
        raise UsageError(f"'{folder}': https:// has files, not folders; name a manifest or tars")
    system = system_of(folder)
    root = system._strip_protocol(folder).rstrip("/") + "/"
    try:
        listed = patiently(folder, partial(system.find, folder, detail=True))
    except UsageError:
        return []
    names = ((name[len(root) :], about) for name, about in listed.items() if name.startswith(root))
    found = [
        (name, RemoteFile.of(f"{folder}/{name}", about))
        for name, about in names
        if name and not name.endswith("/") and about["type"] != "directory"
    ]
    return sorted(found, key=lambda pair: pair[0].split("/"))


@contextmanager
def local_copy(
    url: str | Path, parts: Callable[[Path], Iterable[str]] = lambda _path: ()
) -> Iterator[Path]:
    """A private copy of a file for a while, whose errors name the URL; a path stays as it is.

    `parts` returns the names of the other files that belong to it.
    """
    if not is_url(str(url)):
        yield Path(url)
        return
    where, _, _ = str(url).rpartition("/")
    with tempfile.TemporaryDirectory(prefix="cnnviz-") as folder:
        _COPIES[f"{folder}/"] = f"{where}/"
        try:
            path = file_at(str(url)).copy(Path(folder))
            for name in parts(path):
                if name != path.name:
                    file_at(within(where, name)).copy(Path(folder))
            yield path
        except CnnvizError as error:
            raise type(error)(named_by_url(str(error))) from error


def named_by_url(text: str) -> str:
    """A message in which the copies of files are called by their URLs."""
    for folder, where in _COPIES.items():
        text = text.replace(folder, where)
    return text


def local_folder(folder: str) -> Path:
    """A folder, or a private copy of one at a URL, which exists until this process ends."""
    if not is_url(folder):
        return Path(folder).expanduser()
    copy = Path(tempfile.mkdtemp(prefix="cnnviz-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copied_folder(folder, copy)
    return copy


def copied_folder(url: str, folder: Path) -> None:
    """Copies all files below a folder at a URL; a CnnvizError if they do not fit the disk."""
    files = below(checked(url))
    if not files:
        raise UsageError(f"no file or folder '{url}'")
    total, free = sum(file.size for _, file in files), shutil.disk_usage(folder).free
    if 2 * total > free:
        raise CnnvizError(
            f"'{url}' has {total:,} bytes, and only {free:,} are free for a copy in {folder} "
            "(TMPDIR sets another place)"
        )

    def one(listed: tuple[str, RemoteFile]) -> None:
        name, file = listed
        if not _plain(name) or "\\" in name or "" in name.split("/") or "." in name.split("/"):
            raise CnnvizError(f"'{url}' lists {name!r}, which is not the name of a file below it")
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CnnvizError(f"'{file}' cannot be copied: {one_line(error)}") from error
        file.copy_to(path)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(one, files))
