"""Counting the answers of many ablated networks while the images stream by.

For every ablation only sums stay, on the device, per class: memory does not grow with the data. For
the first few ablations (the untouched network, and the one that is studied image by image) every
answer is recorded as well. Shapes: N images, G ablations of a group, V in all, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.models.heads import Head
from cnnviz.filters.ablation.evaluation import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Counts:
    """What V ablations did to M images; ablation 0 is the untouched network.

    Attributes:
        images: (K,) int64, images of each class.
        correct: (V, K) int64, of these, right.
        lost: (V,) int64, right when untouched, wrong when ablated.
        gained: (V,) int64, the other way.
        probability: (V, K) float64, sum over a class's images of the class's probability.
        labels: (M,) int64, in order of the data.
        predictions: every answer of the first ablations.
    """

    images: "NDArray[np.int64]"
    correct: "NDArray[np.int64]"
    lost: "NDArray[np.int64]"
    gained: "NDArray[np.int64]"
    probability: "NDArray[np.float64]"
    labels: "NDArray[np.int64]"
    predictions: tuple[Predictions, ...]


INDICES = "indices"
SUMS = ("correct", "probability", "lost", "gained")
"""Arrays of the journal that add up over blocks of images."""
AXES = {INDICES: 0, "labels": 0, "truth": 0, "answers": 1}
"""Arrays with an entry for each image used: along which axis."""
FINEST = 2.0**32
"""Probabilities are summed in steps of one over this: such sums do not depend on their order."""


class Tally:
    """Takes logits part by part; each part of a batch must begin with ablation 0.

    Args:
        ablations: V.
        classes: K.
        recorded: of how many ablations, from 0 on, every answer is kept.
        device: where the logits are.
        head: what they mean.
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
        """Announces a batch by its labels (N,), the model's class indices."""
        self._labels.append(labels.to(self._device))
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
            own = logits[:, place - ablations.start]
            answer = self._answer(own, labels, predicted[:, place - ablations.start])
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

    def arrays(self) -> dict[str, "NDArray[Any]"]:
        """All counts so far, on the host: sums, and rows with an axis of images."""
        counts = {name: getattr(self, f"_{name}") for name in SUMS}
        counts |= {"labels": torch.cat(self._labels), "answers": torch.cat(self._answers, 1)}
        return {name: tensor.cpu().numpy() for name, tensor in counts.items()}

    def restore(self, arrays: "Mapping[str, NDArray[Any]]") -> None:
        """Resumes from arrays of the same names, types and shapes as `arrays` returns."""
        for name in SUMS:
            getattr(self, f"_{name}").copy_(torch.from_numpy(arrays[name]))
        self._labels = [torch.from_numpy(arrays["labels"]).to(self._device)]
        exact = self._probability.dtype
        self._answers = [torch.from_numpy(arrays["answers"]).to(self._device, exact)]

    def finish(self) -> Counts:
        """All counts, on the host; at least one batch must have come."""
        found = self.arrays()
        predictions = tuple(
            Predictions(own[0].astype(np.int64), own[1], own[2], own[3].astype(np.int64))
            for own in found["answers"].astype(np.float64).swapaxes(1, 2)
        )
        return Counts(
            images=np.bincount(found["labels"], minlength=self._correct.shape[1]),
            correct=found["correct"],
            lost=found["lost"],
            gained=found["gained"],
            probability=found["probability"].astype(np.float64),
            labels=found["labels"],
            predictions=predictions,
        )


def merge(parts: "Sequence[Mapping[str, NDArray[Any]]]") -> "dict[str, NDArray[Any]]":
    """The journal's arrays for all images from those of their blocks."""
    return {
        name: np.sum([part[name] for part in parts], axis=0)
        if name in SUMS
        else np.concatenate([part[name] for part in parts], AXES[name])
        for name in parts[0]
    }
