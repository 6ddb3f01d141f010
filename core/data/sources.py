"""Where pictures with labels come from: folders, files, manifests, tars, libraries' data sets.

A source is listed, never loaded: what comes out is the name and the label of every picture, in an
order that depends on the names alone. Labels are positions in the source's own list of classes,
or -1 where a picture has none.
"""

import csv
import io
import os
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnviz.core.data import from_datasets, tars
from cnnviz.core.data.examples import (
    LABEL_COLUMNS,
    Example,
    ImageSource,
    labelled,
    said_label,
)
from cnnviz.core.data.images import find_images, images_below, suffixes
from cnnviz.core.data.rasters import ARRAYS
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import DAMAGE, exists, from_json, lines, read_text

MANIFESTS = frozenset({".csv", ".jsonl"})
TORCHVISION = {
    "cifar10": "cifar-10-batches-py",
    "mnist": "MNIST/raw",
    "fashionmnist": "FashionMNIST/raw",
}
"""Their data sets, and where in the root folder each lies."""
SPLITS = ("test", "train")
PATH_COLUMNS = (
    *("path", "filename", "file_name", "filepath", "file_path", "file"),
    *("image", "image_path", "image_name", "img", "img_path"),
)


def _folder(folder: Path) -> ImageSource:
    """One class per folder in it; pictures beside those folders, or in a flat one, have none."""
    images = images_below(folder)
    if not images:
        raise UsageError(f"the folder '{folder}' holds no image")
    parts = [path.relative_to(folder).parts for path in images]
    pairs = ((p, q[0] if len(q) > 1 else None) for p, q in zip(images, parts, strict=True))
    return replace(labelled(pairs), folders=True)


def _several(paths: Sequence[Path]) -> ImageSource:
    """Several folders are a class each; files, or files and folders, have no labels."""
    if all(path.is_dir() for path in paths):
        return labelled(
            (image, folder.resolve().name)
            for folder in sorted(paths, key=lambda path: path.resolve().name)
            for image in find_images([folder])
        )
    return labelled((image, None) for image in find_images(paths))


def _delimiter(found: Sequence[str], folder: Path) -> str:
    """The comma, semicolon or tab that the first line has most of."""
    first = next((line for line in found if line.strip()), "")
    return "," if exists(folder / first.strip()) else max(",;\t", key=first.count)


def _column(header: Sequence[str], names: Sequence[str]) -> int:
    """Where the first known name stands; behind the last column if there is none."""
    return next((header.index(name) for name in names if name in header), len(header))


def _names_picture(cells: Sequence[str]) -> bool:
    return any(Path(cell.strip()).suffix.lower() in suffixes() | ARRAYS for cell in cells)


def _without_header(rows: list[list[str]], manifest: Path) -> tuple[int, int, list[list[str]]]:
    """The columns of path and label (behind the last one where there is none), and what follows."""
    if not rows or _names_picture(rows[0]):
        return 0, 1, rows
    header = [cell.strip().lower().replace(" ", "_") for cell in rows[0]]
    place = _column(header, PATH_COLUMNS)
    if place < len(header):
        return place, _column(header, LABEL_COLUMNS), rows[1:]
    if len(rows) > 1 and _names_picture(rows[1][:1]):
        raise UsageError(
            f"the manifest '{manifest}' begins with a row that names no picture: "
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
                f"the manifest '{manifest}', line {number}: it takes an object with path and label"
            )
        rows.append((entry["path"], said_label(entry.get("label"))))
    return rows


def _manifest(manifest: Path) -> ImageSource:
    try:
        text = read_text(manifest)
    except CnnvizError as error:
        raise UsageError(f"the manifest cannot be used: {error}") from error
    read = _csv_rows if manifest.suffix.lower() == ".csv" else _json_rows
    rows = read(text, manifest)
    if not rows:
        raise UsageError(f"the manifest '{manifest}' lists no image")
    folder = "" if manifest.parent == Path() else str(manifest.parent)
    return labelled((_beside(folder, path), label or None) for path, label in rows)


def _beside(folder: str, path: str) -> str:
    """A path relative to the manifest's folder; one written on Windows has its slashes turned."""
    place = os.path.join(folder, path.removeprefix("./"))  # noqa: PTH118 (a million of them)
    turned = place.replace("\\", "/")
    if turned == place or exists(Path(place)) or not exists(Path(turned)):
        return place
    return turned


