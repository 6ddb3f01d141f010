"""Sources of images: folders, files, manifests, tars, data sets of torchvision and Hugging Face.

`find_source` lists the images that are named on the command line.
"""

import io
import logging
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cnnviz.core.data import tars
from cnnviz.core.data.images import (
    decode_rgb,
    find_images,
    images_below,
    note_left_out,
    read_rgb,
    suffixes,
)
from cnnviz.core.data.rasters import ARRAYS
from cnnviz.core.data.tables import (
    LABEL_COLUMNS,
    MANIFESTS,
    Example,
    ImageSource,
    label_text,
    labelled,
    read_manifest,
)
from cnnviz.core.data.urls import source_at
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import DAMAGE, exists, regular
from cnnviz.core.lazy import torchvision
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.remote import is_url, local_folder

TORCHVISION = {
    "cifar10": "cifar-10-batches-py",
    "mnist": "MNIST/raw",
    "fashionmnist": "FashionMNIST/raw",
}
"""torchvision's data sets, and the folder of each below the root."""
_log = logging.getLogger("cnnviz")
SPLITS = ("test", "train")
HF_DATASET = "hf-dataset:"
HF_OPTIONS = ("split", "image", "label")


def _folder(folder: Path) -> ImageSource:
    """A class for each folder inside; images next to those folders, or in a flat one, have none."""
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
    if folders := [str(path) for path in paths if path.is_dir()]:
        _log.warning(
            "note: files are named together with folders (%s), so the folders are not classes",
            ", ".join(folders[:3]),
        )
    return labelled((image, None) for image in find_images(paths))


def _load_torchvision(name: str, root: Path, split: str) -> Any:
    datasets = torchvision("datasets")
    kind = {
        "cifar10": datasets.CIFAR10,
        "mnist": datasets.MNIST,
        "fashionmnist": datasets.FashionMNIST,
    }[name]
    try:
        # numpy warns for each of CIFAR's files, which are older.
        with warnings.catch_warnings(action="ignore"):
            return kind(str(root), train=split == "train", download=False)
    except (*DAMAGE, AssertionError, AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise CnnvizError(
            f"no complete {name} in '{root}': {TORCHVISION[name]} is missing there "
            f"or damaged; torchvision.datasets.{kind.__name__}('{root}', download=True) fetches it"
        ) from error


def _torchvision(text: str) -> ImageSource:
    name, _, rest = text.partition(":")
    root, _, split = rest.rpartition(":")
    if split not in SPLITS or not root:
        root, split = rest, "test"
    folder = local_folder(root)
    data = _load_torchvision(name, folder, split)
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
        files=tuple(folder.joinpath(TORCHVISION[name]).iterdir()),
        canonical=True,
    )


def _hf_dataset(text: str) -> ImageSource:
    """The images of `hf-dataset:DIR`, or `hf-dataset:DIR,split=test,image=img,label=fine_label`.

    Hugging Face's `save_to_disk` writes such folders. Rows are read from the Arrow files when they
    are opened; only the labels are copied to memory.
    """
    folder, *parts = text.removeprefix(HF_DATASET).split(",")
    chosen = dict.fromkeys(HF_OPTIONS, "") | dict(
        part.split("=", 1) for part in parts if "=" in part
    )
    if len(chosen) > len(HF_OPTIONS) or any("=" not in part for part in parts):
        raise UsageError(f"'{text}': after the folder it takes ,split=… ,image=… and ,label=…")
    library = required("datasets", HF_DATASET + "DIR", "datasets")
    place = local_folder(folder)
    try:
        for file in [*place.rglob("*.arrow"), *place.rglob("*.json")]:
            regular(file)  # the library waits for pipes
        loaded = library.load_from_disk(str(place))
    except (*DAMAGE, AttributeError) as error:
        raise CnnvizError(
            f"'{folder}' is not a data set written by save_to_disk: {one_line(error)}"
        ) from error
    name = folder.rstrip("/")
    if isinstance(loaded, Mapping):
        split = _one(list(loaded), chosen["split"], "split", "splits", text)
        loaded, name = loaded[split], f"{name}/{split}"
    elif chosen["split"]:
        raise UsageError(f"'{text}': the data set has no splits")
    return _hf_source(loaded, name, chosen, text, library, place)


def _hf_source(
    rows: Any, name: str, chosen: Mapping[str, str], text: str, library: Any, place: Path
) -> ImageSource:
    kinds = rows.features
    pictures = [column for column, kind in kinds.items() if isinstance(kind, library.Image)]
    column = _one(pictures, chosen["image"], "image", "columns of images", text)
    rows = rows.cast_column(column, library.Image(decode=False))
    label = chosen["label"] or _label_column(kinds, library, text)
    if label and label not in kinds:
        raise UsageError(f"'{text}': it has no column {label}; it has {', '.join(kinds)}")
    labels = _labels(rows, label, library) if label else [None] * len(rows)
    digits = len(str(max(len(rows) - 1, 0)))
    listed = labelled((f"{name}/{n:0{digits}d}", label) for n, label in enumerate(labels))
    if not listed.examples:
        raise UsageError(f"'{text}' holds no image")
    names = getattr(kinds[label], "names", None) if label else None
    if names:  # also those that no image has
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
    table = _Rows(rows.select_columns([column]), column)
    files = tuple(sorted(place.rglob("*.arrow")))
    return replace(listed, open=table.open, state=table.state, files=files)


