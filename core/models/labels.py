"""Class names: reading them from a file, finding the classes that a user asks about.

Names compare with case, `_` and spaces put aside. ImageNet's customary JSON form, index to
(wnid, name), also gives the WordNet ids.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import CnnvizError, UsageError, nearest
from cnnviz.core.files import from_json, lines, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from cnnviz.core.models.heads import Head

SHOWN = 5


@dataclass(frozen=True)
class Labels:
    """Class names in the order of the logits, their WordNet ids where given, and the file."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None
    path: Path | None = None


def normalised_name(name: str) -> str:
    """The form in which names are compared."""
    return " ".join(name.replace("_", " ").casefold().split())


def _of_map(content: dict[str, object], path: Path) -> list[object]:
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
    """Names from a .txt file (one a line) or .json (a list, or a map from index to name).

    Raises:
        UsageError: the file is missing, not UTF-8, not JSON, or of another form.
    """
    try:
        text = read_text(path)
    except CnnvizError as error:
        raise UsageError(f"the labels file cannot be used: {error}") from error
    if path.suffix.lower() != ".json":
        return Labels(tuple(line.strip() for line in lines(text.strip("\r\n"))), path=path)
    try:
        content = from_json(text)
    except ValueError as error:
        raise UsageError(f"the labels file '{path}' is not JSON: {error}") from error
    if isinstance(content, dict):
        content = _of_map(content, path)
    if not isinstance(content, list):
        raise UsageError(f"the labels file '{path}' holds neither a list nor a map")
    return replace(_of_entries(content, path), path=path)


def _readings(
    wanted: str, names: Sequence[str], wnids: Sequence[str] | None
) -> Iterator[list[int]]:
    """Classes by stricter readings first: whole name, wnid, one of its names, index."""
    folded = [normalised_name(name) for name in names]
    yield [index for index, name in enumerate(folded) if name == wanted]
    yield [index for index, wnid in enumerate(wnids or ()) if wnid == wanted]
    yield [i for i, name in enumerate(folded) if wanted in map(str.strip, name.split(","))]
    yield [index for index in range(len(names)) if str(index) == wanted]


def _classes(wanted: str, names: Sequence[str], wnids: Sequence[str] | None) -> list[int]:
    """All classes that the strictest reading with any result finds."""
    return next(filter(None, _readings(wanted, names, wnids)), []) if wanted else []


def find_class(text: str, names: Sequence[str], wnids: Sequence[str] | None = None) -> int | None:
    """The one class that goes by that name, wnid or index; None if none or several do."""
    found = _classes(normalised_name(text), names, wnids)
    return found[0] if len(found) == 1 else None


def class_index(text: str, names: Sequence[str], wnids: Sequence[str] | None = None) -> int:
    """The class that goes by that name, wnid, index, or first words of a name.

    Raises:
        UsageError: no class does, or several do.
    """
    wanted = normalised_name(text)
    found = _classes(wanted, names, wnids)
    if not found and wanted:
        found = [
            i for i, name in enumerate(names) if normalised_name(name).startswith(f"{wanted} ")
        ]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{index} ({names[index]})" for index in found[:SHOWN])
        more = " …" if len(found) > SHOWN else ""
        raise UsageError(f"'{text}' is the name of several classes: {which}{more}; use the index")
    last = len(names) - 1
    if wanted.lstrip("-").isdecimal():
        raise UsageError(f"no class {text}; the model's classes are 0 to {last}")
    near = ", ".join(f"'{name}'" for name in nearest(text.replace("_", " "), names))
    raise UsageError(f"no class '{text}'; the nearest are {near} (or an index from 0 to {last})")


def _values(target: str, labels: Sequence[str]) -> list[int]:
    if target != "predicted" or len(labels) > SHOWN:
        raise UsageError(
            f"'{target}': a regression ranks nothing; --target takes a value's name or an index "
            f"from 0 to {len(labels) - 1}"
        )
    return list(range(len(labels)))


def resolve_targets(
    targets: Sequence[str], base_logits_K: "Tensor", labels: Sequence[str], head: "Head"
) -> tuple[int, ...]:
    """Class indices in the order asked for, each once.

    Args:
        targets: `predicted`, `topK` (the K most probable), class names or indices.
        base_logits_K: scores of the untouched image.
        labels: class names.
        head: of a regression, `predicted` is every value, where there are few.

    Raises:
        UsageError: no such class, K is not between 1 and the number of classes, or a regression is
            asked for its most probable ones.
    """
    ranked = base_logits_K.argsort(descending=True, stable=True).tolist()
    found: list[int] = []
    for target in targets:
        top = re.fullmatch(r"top(\d+)", target)
        if not head.has_classes and (target == "predicted" or top):
            found += _values(target, labels)
        elif target == "predicted":
            found.append(ranked[0])
        elif top:
            count = int(top[1])
            if not 1 <= count <= len(labels):
                raise UsageError(f"'{target}' asks for {count} of {len(labels)} classes")
            found += ranked[:count]
        else:
            found.append(class_index(target, labels))
    return tuple(dict.fromkeys(found))
