"""The folder a run writes to: every file whole or absent, the summary last.

A file is written under a temporary name beside its place and then renamed, so a name never stands
for half a file. `summary.json` comes last: a folder that has one is complete. Nothing is replaced
without `overwrite`, and then only what an earlier summary lists, or what has the same name.
"""

import csv
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cnnviz.core.choices import FigureFormat
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import exists, from_json, read_text, replace_file, write_atomically
from cnnviz.core.output import parquet
from cnnviz.core.output.entries import Summary, model_entry
from cnnviz.core.output.lock import Lock, identity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cnnviz.core.models.load import Model

SUMMARY = "summary.json"
UNFINISHED = "unfinished.json"
"""Of a run over many pictures that is under way, or was cut off: see `index.py`."""
DPI = 150
LONGEST_NAME = 80
_UNDATED: dict[FigureFormat, dict[str, None]] = {
    FigureFormat.PNG: {"Software": None},
    FigureFormat.PDF: {"Creator": None, "Producer": None, "CreationDate": None},
    FigureFormat.SVG: {"Creator": None, "Date": None},
}
"""What matplotlib would write of itself and the day."""
_HERE = "\0results\0"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def version() -> str:
    """The installed version of cnnviz; `unknown` when run from a bare source tree."""
    try:
        return metadata.version("cnnviz")
    except metadata.PackageNotFoundError:
        return "unknown"


def safe_name(text: str) -> str:
    """`text` as a file name that stays in its folder: no separators, no leading dots, not long."""
    kept = re.sub(r"[^\w .+,()=@-]", "_", text).strip(" .")
    return kept.encode()[:LONGEST_NAME].decode(errors="ignore") or "unnamed"


