"""The pictures of a source as a list: what each is called, what it shows, how it is opened."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cnnviz.core.choices import whole_number
from cnnviz.core.data.images import read_picture
from cnnviz.core.data.rasters import Raster
from cnnviz.core.models.preprocess import Preprocess

UNKNOWN = -1
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")


@dataclass(frozen=True, slots=True)
class Example:
    """One picture.

    Attributes:
        path: the file, or its place in a data set; for display too.
        label: position in the data's classes; None where the picture has none.
        row: its place in the source, before any sampling.
    """

    path: str
    label: int | None
    row: int


def _open_file(example: Example, preprocess: Preprocess) -> Image.Image | Raster:
    return read_picture(example.path, preprocess)


def _of_file(example: Example) -> str:
    try:
        stat = Path(example.path).stat()
    except (OSError, ValueError):
        return "-"
    return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class ImageSource:
    """All pictures of a source.

    Attributes:
        examples: in stable order.
        classes: names that labels point at; None where nothing is labelled.
        open: decodes a picture for a network's preprocessing, or raises CnnvizError.
        state: something that is another when the picture has changed.
        files: the files that the pictures lie in, where they are none of their own.
        canonical: whether the order of the classes is the data set's own, which models trained on
            it share.
        folders: whether the classes are the names of folders.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None
    open: Callable[[Example, Preprocess], Image.Image | Raster] = _open_file
    state: Callable[[Example], str] = _of_file
    files: tuple[Path, ...] = ()
    canonical: bool = False
    folders: bool = False


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sorts names as text, unless all are numbers: then 2 comes before 10."""
    number = whole_number(name)
    return (number is None, number or 0, name)


def labelled(rows: Iterable[tuple[str | Path, str | None]]) -> ImageSource:
    """Pictures with the names of their classes, None where unknown."""
    listed = list(rows)
    names = tuple(sorted({name for _, name in listed if name is not None}, key=_by_number))
    position = {name: index for index, name in enumerate(names)}
    examples = (
        Example(str(path), None if name is None else position[name], row)
        for row, (path, name) in enumerate(listed)
    )
    return ImageSource(tuple(examples), names or None)


def said_label(label: object) -> str | None:
    """A label of a manifest or data set as text; several classes or values with a mark between."""
    if isinstance(label, list):  # of none, the mark alone
        return "|".join(map(str, label)) or "|"
    return None if label is None else str(label).strip()
