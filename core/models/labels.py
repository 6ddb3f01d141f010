"""Class names: reading them from a file, and finding the class that a user names.

Comparisons ignore case and treat `_` as a space. ImageNet's usual JSON form, index to (wnid, name),
also gives the WordNet ids.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import CnnvizError, UsageError, nearest
from cnnviz.core.files import from_json, lines, read_text
from cnnviz.core.lazy import torchvision

SHOWN = 5
WNIDS = (
    "WordNet ids of ImageNet's classes are known with pip install 'cnnviz[timm]', or from a "
    "--labels JSON map from index to [wnid, name]"
)
_WNID_FIRST = re.compile(r"n\d{8}(\s|$)")
_ALIKE = 0.8  # share of equal names from which classes are ImageNet's


@dataclass(frozen=True)
class Labels:
    """Class names in the order of the logits, their WordNet ids where given, and the file."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None
    path: Path | None = None


def normalised_name(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return " ".join(name.replace("_", " ").casefold().split())


def is_wnid(text: str) -> bool:
    """Whether it has the form of a WordNet id, as ImageNet's folders are called."""
    return len(text) == 9 and text[0] == "n" and text[1:].isdecimal()


@cache
def imagenet_wnids(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The WordNet ids of ImageNet's 1,000 classes, if these are their names and timm is installed.

    Publishers shorten and separate the names differently, so that not all have to be the same.
    """
    known = torchvision("models").ResNet18_Weights.DEFAULT.meta["categories"]
    if len(names) != len(known):
        return None
    pairs = zip(map(normalised_name, names), map(normalised_name, known), strict=True)
    alike = sum(name in map(str.strip, given.split(",")) for given, name in pairs)
    if alike < _ALIKE * len(known):
        return None
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        return None
    return tuple(timm.data.ImageNetInfo("imagenet-1k").label_names())


def _of_map(content: dict[str, Any], path: Path) -> list[object]:
    """The entries of a map from index to name, from name to index, or of a publisher's config."""
    if isinstance(inner := content.get("id2label"), dict):  # Hugging Face's config.json
        content = inner
    elif isinstance(names := content.get("label_names"), list):  # timm's
        described = content.get("label_descriptions")
        known = described if isinstance(described, dict) else {}
        return [known.get(name, name) if isinstance(name, str) else name for name in names]
    if content and all(type(index) is int for index in content.values()):  # class_to_idx
        inverted = {str(index): name for name, index in content.items()}
        if len(inverted) < len(content):
            raise UsageError(f"the labels map '{path}' gives two names the same index")
        content = inverted
    ordered = {whole_number(key): value for key, value in content.items()}
    if None in ordered:
        wrong = next(key for key in content if whole_number(key) is None)[:40]
        raise UsageError(f"the labels map '{path}' has the key '{wrong}'; keys are class indices")
    gap = next((index for index in range(len(ordered)) if index not in ordered), None)
    if gap is not None or len(ordered) != len(content):
        raise UsageError(f"the labels map '{path}' has no entry for class {gap or 0}")
    return [ordered[index] for index in range(len(ordered))]


def _of_entries(entries: list[object], path: Path) -> Labels:
    if all(isinstance(entry, str) for entry in entries):
        return Labels(tuple(str(entry) for entry in entries))
    pairs = [tuple(entry) for entry in entries if isinstance(entry, list) and len(entry) == 2]
    if len(pairs) == len(entries) and all(isinstance(part, str) for p in pairs for part in p):
        return Labels(tuple(pair[1] for pair in pairs), tuple(pair[0] for pair in pairs))
    raise UsageError(f"the labels in '{path}' are neither names nor pairs of wnid and name")


def read_labels(path: Path) -> Labels:
    """Read names from a .txt file (one per line) or .json (a list, or a map from index to name).

    Lines may begin with a WordNet id; a map may also go from name to index, or be the config.json
    of Hugging Face or timm.
    """
    try:
        text = read_text(path)
    except CnnvizError as error:
        raise UsageError(f"the labels file cannot be used: {error}") from error
    if path.suffix.lower() != ".json":
        names = [line.strip() for line in lines(text.strip("\r\n"))]
        if all(map(_WNID_FIRST.match, names)):  # a wnid a line, and its name, as ImageNet's lists
            pairs = [line.split(None, 1) for line in names]
            return Labels(tuple(p[-1] for p in pairs), tuple(p[0] for p in pairs), path)
        return Labels(tuple(names), path=path)
    try:
        content = from_json(text)
    except ValueError as error:
        raise UsageError(f"the labels file '{path}' is not JSON: {error}") from error
    if isinstance(content, dict):
        content = _of_map(content, path)
    if not isinstance(content, list):
        raise UsageError(f"the labels file '{path}' holds neither a list nor a map")
    return replace(_of_entries(content, path), path=path)


def _matches(sought: str, names: Sequence[str], wnids: Sequence[str] | None) -> Iterator[list[int]]:
    """Matching classes, the strictest comparison first: name, wnid, one of its names, index."""
    folded = [normalised_name(name) for name in names]
    yield [index for index, name in enumerate(folded) if name == sought]
    yield [index for index, wnid in enumerate(wnids or ()) if wnid == sought]
    yield [i for i, name in enumerate(folded) if sought in map(str.strip, name.split(","))]
    yield [index for index in range(len(names)) if str(index) == sought]


def _classes(sought: str, names: Sequence[str], wnids: Sequence[str] | None) -> list[int]:
    """The classes of the strictest comparison that matches any."""
    return next(filter(None, _matches(sought, names, wnids)), []) if sought else []


def find_class(text: str, names: Sequence[str], wnids: Sequence[str] | None = None) -> int | None:
    """Return the only class of that name, wnid or index; None for none or several."""
    classes = _classes(normalised_name(text), names, wnids)
    return classes[0] if len(classes) == 1 else None


def class_index(text: str, names: Sequence[str], wnids: Sequence[str] | None = None) -> int:
    """Return the class of that name, wnid, index or first words of a name; there must be one."""
    sought = normalised_name(text)
    classes = _classes(sought, names, wnids)
    if not classes and sought:
        classes = [
            i for i, name in enumerate(names) if normalised_name(name).startswith(f"{sought} ")
        ]
    if len(classes) == 1:
        return classes[0]
    if classes:
        which = ", ".join(f"{index} ({names[index]})" for index in classes[:SHOWN])
        more = " …" if len(classes) > SHOWN else ""
        raise UsageError(f"'{text}' is the name of several classes: {which}{more}; use the index")
    last = len(names) - 1
    if sought.lstrip("-").isdecimal():
        raise UsageError(f"no class {text}; the model's classes are 0 to {last}")
    within = [name for name in names if sought and sought in normalised_name(name)]
    which = "classes with this in their name are" if within else "the nearest are"
    close = within[:SHOWN] or nearest(text.replace("_", " "), names)
    near = ", ".join(f"'{name}'" for name in close) + " …" * (len(within) > SHOWN)
    raise UsageError(f"no class '{text}'; {which} {near} (or an index from 0 to {last})")