def _load_torchvision(name: str, root: Path, split: str) -> Any:
    from torchvision import datasets

    kind = {
        "cifar10": datasets.CIFAR10,
        "mnist": datasets.MNIST,
        "fashionmnist": datasets.FashionMNIST,
    }[name]
    try:
        # CIFAR's files are older than today's numpy, which says so once for each of them.
        with warnings.catch_warnings(action="ignore"):
            return kind(str(root), train=split == "train", download=False)
    except (*DAMAGE, AssertionError, AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise CnnvizError(
            f"no whole {name} in '{root}': {TORCHVISION[name]} is missing there "
            f"or damaged; torchvision.datasets.{kind.__name__}('{root}', download=True) fetches it"
        ) from error


def _torchvision(text: str) -> ImageSource:
    name, _, rest = text.partition(":")
    root, _, split = rest.rpartition(":")
    if split not in SPLITS or not root:
        root, split = rest, "test"
    data = _load_torchvision(name, Path(root).expanduser(), split)
    arrays, targets = np.asarray(data.data), [int(label) for label in data.targets]
    classes = tuple(map(str, range(10))) if name == "mnist" else tuple(data.classes)
    if len(arrays) != len(targets):
        raise CnnvizError(
            f"'{root}' has {len(arrays)} {split} pictures of {name} and {len(targets)} labels"
        )
    if strange := sorted(set(targets) - set(range(len(classes)))):
        raise CnnvizError(
            f"'{root}' has the label {strange[0]}; {name} has the classes 0 to {len(classes) - 1}"
        )
    examples = tuple(
        Example(f"{name}:{split}/{row:05d}", label, row) for row, label in enumerate(targets)
    )
    return ImageSource(
        examples,
        classes,
        lambda e, _preprocess: Image.fromarray(arrays[e.row]).convert("RGB"),
        files=tuple(Path(root).expanduser().joinpath(TORCHVISION[name]).iterdir()),
        canonical=True,
    )


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in suffixes() | ARRAYS for path in folder.rglob("*"))


def _tars(sources: Sequence[str]) -> list[Path]:
    """The tar files that are meant, if they are."""
    if not any(source.endswith(tars.SUFFIX) for source in sources):
        only = Path(sources[0])
        alone = len(sources) == 1 and exists(only) and only.is_dir()
        below = sorted(only.glob(f"*{tars.SUFFIX}")) if alone else []
        return below if below and not _has_pictures(only) else []
    if strangers := [source for source in sources if not source.endswith(tars.SUFFIX)]:
        raise UsageError(f"tar files go together with tar files alone, not with '{strangers[0]}'")
    return [Path(s) for t in sources for s in ([t] if exists(Path(t)) else tars.expand(t))]


def is_set(source: str) -> bool:
    """Whether a name stands for a data set, not for a picture or a folder of pictures."""
    named = source.partition(":")[0] in TORCHVISION and ":" in source
    suffix = Path(source).suffix.lower()
    return named or source.startswith(from_datasets.PREFIX) or suffix in MANIFESTS | {tars.SUFFIX}


def find_source(sources: Sequence[str]) -> ImageSource:
    """The pictures that some names on the command line stand for.

    Args:
        sources: one folder (a folder per class in it, flat, or of tar files), one manifest (.csv,
            .jsonl), one `cifar10:DIR[:train]`, `mnist:DIR` or `fashionmnist:DIR`, one
            `hf-dataset:DIR`, tar files (`shards-{000..099}.tar`), or several files or folders.

    Raises:
        UsageError: something does not exist, holds no picture, or is malformed.
        CnnvizError: a data set is not there, or is damaged.
    """
    if found := _tars(sources):
        return tars.of_tars(found)
    if len(sources) == 1:
        only = Path(sources[0])
        if sources[0].partition(":")[0] in TORCHVISION and ":" in sources[0]:
            return _torchvision(sources[0])
        if sources[0].startswith(from_datasets.PREFIX):
            return from_datasets.of_dataset(sources[0])
        if only.is_dir():
            return _folder(only)
        if only.suffix.lower() in MANIFESTS:
            return _manifest(only)
    return _several([Path(source) for source in sources])
