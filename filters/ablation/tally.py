"""Counts the answers of many ablated networks batch by batch.

For every ablation only sums per class are kept, on the device: memory does not grow with the data.
For the first few ablations (the original network, and the ablation of `--filters`) every answer is
recorded as well. Shapes: N images, G ablations of a group, V in all, M images in all, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.device import send
from cnnviz.core.models.heads import Head
from cnnviz.core.output.journal import Progress
from cnnviz.filters.ablation.evaluation import Predictions


@dataclass(frozen=True)
class Counts:
    """Counts of V ablations on M images; ablation 0 is the original network."""

    images: NDArray[np.int64]  # (K,) images of each class
    correct: NDArray[np.int64]  # (V, K) images of each class that are right
    lost: NDArray[np.int64]  # (V,) images that are right with ablation 0 and wrong with this one
    gained: NDArray[np.int64]  # (V,) images that are wrong with ablation 0 and right with this one
    # (V, K) float64, sum over a class's images of the class's probability
    probability: NDArray[np.float64]
    labels: NDArray[np.int64]  # (M,) in order of the data
    predictions: tuple[Predictions, ...]  # every answer of the first ablations

    @property
    def mean_V(self) -> NDArray[np.float64]:  # noqa: N802 (a shape)
        """The accuracy, by ablation."""
        return np.asarray(self.correct.sum(axis=1) / self.images.sum())

    @property
    def pair(self) -> tuple[Predictions, Predictions] | None:
        """The answers before and after; None if no filters were switched off together."""
        if len(self.predictions) < 2:
            return None
        return self.predictions[0], self.predictions[1]


INDICES = "indices"
SUMS = ("correct", "probability", "lost", "gained")
"""Arrays of the journal that add up over blocks of images."""
AXES = {INDICES: 0, "labels": 0, "truth": 0, "answers": 1}
"""The axis of images, of arrays that have one."""
FINEST = 2.0**32
"""Probabilities are rounded to multiples of 1 over this: sums then do not depend on the order."""


class Tally:
    """Counts logits part by part; each part of a batch must begin with ablation 0.

    Every answer of the first `recorded` ablations is kept. `head` interprets the logits, which are
    on `device`.
    """

    def __init__(
        self, ablations: int, classes: int, recorded: int, device: torch.device, head: Head
    ) -> None:
        self._head = head
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._correct = torch.zeros(ablations, classes, dtype=torch.int64, device=device)
        self._probability = torch.zeros(ablations, classes, dtype=exact, device=device)
        self._lost = torch.zeros(ablations, dtype=torch.int64, device=device)
        self._gained = torch.zeros(ablations, dtype=torch.int64, device=device)
        self._recorded = recorded
        self._device = device
        self._labels = [torch.zeros(0, dtype=torch.int64, device=device)]
        self._answers = [torch.zeros(recorded, 0, 4, dtype=exact, device=device)]
        self._was = torch.zeros(0, dtype=torch.bool, device=device)

    def start(self, labels: Tensor) -> None:
        """Starts a batch with its labels (N,), the model's class indices."""
        self._labels.append(send(labels, self._device))
        self._was = torch.zeros(len(labels), dtype=torch.bool, device=self._device)
        exact = self._probability.dtype
        shape = (self._recorded, len(labels), 4)
        self._answers.append(torch.zeros(shape, dtype=exact, device=self._device))

    def add(self, images: slice, ablations: slice, logits: Tensor) -> None:
        """Counts logits (N, G, K) of some of the batch's images and some ablations."""
        labels = self._labels[-1][images]
        index = labels.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
        probability = self._head.log_probabilities(logits).gather(2, index).squeeze(2).exp()
        predicted = logits.argmax(2)
        right = predicted == labels.unsqueeze(1)
        for place in range(ablations.start, min(ablations.stop, self._recorded)):
            row = place - ablations.start
            answer = self._answer(logits[:, row], labels, predicted[:, row])
            self._answers[-1][place, images] = answer
        if ablations.start == 0:
            self._was[images] = right[:, 0]
        was = self._was[images].unsqueeze(1)
        self._correct[ablations].index_add_(1, labels, right.T.to(torch.int64))
        exact = (probability.T.to(self._probability.dtype) * FINEST).round() / FINEST
        self._probability[ablations].index_add_(1, labels, exact)
        self._lost[ablations] += (was & ~right).sum(0)
        self._gained[ablations] += (~was & right).sum(0)

    def _answer(self, logits: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
        """(N, 4): predicted class, its probability, the labelled class's, that class's rank."""
        exact = self._head.log_probabilities(logits.to(self._probability.dtype))
        true = exact.gather(1, labels.unsqueeze(1))
        rank = (exact > true).sum(1)
        top = exact.gather(1, predicted.unsqueeze(1)).squeeze(1)
        return torch.stack(
            [predicted.to(exact.dtype), top.exp(), true.squeeze(1).exp(), rank.to(exact.dtype)], 1
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All counts so far, on the host: sums, and rows with an axis of images."""
        counts = {name: getattr(self, f"_{name}") for name in SUMS}
        counts |= {"labels": torch.cat(self._labels), "answers": torch.cat(self._answers, 1)}
        return {name: tensor.cpu().numpy() for name, tensor in counts.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Resumes from arrays of the same names, types and shapes as `arrays` returns."""
        for name in SUMS:
            getattr(self, f"_{name}").copy_(torch.from_numpy(arrays[name]))
        self._labels = [torch.from_numpy(arrays["labels"]).to(self._device)]
        exact = self._probability.dtype
        self._answers = [torch.from_numpy(arrays["answers"]).to(self._device, exact)]

    def finish(self) -> Counts:
        """All counts, on the host; requires at least one batch."""
        arrays = self.arrays()
        predictions = tuple(
            Predictions(
                answer[0].astype(np.int64), answer[1], answer[2], answer[3].astype(np.int64)
            )
            for answer in arrays["answers"].astype(np.float64).swapaxes(1, 2)
        )
        return Counts(
            images=np.bincount(arrays["labels"], minlength=self._correct.shape[1]),
            correct=arrays["correct"],
            lost=arrays["lost"],
            gained=arrays["gained"],
            probability=arrays["probability"].astype(np.float64),
            labels=arrays["labels"],
            predictions=predictions,
        )


def check(progress: Progress) -> None:
    """Raises a ValueError unless the counts are possible for the images that are done."""
    arrays = progress.arrays
    progress.check_images(arrays[INDICES])
    if "labels" not in arrays:  # the answers themselves: see `measures`
        if not all(np.isfinite(arrays[name]).all() for name in ("truth", "answers")):
            raise ValueError("the truth or the answers are not finite")
        return
    labels, correct, answers = arrays["labels"], arrays["correct"], arrays["answers"]
    classes = correct.shape[1]
    _check_range(labels, classes - 1)
    images_K = np.bincount(labels, minlength=classes)
    _check_range(correct, images_K)
    _check_range(arrays["probability"], images_K * (1 + 1e-6))
    for name in ("lost", "gained"):
        _check_range(arrays[name], len(labels))
    predicted, probability, label_probability, rank = np.moveaxis(answers, 2, 0)
    for shares in (probability, label_probability):
        _check_range(shares, 1 + 1e-6)
    for whole in (predicted, rank):
        _check_range(whole, classes - 1)
        if (whole != whole.round()).any():
            raise ValueError("a class is not a whole number")


def _check_range(values: NDArray[Any], maximum: Any) -> None:
    if not ((values >= 0) & (values <= maximum)).all():  # NaN is out of range as well
        raise ValueError("a number is out of range")


def merge(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The journal's arrays for all images from those of their blocks."""
    return {
        name: np.sum([part[name] for part in parts], axis=0)
        if name in SUMS
        else np.concatenate([part[name] for part in parts], AXES[name])
        for name in parts[0]
    }
