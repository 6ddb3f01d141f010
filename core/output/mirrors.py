"""Folders of results at URLs: each is made in a private local folder, its mirror.

A mirror is a path like any other to a command. What is at the URL is copied to it first where a run
resumes or replaces another. When the command ends, however it ends, new files are uploaded, each
whole; the summaries of replaced runs are deleted before, and summaries are written last.
"""

import atexit
import logging
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from cnnviz.core.errors import UsageError
from cnnviz.core.files import BLOCKS, SUMMARY, UNFINISHED
from cnnviz.core.remote import READERS, checked, copied_folder, patiently, scheme_of, system_of

_log = logging.getLogger("cnnviz")
WRITABLE = ("s3", "gs", "memory")

_MIRRORS: dict[Path, str] = {}
"""The local folders of results whose place is a URL."""
_FETCHED: dict[Path, tuple[int, float]] = {}
"""The files of mirrors that came from their URLs, with size and time."""
_OPENED: set[Path] = set()
"""The folders in mirrors that have what was at their URLs."""
_UPLOADED_LATER: set[Path] = set()
"""Mirrors whose command has not ended."""


def mirror(url: str) -> Path:
    """A private local folder for the results of a command, which `uploading` puts to their URL."""
    url = checked(url)
    if scheme_of(url) not in WRITABLE:
        raise UsageError(
            f"--out {url}: nothing can be written there; folders at s3:// and gs:// can"
        )
    folder = Path(tempfile.mkdtemp(prefix="cnnviz-out-")).resolve()
    _MIRRORS[folder] = url
    atexit.register(_discard, folder)
    return folder


def _discard(folder: Path) -> None:
    if _MIRRORS.pop(folder, None):
        shutil.rmtree(folder, ignore_errors=True)
    for path in [path for path in _FETCHED if path.is_relative_to(folder)]:
        del _FETCHED[path]
    _OPENED.difference_update([path for path in _OPENED if path.is_relative_to(folder)])


def url_of(path: Path) -> str | None:
    """The URL of a path in a mirror; None for others."""
    for folder, url in _MIRRORS.items():
        if path.is_relative_to(folder):
            inside = path.relative_to(folder).as_posix()
            return url if inside == "." else f"{url}/{inside}"
    return None


def shown(path: Path) -> str:
    """A path as messages show it: in a mirror, its URL."""
    return url_of(path) or str(path)


def names_in(folder: str) -> set[str]:
    """The names in a folder at a URL; none if there is no such folder."""
    system = system_of(folder)
    try:
        listed = patiently(folder, partial(system.ls, folder, detail=False))
    except UsageError:
        return set()
    return {name.rstrip("/").rpartition("/")[2] for name in listed}


def fetch(path: Path) -> None:
    """Prepares a folder in a mirror: what is at its URL is copied, to be resumed or replaced.

    Raises:
        CnnvizError: files cannot be written to the URL, or deleted.
    """
    url = url_of(path)
    if url is None or path in _OPENED:
        return
    _OPENED.add(path)
    if names_in(url):
        copied_folder(url, path)
    for file in path.rglob("*"):
        if file.is_file():
            _FETCHED[file] = file.stat().st_size, file.stat().st_mtime
    system, probe = system_of(url), f"{url}/.cnnviz"
    patiently(url, partial(system.pipe_file, probe, b""), "written")
    patiently(url, partial(system.rm_file, probe), "written")


@contextmanager
def uploading(folder: Path | None) -> Iterator[None]:
    """Uploads the files in a mirror when the command has ended, however it ended."""
    if folder not in _MIRRORS or folder in _UPLOADED_LATER:
        yield
        return
    _UPLOADED_LATER.add(folder)
    try:
        yield
    finally:
        _UPLOADED_LATER.remove(folder)
        url = _MIRRORS[folder]
        try:
            _upload(folder)
        except BaseException:
            del _MIRRORS[folder]
            _log.warning("note: %s is not complete; its files are kept in %s", url, folder)
            raise
        _discard(folder)


def _upload(folder: Path) -> None:
    """Summaries that were replaced are deleted first, and summaries are written last."""
    url = _MIRRORS[folder]
    system = system_of(url)

    def put(path: Path) -> None:
        target = f"{url}/{path.relative_to(folder).as_posix()}"
        patiently(target, partial(system.put_file, str(path), target), "written")

    def delete(path: Path) -> None:
        target = f"{url}/{path.relative_to(folder).as_posix()}"

        def once() -> None:
            with suppress(FileNotFoundError):
                system.rm_file(target)

        patiently(target, once, "written")

    now = {p: (p.stat().st_size, p.stat().st_mtime) for p in folder.rglob("*") if p.is_file()}
    before = {p: state for p, state in _FETCHED.items() if p.is_relative_to(folder)}
    new = [path for path, state in now.items() if before.get(path) != state]
    old = [path for path in before if path not in now]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(delete, [p for p in (*new, *old) if p.name == SUMMARY and p in before]))
        list(pool.map(put, [path for path in new if path.name != SUMMARY]))
        list(pool.map(delete, [path for path in old if path.name != SUMMARY]))
        list(pool.map(put, [path for path in new if path.name == SUMMARY]))


def check_free(path: Path, *, overwrite: bool, resume: bool) -> bool:
    """Returns whether the folder of a run, or that at its URL, has files already."""
    url, named = url_of(path), shown(path)
    try:
        names = (
            names_in(url)
            if url and path not in _OPENED
            else {entry.name for entry in path.iterdir()}
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return False
        raise UsageError(f"{named} is not a folder; give --out another one") from error
    finished = SUMMARY in names and BLOCKS not in names  # with blocks, some were given up
    if finished and resume and not overwrite:
        raise UsageError(
            f"{named} holds a finished run: there is nothing to resume; "
            "use --overwrite to repeat it, or another folder with --out"
        )
    if names and not overwrite and not resume:
        goes_on = names & {UNFINISHED, BLOCKS}
        remedy = "--resume to go on, --overwrite" if goes_on else "--overwrite"
        raise UsageError(f"{named} is not empty; use {remedy}, or another folder with --out")
    return bool(names)
