"""Lists of images: what each is called, its class and how it is opened; and manifests of them.

A source is listed, never loaded, in an order that depends on the names alone. A manifest is a CSV
or JSON-lines file with a path and, if known, a label for each image.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cnnviz.core.choices import whole_number
from cnnviz.core.data.images import read_picture, suffixes
from cnnviz.core.data.rasters import ARRAYS, Raster
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import exists, from_json, lines, read_text
from cnnviz.core.models.preprocess import Preprocess

UNKNOWN = -1
MANIFESTS = frozenset({".csv", ".jsonl"})
PATH_COLUMNS = (
    *("path", "filename", "file_name", "filepath", "file_path", "file"),
    *("image", "image_path", "image_name", "img", "img_path"),
)
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")


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
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None
    open: Callable[[Example, Preprocess], Image.Image | Raster] = _open_file
    state: Callable[[Example], str] = _file_state
    files: tuple[Path, ...] = ()
    canonical: bool = False
    folders: bool = False


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


def _delimiter(text: Sequence[str], folder: Path) -> str:
    """The most frequent of comma, semicolon and tab in the first line."""
    first = next((line for line in text if line.strip()), "")
    return "," if exists(folder / first.strip()) else max(",;\t", key=first.count)


def _column(header: Sequence[str], names: Sequence[str]) -> int:
    """The index of the first known name; the number of columns if there is none."""
    return next((header.index(name) for name in names if name in header), len(header))


def _names_image(cells: Sequence[str]) -> bool:
    return any(Path(cell.strip()).suffix.lower() in suffixes() | ARRAYS for cell in cells)


def _without_header(rows: list[list[str]], manifest: Path) -> tuple[int, int, list[list[str]]]:
    """The columns of path and label (the number of columns for none), and the rows below."""
    if not rows or _names_image(rows[0]):
        return 0, 1, rows
    header = [cell.strip().lower().replace(" ", "_") for cell in rows[0]]
    place = _column(header, PATH_COLUMNS)
    if place < len(header):
        return place, _column(header, LABEL_COLUMNS), rows[1:]
    if len(rows) > 1 and _names_image(rows[1][:1]):
        raise UsageError(
            f"the manifest '{manifest}' begins with a row that does not name an image: "
            f"{','.join(rows[0])}; call a header's columns path and label"
        )
    return 0, 1, rows


def _csv_rows(text: str, manifest: Path) -> list[tuple[str, str | None]]:
    mark = _delimiter(lines(text), manifest.parent)
    stream = io.StringIO(text, newline="")  # quoted cells may hold line breaks
    reader = csv.reader(stream, strict=True, delimiter=mark, skipinitialspace=True)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UsageError(f"the manifest '{manifest}' is not CSV: {error}") from error
    place, label, rows = _without_header(rows, manifest)
    for number, row in enumerate(rows, start=1):
        if place >= len(row) or not row[place].strip():
            raise UsageError(f"the manifest '{manifest}' has no path in its row {number}")
    return [(row[place].strip(), row[label].strip() if label < len(row) else None) for row in rows]


def _json_rows(text: str, manifest: Path) -> list[tuple[str, str | None]]:
    rows: list[tuple[str, str | None]] = []
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        try:
            entry = from_json(line)
        except ValueError as error:
            raise UsageError(f"the manifest '{manifest}', line {number}: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise UsageError(
                f"the manifest '{manifest}', line {number}: expected an object with path and label"
            )
        rows.append((entry["path"], label_text(entry.get("label"))))
    return rows


def read_manifest(manifest: Path) -> ImageSource:
    """The images that a manifest lists, with paths relative to its folder."""
    try:
        text = read_text(manifest)
    except CnnvizError as error:
        raise UsageError(f"the manifest cannot be used: {error}") from error
    read = _csv_rows if manifest.suffix.lower() == ".csv" else _json_rows
    rows = read(text, manifest)
    if not rows:
        raise UsageError(f"the manifest '{manifest}' lists no image")
    folder = "" if manifest.parent == Path() else str(manifest.parent)
    return labelled((_in_folder(folder, path), label or None) for path, label in rows)


def _in_folder(folder: str, path: str) -> str:
    """A path relative to the manifest's folder; backslashes of Windows become slashes."""
    place = os.path.join(folder, path.removeprefix("./"))  # noqa: PTH118 (a million of them)
    turned = place.replace("\\", "/")
    if turned == place or exists(Path(place)) or not exists(Path(turned)):
        return place
    return turned