@dataclass(frozen=True)
class _Rows:
    """The rows of a data set, and its column of undecoded images."""

    rows: Any
    column: str

    def state(self, example: Example) -> str:
        """The library's digest of the data, and the row."""
        return f"{self.rows._fingerprint} {example.row}"

    def open(self, example: Example, preprocess: Preprocess) -> Image.Image:
        """Decodes a row, which is never a raster."""
        try:
            cell = self.rows[example.row][self.column]
        except DAMAGE as error:
            raise CnnvizError(f"'{example.path}' cannot be read: {one_line(error)}") from error
        if cell is None:
            raise CnnvizError(f"'{example.path}' has no image")
        if cell["bytes"] is not None:
            return decode_rgb(io.BytesIO(cell["bytes"]), example.path, preprocess)
        return read_rgb(cell["path"], preprocess)


def _one(names: Sequence[str], chosen: str, option: str, what: str, text: str) -> str:
    """The chosen name, or the only one."""
    if chosen in names or (not chosen and len(names) == 1):
        return chosen or names[0]
    if not names:
        raise UsageError(f"'{text}' has no {what}")
    raise UsageError(
        f"'{text}' has the {what} {', '.join(names)}; choose with ,{option}={names[0]}"
    )


def _label_column(kinds: Mapping[str, Any], library: Any, text: str) -> str | None:
    """The column of classes, or else one with a usual name."""
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

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(named, value))
        if names is None or value is None:
            return value
        if value >= len(names):
            raise CnnvizError(f"{column} {value} is not one of its {len(names)} classes")
        return names[value] if value >= 0 else None  # -1 means no label

    return [label_text(named(value)) for value in rows.select_columns([column])[:][column]]


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in suffixes() | ARRAYS for path in folder.rglob("*"))


def _tars(sources: Sequence[str]) -> list[Path]:
    """The tar files that the sources name, if they name tar files."""
    if not any(source.endswith(tars.SUFFIX) for source in sources):
        only = Path(sources[0])
        alone = len(sources) == 1 and exists(only) and only.is_dir()
        below = sorted(only.rglob(f"*{tars.SUFFIX}")) if alone else []
        if not below or _has_images(only):
            return []
        files = (path for path in only.rglob("*") if path.is_file() and path not in below)
        note_left_out(only, Counter(path.suffix.lower() for path in files), "next to tar files")
        return below
    if strangers := [source for source in sources if not source.endswith(tars.SUFFIX)]:
        raise UsageError(
            f"tar files can be combined only with tar files, not with '{strangers[0]}'"
        )
    # The first that does not exist ends this: a range can be of any length.
    return [regular(s) for t in sources for s in ([t] if exists(Path(t)) else tars.expand(t))]


def _names_torchvision(source: str) -> bool:
    """Whether it is `cifar10:DIR` or the like, and not a file of that name."""
    name, colon, _ = source.partition(":")
    return bool(colon) and name in TORCHVISION and not Path(source).is_file()


def is_set(source: str) -> bool:
    """Whether a name means a data set, not an image or a folder of images."""
    named = _names_torchvision(source)
    suffix = Path(source).suffix.lower()
    return named or source.startswith(HF_DATASET) or suffix in MANIFESTS | {tars.SUFFIX}


def find_source(sources: Sequence[str]) -> ImageSource:
    """Lists the images that are named on the command line.

    Args:
        sources: one folder (a folder per class in it, flat, or of tar files), one manifest
            (`MANIFESTS`), one `cifar10:DIR[:train]`, `mnist:DIR` or `fashionmnist:DIR`, one
            `hf-dataset:DIR`, tar files (`shards-{000..099}.tar`), or several files or folders;
            each of these, or all, may be URLs.
    """
    if any(map(is_url, sources)):
        return source_at(sources)
    return tars.of_tars(paths) if (paths := _tars(sources)) else _local(sources)


def _local(sources: Sequence[str]) -> ImageSource:
    """One data set, or several files or folders."""
    if len(sources) == 1:
        only = Path(sources[0])
        if _names_torchvision(sources[0]):
            return _torchvision(sources[0])
        if sources[0].startswith(HF_DATASET):
            return _hf_dataset(sources[0])
        if only.is_dir():
            return _folder(only)
        if only.suffix.lower() in MANIFESTS:
            return read_manifest(only)
    return _several([Path(source) for source in sources])
