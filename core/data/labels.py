"""The labels of a data set in the model's terms, and labelled images in batches.

Every image must have a label, and every label must be a class of the model; that is checked first.
Images that cannot be read are noted once and left out of every pass.
Shapes: N images of a batch, H W rows and columns, K classes, D classes of the data.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cnnviz.core.data.datasets import ImageData, batches, none_usable
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Kind
from cnnviz.core.models.labels import WNIDS, find_class, imagenet_wnids, is_wnid
from cnnviz.core.models.load import Model

SHOWN = 8
IMAGENET_CLASSES = 1000
SEPARATOR = "|"
"""Separates the classes, or values, of one image in a manifest; alone it means none of them."""
_log = logging.getLogger("cnnviz")

Progress = Callable[[int], None]
"""Takes the number of images just processed."""


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _by_position(data: ImageData, model: Model) -> bool:
    """Whether the data's classes are the model's in the same order, by convention, not by name."""
    classes = data.classes or ()
    if len(classes) != model.classes:
        return False
    unnamed = model.labels == tuple(map(str, range(model.classes)))
    all_wnids = len(classes) == IMAGENET_CLASSES and all(map(is_wnid, classes))
    return (data.canonical and unnamed) or all_wnids


def _warn_of_order(data: ImageData, model: Model, matched: Sequence[int]) -> None:
    """Warns if ImageFolder, which sorts numbers as text, would assign other classes."""
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


def match_labels(data: ImageData, model: Model) -> tuple[int, ...]:
    """Finds the model's class for each class of the data: by name, wnid or index.

    Two conventions apply without names: all 1,000 wnids of ImageNet in sorted order are ImageNet's
    classes, and a torchvision data set has an official order.

    Returns:
        One class index for each of `data.classes`; empty if nothing is labelled.
    """
    classes = data.classes or ()
    if _by_position(data, model):
        return tuple(range(len(classes)))
    wnids = model.wnids
    if wnids is None and any(map(is_wnid, classes)):
        wnids = imagenet_wnids(model.labels)
    indices = [find_class(name, model.labels, wnids) for name in classes]
    lost = [name for name, index in zip(classes, indices, strict=True) if index is None]
    if not lost:
        matched = tuple(index for index in indices if index is not None)
        _warn_of_order(data, model, matched)
        return matched
    remedy = "name the model's classes with --labels"
    if all(map(is_wnid, lost)):
        remedy += f" ({WNIDS})"
    raise UsageError(
        f"{len(lost)} of the {len(classes)} classes of {data.name} are not classes of "
        f"{model.name}: {_shown(lost)}; the model's are {_shown(model.labels)}; {remedy}"
    )


def with_class_names(data: ImageData, model: Model) -> ImageData:
    """The data set with the model's names instead of its WordNet ids or indices, if they match.

    Indices are taken for the model's classes if the data has more than half as many: a few numbers
    can be other classes (digits).
    """
    codes = data.classes or ()
    numbers = all(map(str.isdecimal, codes)) and 2 * len(codes) > model.classes
    if not codes or not model.classes or not (numbers or all(map(is_wnid, codes))):
        return data
    try:
        names = [model.labels[index] for index in match_labels(data, model)]
    except UsageError:
        return data
    count = Counter(names)
    pairs = zip(names, codes, strict=True)
    return data.named(tuple(n if count[n] == 1 else f"{n} ({code})" for n, code in pairs))


def check_labels(data: ImageData, model: Model) -> Tensor:
    """The truth about the images of each class of the data, in the model's terms.

    Returns:
        (D,) int64, the model's class; (D, K) float32 for independent classes (1 for those in a
        label `cat|dog`, else 0) and for a regression (the values in `0.5|2`).
    """
    missing = sum(example.label is None for example in data.examples)
    if missing:
        raise UsageError(
            f"{missing} of the {len(data)} images of {data.name} have no label, and accuracy needs "
            "one each; give a folder with one folder per class, a CSV with the columns path,label, "
            "or a torchvision data set (cifar10:DIR)"
        )
    if model.head.kind is Kind.SOFTMAX:
        return torch.tensor(match_labels(data, model), dtype=torch.int64)
    read = _several if model.head.kind is Kind.SIGMOID else _values
    return torch.stack([read(label, model) for label in data.classes or ()])


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split(SEPARATOR) if part.strip()]


def _several(label: str, model: Model) -> Tensor:
    truth_K = torch.zeros(model.classes)
    truth_K[[model.class_index(part) for part in _parts(label)]] = 1
    return truth_K


def _values(label: str, model: Model) -> Tensor:
    try:
        values = [float(part) for part in _parts(label)]
    except ValueError:
        values = []
    if len(values) != model.classes or not all(map(math.isfinite, values)):
        form = SEPARATOR.join(["1.5"] * model.classes)
        raise UsageError(
            f"invalid label '{label}': {model.name} has {model.classes} values, which a manifest "
            f"gives as {form}"
        )
    return torch.tensor(values)


@dataclass
class LabelledImages:
    """The labelled images of a data set, for any number of passes.

    Attributes:
        data: all images.
        model: its preprocessing and classes are used.
        classes: the truth of each class of the data (`check_labels`).
        progress: called for every image, in every pass.
        errors: index and message of each image that cannot be read.
    """

    data: ImageData
    model: Model
    classes: Tensor
    progress: Progress
    errors: dict[int, str] = field(default_factory=dict)

    def first(self, count: int) -> Tensor:
        """The first images that can be read, (N, 3, H, W) with N at most `count`."""
        with closing(self._batches(count)) as stream:
            for _indices, images, _labels in stream:
                return images
        examples = self.data.examples
        raise none_usable(self.data, [(examples[i].path, text) for i, text in self.errors.items()])

    def images(self, size: int) -> Iterator[Tensor]:
        """All images in batches, without labels."""
        for _indices, images, _labels in self.all(size):
            yield images

    def all(self, size: int, start: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All images from index `start` on, in batches: indices, pixels, truth."""
        part = self.data.part
        reported = start = part.start if start is None else start
        for indices, images, labels in self._batches(size, start):
            yield indices, images, labels
            done = int(indices[-1]) + 1
            self.progress(done - reported)
            reported = done
        self.progress(part.stop - reported)

    def _batches(
        self, size: int, start: int = 0
    ) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        note = self.errors.__setitem__
        stream = batches(self.data, self.model.preprocess, size, on_error=note, start=start)
        for batch in stream:
            yield batch.indices, batch.images, self.classes[batch.labels]