class RunFolder:
    """Where one run's files go, and the list of them.

    Attributes:
        path: the folder.
        files: paths relative to the run's root folder, in order of writing; shared with subfolders.
        figures: what figures are written as; subfolders do as their root.
        caption: stands small on every figure; likewise.
        dark: figures are light on dark; likewise.
    """

    figures = FigureFormat.PNG
    caption = ""
    dark = False

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
        """Makes the folder, or takes an existing one over.

        Args:
            path: the run's folder.
            overwrite: allow a folder that is not empty; the files that its summary lists go.
            resume: allow a folder that has files but no summary (an interrupted run).
            within: the folder that it must not lead out of, by a link.
            inputs: files of the user's, which are never replaced.

        Raises:
            UsageError: the folder is not empty and neither flag allows it, or it is a file.
            CnnvizError: it cannot be made or written to, or another process is doing so.
        """
        try:
            if within is not None and not path.resolve().is_relative_to(within.resolve()):
                raise UsageError(f"{path} leads out of {within}; give --out another folder")
            path.mkdir(parents=True, exist_ok=True)
            occupied = any(path.iterdir())
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{path} is not a folder; give --out another one") from error
        except OSError as error:
            raise CnnvizError(f"cannot write to {path}: {error.strerror or error}") from error
        if not os.access(path, os.W_OK):
            raise CnnvizError(
                f"cannot write to {path}: permission denied; give --out another folder"
            )
        unfinished = resume and not (path / SUMMARY).exists()
        if occupied and not overwrite and not unfinished:
            cut_off = (path / UNFINISHED).exists()
            remedy = "--resume to go on, --overwrite" if cut_off else "--overwrite"
            raise UsageError(f"{path} is not empty; use {remedy}, or another folder with --out")
        folder = cls(path, inputs=inputs)
        folder._lock = Lock.of(path)
        folder._clear_leftovers()
        if occupied and overwrite:
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
            # A link in a file's place goes itself, not what it leads to.
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
        """A folder inside, its name made safe and different from those asked for before."""
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
        folder._remove_previous()  # of an earlier run on this image alone
        return folder

    def _clear_leftovers(self) -> None:
        """Deletes what an earlier run, killed while it wrote, left under temporary names."""
        for path in self.path.glob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name) and not path.is_symlink() and path.is_file():
                path.unlink(missing_ok=True)

    def _check_kept(self, path: Path) -> None:
        """Refuses to replace a file that the run reads.

        Raises:
            CnnvizError: it is one of the inputs.
        """
        if path.exists() and identity(path) in self._root._kept:
            raise CnnvizError(f"{path} is one of the inputs; give --out another folder")

    @cached_property
    def _kept(self) -> frozenset[tuple[int, int]]:
        """What the inputs are, by whatever name."""
        return frozenset(identity(given) for given in map(Path, self._inputs) if exists(given))

    def _place(self, name: str) -> Path:
        """Where a file of that name goes: names that become the same file's get a number."""
        stem, dot, suffix = name.rpartition(".")
        base, number = safe_name(stem if dot else suffix), 1
        file_name = f"{base}.{safe_name(suffix)}" if dot else base
        while self._names.setdefault(file_name.lower(), name) != name:
            number += 1
            file_name = f"{base}-{number}{dot}{safe_name(suffix) if dot else ''}"
        return self.path / file_name

    def list(self, name: str) -> None:
        """Lists a file of the folder that was written by other means."""
        self._list(self.path / name)

    def adopt(self, name: str, files: Iterable[str]) -> None:
        """Takes over what an earlier part of the run wrote to a subfolder: its name and files."""
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

    def write_text(self, name: str, text: str) -> Path:
        """Writes UTF-8 text."""
        return self.write_bytes(name, text.encode())

    def write_csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
        """Writes comma-separated values with a header line; a parquet file too, if that can be."""
        stream, listed = io.StringIO(), list(rows)
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(listed)
        if parquet.available():
            content = io.BytesIO()
            parquet.write(content, header, listed)
            self.write_bytes(Path(name).stem + parquet.SUFFIX, content.getvalue())
        return self.write_text(name, stream.getvalue())

    def write_npz(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes arrays, compressed; none may hold objects (nobody should unpickle our files)."""
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
        """Writes uint8 pixels (H, W) or (H, W, 3) as they are, one pixel each, as PNG."""
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        return self.write_bytes(name, stream.getvalue())

    def write_figure(self, name: str, figure: "Figure") -> Path:
        """Draws a matplotlib figure, as PNG or what else `figures` says; the same gives the same.

        Args:
            name: of the file, with the suffix .png, which another format replaces.
            figure: what to draw.
        """
        from matplotlib import rc_context

        from cnnviz.core.output.dress import darken, sign

        kind = self._root.figures
        if self._root.dark:
            darken(figure)
        whole = sign(figure, self._root.caption) if self._root.caption else None
        stream = io.BytesIO()
        # Pictures that matplotlib joins before it writes them lose the weight of the map over them.
        with rc_context({"svg.hashsalt": "cnnviz", "image.composite_image": False}):
            figure.savefig(
                stream, format=kind.value, dpi=DPI, metadata=_UNDATED[kind], bbox_inches=whole
            )
        return self.write_bytes(f"{name.removesuffix('.png')}.{kind.value}", stream.getvalue())

    def finish(self, content: Mapping[str, Any]) -> Path:
        """Writes `summary.json`, the sign that the folder is complete; call it last."""
        path = self.path / SUMMARY
        self._check_kept(path)
        replace_file(path, lambda stream: stream.writelines(map(str.encode, json_parts(content))))
        return path


def json_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """The text of `to_json`, where `results` may be anything that gives entries one by one."""
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
    """Indented strict JSON that ends in a line feed.

    Raises:
        ValueError: there is a NaN or an Infinity in it.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def summary(
    command: str,
    *,
    model: "Model | None",
    seed: int,
    elapsed_seconds: float,
    results: object,
    files: Sequence[str],
    errors: Sequence[tuple[str, str]] = (),
    argv: Sequence[str] | None = None,
) -> Summary[object]:
    """The content of `summary.json` with the keys that every command has.

    Args:
        command: its name on the command line.
        model: what was looked at; None for commands without one.
        seed: the run's seed.
        elapsed_seconds: wall-clock time of the whole run.
        results: the command's own part; plain data.
        files: paths relative to the run folder.
        errors: (input, message) of each input that failed.
        argv: the arguments after the program's name; default those of this process.
    """
    return {
        "schema": f"cnnviz.{command}/1",
        "command": command,
        "version": version(),
        "argv": list(sys.argv[1:] if argv is None else argv),
        "model": model_entry(model) if model else None,
        "device": str(model.device) if model else None,
        "precision": model.precision if model else None,
        "seed": seed,
        "elapsed_seconds": round(elapsed_seconds, 3),
        "results": results,
        "files": list(files),
        "errors": [{"input": name, "message": message} for name, message in errors],
    }
