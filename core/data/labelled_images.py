"""A labelled data set as ablation needs it: the same images again and again, in batches.

Every image must have a label, and every label must be a class of the model's; that is checked at
the door. Images that cannot be read are noted once and left out of every pass alike.
Shapes: N images of a batch, H W rows and columns.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cnnviz.core.data.datasets import ImageData, batches, none_usable
from cnnviz.core.data.matching import match_labels
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Kind

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

SEPARATOR = "|"
"""Between the classes, or the values, of one image in a manifest; alone it says: none of them."""

Progress = Callable[[int], None]
"""Told how many images have just been gone through."""


def check_labels(data: ImageData, model: "Model") -> Tensor:
    """What is true of the images of each class of the data, in the model's words.

    Returns:
        (D,) int64, the model's class; (D, K) float32 where classes stand on their own (1 for those
        in a label `cat|dog`, else 0) or of a regression (the values in `0.5|2`).

    Raises:
        UsageError: an image has no label, or a label is nothing of the model's.
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


def _several(label: str, model: "Model") -> Tensor:
    truth_K = torch.zeros(model.classes)
    truth_K[[model.class_index(part) for part in _parts(label)]] = 1
    return truth_K


def _values(label: str, model: "Model") -> Tensor:
    try:
        found = [float(part) for part in _parts(label)]
    except ValueError:
        found = []
    if len(found) != model.classes or not all(map(math.isfinite, found)):
        form = SEPARATOR.join(["1.5"] * model.classes)
        raise UsageError(
            f"the label '{label}' is no value of {model.name}, which gives {model.classes}: a "
            f"manifest has {'it' if model.classes == 1 else 'them'} as {form}"
        )
    return torch.tensor(found)


@dataclass
class LabelledImages:
    """The labelled images of a data set, to be gone through any number of times.

    Attributes:
        data: all images.
        model: whose preprocessing and classes they get.
        classes: what is true of each class of the data (`check_labels`).
        progress: told of every image, in every pass.
        errors: place in the data to message, of the images that cannot be read.
    """

    data: ImageData
    model: "Model"
    classes: Tensor
    progress: Progress
    errors: dict[int, str] = field(default_factory=dict)

    def first(self, count: int) -> Tensor:
        """The first images that can be read, (N, 3, H, W) with N at most `count`.

        Raises:
            CnnvizError: there is none.
        """
        with closing(self._batches(count)) as found:
            for _indices, images, _labels in found:
                return images
        examples = self.data.examples
        raise none_usable(self.data, [(examples[i].path, text) for i, text in self.errors.items()])

    def images(self, size: int) -> Iterator[Tensor]:
        """All images in batches, without what is known of them."""
        for _indices, images, _labels in self.all(size):
            yield images

    def all(self, size: int, start: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All images in batches: places in the data, pixels, what is true of them.

        Args:
            size: of a batch.
            start: leave out those before this place.
        """
        part = self.data.part
        told = start = part.start if start is None else start
        for indices, images, labels in self._batches(size, start):
            yield indices, images, labels
            done = int(indices[-1]) + 1
            self.progress(done - told)
            told = done
        self.progress(part.stop - told)

    def _batches(
        self, size: int, start: int = 0
    ) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        note = self.errors.__setitem__
        found = batches(self.data, self.model.preprocess, size, on_error=note, start=start)
        for batch in found:
            yield batch.indices, batch.images, self.classes[batch.labels]
