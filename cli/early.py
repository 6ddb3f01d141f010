"""What happens before torch is imported, which takes seconds: mistakes in paths are reported."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from cnnviz.cli.console import say
from cnnviz.core.data.shards import of_environment
from cnnviz.core.errors import UsageError
from cnnviz.core.files import exists, regular, safe_name
from cnnviz.core.output.mirrors import check_free
from cnnviz.core.remote import checked, is_url

_NOT_A_PATH = re.compile(r"^[\w.+-]+:|[{}*?\[\]]")
"""A data set by name, a URL, or a pattern: only its reader can tell."""
_PICTURES = (".jpg", ".jpeg", ".png")
"""Suffixes of files that are surely images: other files may list several."""


def begin(command: str, given: Any) -> None:
    """Checks the files and the output folder of a command, and reports what is loading.

    Only common mistakes are found; the command itself checks everything.
    """
    sources = list(_sources(given))
    model, output = getattr(given, "model", None), getattr(given, "output", None)
    _check_files(sources, model)
    expect = getattr(given, "expect", None) or ""
    if expect.endswith(".json") and not exists(Path(expect)):
        raise UsageError(f"--expect '{expect}' cannot be used (no file of this name)")
    shared = getattr(given, "shard", None) or of_environment(os.environ)  # in folders of shares
    if output is not None and not shared:
        root = output.folder(command)
        resume = getattr(given, "resume", False)
        with suppress(OSError, RuntimeError):  # the command reports them
            folder = _of_images(root, set(sources)) if hasattr(given, "images") else root
            if folder is not None:
                check_free(folder, overwrite=output.overwrite, resume=resume)
    if model is not None and not (output and output.quiet) and sys.stderr.isatty():
        say(f"loading {model.checkpoint or model.model} …")


def _of_images(root: Path, sources: set[str]) -> Path | None:
    """The folder of a run over images; None if it depends on how many a source lists."""
    if len(sources) != 1:
        return root
    if is_url(*sources):
        name = PurePosixPath(*sources)  # of a folder, the command lists the images
        return root / safe_name(name.stem) if name.suffix.lower() in _PICTURES else None
    only = Path(*sources)
    if only.is_dir():
        pictures = (path for path in only.rglob("*") if path.suffix.lower() in _PICTURES)
        return root if len(list(islice(pictures, 2))) == 2 else None
    return root / safe_name(only.stem) if only.suffix.lower() in _PICTURES else None


def _check_files(sources: Sequence[str], model: Any) -> None:
    for source in sources:
        if is_url(source):
            checked(source)
        elif not exists(Path(source)) and not _NOT_A_PATH.search(source):
            raise UsageError(f"no file or folder '{source}'")
    for file in (model.checkpoint, model.labels, model.like) if model else ():
        if isinstance(file, Path) and not file.is_dir():  # of a folder, its reader knows the remedy
            regular(file)


def _sources(given: Any) -> Iterator[str]:
    for name in ("images", "data"):
        value = getattr(given, name, None)
        yield from map(str, value if isinstance(value, list | tuple) else [])
