"""What happens before torch is imported, which takes seconds: mistakes in paths are reported."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from cnnviz.cli.console import say
from cnnviz.core.data.shards import of_environment
from cnnviz.core.errors import UsageError
from cnnviz.core.files import check_free, exists, regular, safe_name

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
    only = Path(*sources)
    if only.is_dir():
        pictures = (path for path in only.rglob("*") if path.suffix.lower() in _PICTURES)
        return root if len(list(islice(pictures, 2))) == 2 else None
    return root / safe_name(only.stem) if only.suffix.lower() in _PICTURES else None


def _check_files(sources: Sequence[str], model: Any) -> None:
    for source in sources:
        if "://" in source and not exists(Path(source)):
            raise UsageError(f"'{source}' is a URL; cnnviz reads files: download it first")
        if not exists(Path(source)) and not _NOT_A_PATH.search(source):
            raise UsageError(f"no file or folder '{source}'")
    for file in (model.checkpoint, model.labels, model.like) if model else ():
        if file is not None and not file.is_dir():  # of a folder, its reader knows the remedy
            regular(file)


def _sources(given: Any) -> Iterator[str]:
    for name in ("images", "data"):
        value = getattr(given, name, None)
        yield from map(str, value if isinstance(value, list | tuple) else [])
