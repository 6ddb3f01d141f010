"""Lists of images: what each is called, its class and how it is opened; and manifests of them.

A source is listed, never loaded, in an order that depends on the names alone. A manifest is a table
(CSV, TSV), a list (.txt, lines of path and label), or JSON (lines of objects, a list of them, or
COCO's images, annotations and categories) with a path and, if known, a label for each image.
"""

import csv
import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cnnviz.core.choices import whole_number
from cnnviz.core.data.images import read_picture, suffixes
from cnnviz.core.data.rasters import ARRAYS, Raster
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import exists, from_json, lines, read_text
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.remote import is_url

UNKNOWN = -1
MANIFESTS = frozenset({".csv", ".tsv", ".txt", ".json", ".jsonl"})
PATH_COLUMNS = (
    *("path", "filename", "file_name", "filepath", "file_path", "file"),
    *("image", "image_path", "image_name", "image_id", "img", "img_path"),
)
SHOWN = 8
NUMBERS = frozenset({"", "id", "index", "unnamed:_0"})
"""Names of columns that number the rows."""
MARKS = {"0": False, "1": True, "0.0": False, "1.0": True}
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")
_log = logging.getLogger("cnnviz")
Named = tuple[str, str | None]
"""A path, and the label if it is known."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image of a source.

    Attributes:
        path: the file, or a name for it in a data set; also for display.
        label: index into the data's classes; None if it has no label.
        row: index in the source, before any sampling.
    """

    path: str
    label: int | None
    row: int


def _open_file(example: Example, preprocess: Preprocess) -> Image.Image | Raster:
    return read_picture(example.path, preprocess)


