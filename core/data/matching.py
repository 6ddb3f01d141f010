"""Which of a model's classes a data set's classes are."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import UsageError
from cnnviz.core.models.labels import find_class

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

SHOWN = 8
IMAGENET_CLASSES = 1000
_log = logging.getLogger("cnnviz")


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _is_wnid(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdecimal()


def _by_position(data: ImageData, model: "Model") -> bool:
    """Whether the data's classes are the model's, one for one, by convention rather than name."""
    classes = data.classes or ()
    if len(classes) != model.classes:
        return False
    unnamed = model.labels == tuple(map(str, range(model.classes)))
    all_wnids = len(classes) == IMAGENET_CLASSES and all(map(_is_wnid, classes))
    return (data.canonical and unnamed) or all_wnids


def _tell_order(data: ImageData, model: "Model", matched: Sequence[int]) -> None:
    """A line where ImageFolder, which sorts numbers as text, would have other classes."""
    numbers = tuple(map(str, range(model.classes)))
    if not data.folders or model.labels != numbers:
        return
    place = {name: index for index, name in enumerate(sorted(numbers))}
    pairs = zip(data.classes or (), matched, strict=True)
    if any(place.get(name, index) != index for name, index in pairs):
        _log.warning(
            "note: the folders of %r are numbers and were taken as class indices; torchvision's "
            "ImageFolder orders them as text (0, 1, 10, 11, ...): for a network trained so, give "
            "--labels a file with a folder's name a line in that order",
            data.name,
        )


def match_labels(data: ImageData, model: "Model") -> tuple[int, ...]:
    """The model's class for each class of the data: by name, wnid or index.

    Two conventions hold where names cannot: all 1,000 wnids of ImageNet in sorted order are
    ImageNet's classes, and a torchvision data set has its own order.

    Returns:
        One class index for each of `data.classes`; empty where nothing is labelled.

    Raises:
        UsageError: a class cannot be matched; both sides are listed.
    """
    classes = data.classes or ()
    if _by_position(data, model):
        return tuple(range(len(classes)))
    found = [find_class(name, model.labels, model.wnids) for name in classes]
    lost = [name for name, index in zip(classes, found, strict=True) if index is None]
    if not lost:
        matched = tuple(index for index in found if index is not None)
        _tell_order(data, model, matched)
        return matched
    remedy = "name the model's classes with --labels"
    if all(map(_is_wnid, lost)):
        remedy += " (a JSON map from index to [wnid, name] gives the wnids)"
    raise UsageError(
        f"{len(lost)} of the {len(classes)} classes of {data.name} are none of {model.name}'s: "
        f"{_shown(lost)}; the model's are {_shown(model.labels)}; {remedy}"
    )
