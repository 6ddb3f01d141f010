"""Hugging Face data sets on disk, as `save_to_disk` writes them: `hf-dataset:DIR`."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cnnviz.core.data.examples import LABEL_COLUMNS, Example, ImageSource, labelled, said_label
from cnnviz.core.data.images import decode_rgb, read_rgb
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import DAMAGE
from cnnviz.core.models.preprocess import Preprocess

PREFIX = "hf-dataset:"
ASKED = ("split", "image", "label")


def of_dataset(text: str) -> ImageSource:
    """The pictures of `hf-dataset:DIR`, or `hf-dataset:DIR,split=test,image=img,label=fine_label`.

    Rows are read where they lie, in the Arrow files; nothing is copied to memory but the labels.

    Raises:
        UsageError: the package `datasets` is not installed; there are several splits, or columns of
            pictures or of classes, and none is chosen; or what is chosen is not there.
        CnnvizError: the folder holds no such data set.
    """
    folder, *parts = text.removeprefix(PREFIX).split(",")
    asked = dict.fromkeys(ASKED, "") | dict(part.split("=", 1) for part in parts if "=" in part)
    if len(asked) > len(ASKED) or any("=" not in part for part in parts):
        raise UsageError(f"'{text}': behind the folder it takes ,split=… ,image=… and ,label=…")
    library = required("datasets", PREFIX + "DIR", "datasets")
    place = Path(folder).expanduser()
    try:
        loaded = library.load_from_disk(str(place))
    except DAMAGE as error:
        raise CnnvizError(
            f"'{folder}' holds no data set that save_to_disk wrote: {one_line(error)}"
        ) from error
    name = folder.rstrip("/")
    if isinstance(loaded, Mapping):
        split = _one(list(loaded), asked["split"], "split", "splits", text)
        loaded, name = loaded[split], f"{name}/{split}"
    elif asked["split"]:
        raise UsageError(f"'{text}': the data set has no splits")
    return _source(loaded, name, asked, text, library, place)


def _source(
    rows: Any, name: str, asked: Mapping[str, str], text: str, library: Any, place: Path
) -> ImageSource:
    kinds = rows.features
    pictures = [column for column, kind in kinds.items() if isinstance(kind, library.Image)]
    column = _one(pictures, asked["image"], "image", "columns of pictures", text)
    rows = rows.cast_column(column, library.Image(decode=False))
    label = asked["label"] or _label_column(kinds, library, text)
    if label and label not in kinds:
        raise UsageError(f"'{text}': it has no column {label}; it has {', '.join(kinds)}")
    labels = _labels(rows, label, library) if label else [None] * len(rows)
    digits = len(str(max(len(rows) - 1, 0)))
    listed = labelled((f"{name}/{n:0{digits}d}", said) for n, said in enumerate(labels))
    if not listed.examples:
        raise UsageError(f"'{text}' holds no image")
    names = getattr(kinds[label], "names", None) if label else None
    if names:  # also those that no picture has
        moved = [names.index(known) for known in listed.classes or ()]
        listed = replace(
            listed,
            classes=tuple(names),
            canonical=True,
            examples=tuple(
                replace(e, label=None if e.label is None else moved[e.label])
                for e in listed.examples
            ),
        )
    found = _Rows(rows.select_columns([column]), column)
    files = tuple(sorted(place.rglob("*.arrow")))
    return replace(listed, open=found.open, state=found.state, files=files)


@dataclass(frozen=True)
class _Rows:
    """The rows of a data set, and the column that holds its pictures, undecoded."""

    rows: Any
    column: str

    def state(self, example: Example) -> str:
        """The library's own digest of the data, and the row."""
        return f"{self.rows._fingerprint} {example.row}"

    def open(self, example: Example, preprocess: Preprocess) -> Image.Image:
        """Decodes one row."""
        del preprocess  # of pictures only
        try:
            cell = self.rows[example.row][self.column]
        except DAMAGE as error:
            raise CnnvizError(f"'{example.path}' cannot be read: {one_line(error)}") from error
        if cell is None:
            raise CnnvizError(f"'{example.path}' holds no picture")
        if cell["bytes"] is not None:
            return decode_rgb(io.BytesIO(cell["bytes"]), example.path)
        return read_rgb(cell["path"])


def _one(found: Sequence[str], chosen: str, option: str, what: str, text: str) -> str:
    """The chosen one, or the only one there is."""
    if chosen in found or (not chosen and len(found) == 1):
        return chosen or found[0]
    if not found:
        raise UsageError(f"'{text}' has no {what}")
    raise UsageError(
        f"'{text}' has the {what} {', '.join(found)}; choose with ,{option}={found[0]}"
    )


def _label_column(kinds: Mapping[str, Any], library: Any, text: str) -> str | None:
    """The column of classes, else one of the usual names."""
    classes = [
        column
        for column, kind in kinds.items()
        if isinstance(getattr(kind, "feature", kind), library.ClassLabel)
    ]
    usual = [column for column in LABEL_COLUMNS if column in kinds]
    if len(classes) > 1 and not set(usual) & set(classes):
        return _one(classes, "", "label", "columns of classes", text)
    return next((column for column in usual if not classes or column in classes), None) or next(
        iter(classes), None
    )


def _labels(rows: Any, column: str, library: Any) -> list[str | None]:
    kind = rows.features[column]
    kind = getattr(kind, "feature", kind)
    names = kind.names if isinstance(kind, library.ClassLabel) else None

    def said(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(said, value))
        if names is None or value is None:
            return value
        return names[value] if value >= 0 else None  # -1 stands for none

    return [said_label(said(value)) for value in rows.select_columns([column])[:][column]]