def _file_state(example: Example) -> str:
    try:
        stat = Path(example.path).stat()
    except (OSError, ValueError):
        return "-"
    return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class ImageSource:
    """All images of a source.

    Attributes:
        examples: in stable order.
        classes: the names of the labels; None if nothing is labelled.
        open: decodes an image for a network's preprocessing, or raises a CnnvizError.
        state: text that changes when the image changes.
        files: the files that contain the images, if they are not files themselves.
        canonical: whether the classes are in the data set's official order, in which models are
            trained on it.
        folders: whether the classes are the names of folders.
        changed: when an image was written, in seconds, if it is not in a local file.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None
    open: Callable[[Example, Preprocess], Image.Image | Raster] = _open_file
    state: Callable[[Example], str] = _file_state
    files: tuple[Path, ...] = ()
    canonical: bool = False
    folders: bool = False
    changed: Callable[[Example], float] | None = None


def _by_number(name: str) -> tuple[bool, int, str]:
    """A sort key: numbers by value, so that 2 comes before 10, then text."""
    number = whole_number(name)
    return (number is None, number or 0, name)


def labelled(rows: Iterable[tuple[str | Path, str | None]]) -> ImageSource:
    """Makes a source of paths and the names of their classes, None if unknown."""
    listed = list(rows)
    names = tuple(sorted({name for _, name in listed if name is not None}, key=_by_number))
    position = {name: index for index, name in enumerate(names)}
    examples = (
        Example(str(path), None if name is None else position[name], row)
        for row, (path, name) in enumerate(listed)
    )
    return ImageSource(tuple(examples), names or None)


def label_text(label: object) -> str | None:
    """A label of a manifest or data set as text; several classes or values separated by `|`."""
    if isinstance(label, list):  # an empty one is `|`
        return "|".join(map(str, label)) or "|"
    return None if label is None else str(label).strip()


@dataclass(frozen=True)
class Manifest:
    """A list of images: its name, its suffix, and whether a file is in its folder."""

    name: str
    suffix: str
    has: Callable[[str], bool]

    def __str__(self) -> str:
        return self.name


def _delimiter(text: Sequence[str], manifest: Manifest) -> str:
    """The most frequent of comma, semicolon and tab in the first line."""
    first = next((line for line in text if line.strip()), "")
    return "," if manifest.has(first.strip()) else max(",;\t", key=first.count)


def _column(header: Sequence[str], names: Sequence[str]) -> int:
    """The index of the first known name; the number of columns if there is none."""
    return next((header.index(name) for name in names if name in header), len(header))


def _names_image(cells: Sequence[str]) -> bool:
    return any(Path(cell.strip()).suffix.lower() in suffixes() | ARRAYS for cell in cells)


def _header(rows: Sequence[Sequence[str]], manifest: Manifest) -> tuple[int, Sequence[str]]:
    """The column of the paths and the header; the header is empty if the first row is an image."""
    if not rows or _names_image(rows[0]):
        return 0, ()
    place = _column(list(map(_usual, rows[0])), PATH_COLUMNS)
    if place < len(rows[0]):
        return place, [cell.strip() for cell in rows[0]]
    shown = ",".join(rows[0])
    if len(rows) > 1 and _names_image(rows[1][:1]):
        raise UsageError(
            f"the manifest '{manifest}' begins with a row that does not name an image: "
            f"{shown}; call a header's columns path and label"
        )
    if not any(manifest.has(row[0].strip()) for row in rows[:2]):
        raise UsageError(
            f"the manifest '{manifest}' names no image in its first rows ({shown}): expected file "
            "names with their suffix (.jpg, .png, ...); call a header's columns path and label"
        )
    return 0, ()


def _usual(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _labels(
    header: Sequence[str], rows: Sequence[Sequence[str]], place: int, manifest: Manifest
) -> list[str | None]:
    """The label of each row of a table; a note says which column was taken, if its name does not.

    Without a usual name, the only other column is taken, or one column of 0 and 1 per class.
    """

    def cells(column: int) -> list[str | None]:
        return [row[column].strip() if column < len(row) else None for row in rows]

    if not header:
        return cells(1)
    column = _column(list(map(_usual, header)), LABEL_COLUMNS)
    others = [n for n, name in enumerate(header) if n != place and _usual(name) not in NUMBERS]
    if column < len(header) or not others:
        return cells(column)
    if len(others) == 1:
        _log.warning("note: column %r of %r is used as the label", header[others[0]], str(manifest))
        return cells(others[0])
    shown = ", ".join(header[number] for number in others[:SHOWN])
    shown += f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    marks = [
        [row[number].strip() if number < len(row) else "" for number in others] for row in rows
    ]
    if all(mark in MARKS for row in marks for mark in row):
        _log.warning(
            "note: the labels in %r are its %d columns of 0 and 1: %s",
            str(manifest), len(others), shown,
        )  # fmt: skip
        return [_marked([header[number] for number in others], row) for row in marks]
    _log.warning("note: no column of %r is used as the label (%s): call one label", str(manifest),
                 shown)  # fmt: skip
    return [None] * len(rows)


def _marked(names: Sequence[str], marks: Sequence[str]) -> str:
    """The class with the 1; several are separated by `|`, and none is `|`."""
    return "|".join(n for n, mark in zip(names, marks, strict=True) if MARKS[mark]) or "|"


def _csv_rows(text: str, manifest: Manifest) -> list[Named]:
    mark = _delimiter(lines(text), manifest)
    stream = io.StringIO(text, newline="")  # quoted cells may hold line breaks
    reader = csv.reader(stream, strict=True, delimiter=mark, skipinitialspace=True)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UsageError(f"the manifest '{manifest}' is not CSV: {error}") from error
    place, header = _header(rows, manifest)
    rows = rows[1:] if header else rows
    for number, row in enumerate(rows, start=1):
        if place >= len(row) or not row[place].strip():
            raise UsageError(f"the manifest '{manifest}' has no path in its row {number}")
    labels = _labels(header, rows, place, manifest)
    return [(row[place].strip(), label) for row, label in zip(rows, labels, strict=True)]


def _list_rows(text: str, manifest: Manifest) -> list[Named]:
    """A path in each line and, after the last blank, its label, as Caffe and ImageNet have it."""
    listed = [line.strip() for line in lines(text) if line.strip()]
    if any(mark in line for line in listed[:1] for mark in ",;\t"):
        return _csv_rows(text, manifest)
    rows: list[Named] = []
    for line in listed:
        path, _, label = line.replace("\t", " ").rpartition(" ")
        alone = not path or _names_image([label]) or manifest.has(line)
        rows.append((line, None) if alone else (path.strip(), label))
    _header([[path] for path, _ in rows], manifest)
    return rows


def _json_lines(text: str, manifest: Manifest) -> list[Named]:
    rows: list[object] = []
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        try:
            rows.append(from_json(line))
        except ValueError as error:
            raise UsageError(f"the manifest '{manifest}', line {number}: {error}") from error
    return _objects(rows, manifest, "line")


def _objects(rows: Sequence[object], manifest: Manifest, what: str) -> list[Named]:
    """Objects with a path and, if known, a label, under the usual names."""
    named: list[Named] = []
    without: set[str] = set()
    for number, entry in enumerate(rows, start=1):
        keys = {_usual(key): key for key in entry} if isinstance(entry, dict) else {}
        path = next((keys[name] for name in PATH_COLUMNS if name in keys), None)
        if not isinstance(entry, dict) or path is None or not isinstance(entry[path], str):
            raise UsageError(
                f"the manifest '{manifest}', {what} {number}: "
                "expected an object with path and label"
            )
        label = next((keys[name] for name in LABEL_COLUMNS if name in keys), None)
        named.append((entry[path], None if label is None else label_text(entry[label])))
        without |= set(entry) - {path} if label is None else set()
    if without:
        _log.warning("note: images of %r without a label; the key is called label, not %s",
                     str(manifest), ", ".join(sorted(without)[:SHOWN]))  # fmt: skip
    return named


def _json_rows(text: str, manifest: Manifest) -> list[Named]:
    """A list of objects, or COCO's images, annotations and categories."""
    try:
        content = from_json(text)
    except ValueError as error:
        raise UsageError(f"the manifest '{manifest}' is not JSON: {error}") from error
    if isinstance(content, list):
        return _objects(content, manifest, "entry")
    try:
        return _coco(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"the manifest '{manifest}' is neither a list of objects with path and label nor "
            "COCO's images, annotations and categories"
        ) from error


