"""What an ablation costs a network without one right class: average precision, absolute error.

Classes on their own (multi-label) are judged by their average precision, the values of a regression
by their absolute error. Neither is a sum over images that could be kept alone, so every answer of
every ablation is kept, in float32, on the host.

Shapes: M images, V ablations (0 is the untouched network), K classes or values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.statistics import percentile_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 4 << 30
"""Bytes of answers that are kept at most."""
RESAMPLES = 500


@dataclass(frozen=True)
class Measure:
    """A number that says how good answers are.

    Attributes:
        name: of the mean over classes or values.
        each: of one class or value.
        sign: 1 where more is better, else -1.
    """

    name: str
    each: str
    sign: int

    def of(
        self, truth_MK: "NDArray[np.float32]", answers_MK: "NDArray[np.float32]"
    ) -> "NDArray[np.float64]":
        """The number of each class or value, (K,) float64; NaN for a class that no image has."""
        if self.sign < 0:
            return np.asarray(np.abs(answers_MK.astype(np.float64) - truth_MK).mean(0))
        from sklearn.metrics import average_precision_score

        found = np.full(truth_MK.shape[1], np.nan)
        for k in np.flatnonzero(truth_MK.any(0)):
            found[k] = average_precision_score(truth_MK[:, k], answers_MK[:, k])
        return found


PRECISION = Measure("mean average precision", "average precision", 1)
ERROR = Measure("mean absolute error", "absolute error", -1)


def measure_of(head: Head) -> Measure | None:
    """What judges answers of a head; None where one class is right or wrong."""
    return {Kind.SOFTMAX: None, Kind.SIGMOID: PRECISION, Kind.NONE: ERROR}[head.kind]


@dataclass(frozen=True, eq=False)
class Measured:
    """How good the answers are, by ablation.

    Attributes:
        measure: what is measured.
        each_VK: of each class or value, float64; NaN for a class that no image has.
        images_K: how many images have the class; all, for a value.
        interval: 95 % of the change that the ablation 1 makes to the mean, by resampling images;
            None where filters are not switched off together.
    """

    measure: Measure
    each_VK: "NDArray[np.float64]"
    images_K: "NDArray[np.int64]"
    interval: tuple[float, float] | None

    @property
    def mean_V(self) -> "NDArray[np.float64]":  # noqa: N802 (a shape)
        """The mean over classes that images have, or over values."""
        return np.asarray(np.nanmean(self.each_VK, axis=1))

    def change(self, ablation: int) -> float:
        """Of the mean, against the untouched network."""
        return float(self.mean_V[ablation] - self.mean_V[0])

    def hurt_most(self, ablation: int) -> tuple[int, float] | None:
        """The class or value that lost most, and what; None where none did."""
        changes_K = self.each_VK[ablation] - self.each_VK[0]
        harm_K = np.nan_to_num(-self.measure.sign * changes_K)
        worst = int(harm_K.argmax())
        return (worst, float(changes_K[worst])) if harm_K[worst] > 0 else None

    def ranked(self, ablations: Sequence[int]) -> list[int]:
        """Ablations, the most harmful first."""
        return sorted(ablations, key=lambda v: self.measure.sign * self.change(v))


class Answers:
    """Takes logits part by part, as `Tally` does; all are kept.

    Args:
        ablations: V.
        images: M, at most.
        classes: K.
        measure: what judges them.
        together: whether ablation 1 is filters off together.

    Raises:
        UsageError: they would take too much memory.
    """

    def __init__(
        self, ablations: int, images: int, classes: int, measure: Measure, together: bool
    ) -> None:
        needed = 4 * ablations * images * classes
        if needed > LARGEST:
            raise UsageError(
                f"{ablations} ablations of {images} images would keep {needed / 2**30:.1f} GiB of "
                f"answers, and {LARGEST >> 30} are allowed: name fewer layers with --sweep, or "
                "fewer images with --limit"
            )
        self._measure, self._together, self._ablations = measure, together, ablations
        self._truth = [torch.zeros(0, classes)]
        self._answers = [torch.zeros(ablations, 0, classes)]

    def start(self, truth: Tensor) -> None:
        """Announces a batch by what is true of its images, (N, K)."""
        self._truth.append(truth)
        self._answers.append(torch.full((self._ablations, *truth.shape), torch.nan))

    def add(self, images: slice, ablations: slice, logits: Tensor) -> None:
        """Keeps logits (N, G, K) of some of the batch's images and some ablations."""
        self._answers[-1][ablations, images] = logits.movedim(1, 0).float().cpu()

    def arrays(self) -> dict[str, "NDArray[Any]"]:
        """All that was kept so far."""
        truth, answers = torch.cat(self._truth).float(), torch.cat(self._answers, 1)
        return {"truth": truth.numpy(), "answers": answers.numpy()}

    def restore(self, arrays: "Mapping[str, NDArray[Any]]") -> None:
        """Resumes from arrays of the same names, types and shapes as `arrays` returns."""
        self._truth = [torch.from_numpy(arrays["truth"])]
        self._answers = [torch.from_numpy(arrays["answers"])]

    def finish(self) -> Measured | None:
        """What they amount to; None where answers are not numbers."""
        found = self.arrays()
        truth_MK, answers_VMK = found["truth"], found["answers"]
        if not np.isfinite(answers_VMK).all():
            return None
        each_VK = np.stack([self._measure.of(truth_MK, own_MK) for own_MK in answers_VMK])
        valued = self._measure.sign < 0
        images_K = np.full(truth_MK.shape[1], len(truth_MK)) if valued else truth_MK.sum(0)
        interval = self._interval(truth_MK, answers_VMK[:2]) if self._together else None
        return Measured(self._measure, each_VK, images_K.astype(np.int64), interval)

    def _interval(
        self, truth_MK: "NDArray[np.float32]", both_2MK: "NDArray[np.float32]"
    ) -> tuple[float, float]:
        """Of the change of the mean, resampling images (Efron 1979, percentile bootstrap)."""
        generator = np.random.default_rng(0)
        changes = []
        for _ in range(RESAMPLES):
            drawn = generator.integers(0, len(truth_MK), len(truth_MK))
            if not truth_MK[drawn].any() and self._measure.sign > 0:
                continue
            before, after = (
                np.nanmean(self._measure.of(truth_MK[drawn], own_MK[drawn])) for own_MK in both_2MK
            )
            changes.append(after - before)
        return percentile_interval(changes)