def _coco(content: Any) -> list[Named]:
    """The categories of each image's annotations; several are separated by `|`."""
    names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", ())}
    of_image: dict[object, set[str]] = {}
    for entry in content.get("annotations", ()):
        of_image.setdefault(entry["image_id"], set()).add(names[entry["category_id"]])
    return [
        (str(entry["file_name"]), "|".join(sorted(of_image.get(entry["id"], ()))) or None)
        for entry in content["images"]
    ]


_READERS: dict[str, Callable[[str, Manifest], list[Named]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".txt": _list_rows,
    ".json": _json_rows,
    ".jsonl": _json_lines,
}


def read_rows(text: str, manifest: Manifest) -> list[Named]:
    """The paths and labels that a manifest lists."""
    rows = _READERS[manifest.suffix](text, manifest)
    if not rows:
        raise UsageError(f"the manifest '{manifest}' lists no image")
    return rows


def read_manifest(path: Path) -> ImageSource:
    """The images that a local manifest lists, with paths relative to its folder."""
    try:
        text = read_text(path)
    except CnnvizError as error:
        raise UsageError(f"the manifest cannot be used: {error}") from error
    manifest = Manifest(str(path), path.suffix.lower(), lambda name: exists(path.parent / name))
    rows = read_rows(text, manifest)
    if url := next((name for name, _ in rows if is_url(name)), None):
        raise UsageError(
            f"the manifest '{path}' names '{url[:200]}', and a local file cannot name URLs; put it "
            "next to the images, and give its URL"
        )
    folder = "" if path.parent == Path() else str(path.parent)
    return labelled((_in_folder(folder, name), label or None) for name, label in rows)


def _in_folder(folder: str, path: str) -> str:
    """A path relative to the manifest's folder; backslashes of Windows become slashes."""
    place = os.path.join(folder, path.removeprefix("./"))  # noqa: PTH118 (a million of them)
    turned = place.replace("\\", "/")
    if turned == place or exists(Path(place)) or not exists(Path(turned)):
        return place
    return turned
