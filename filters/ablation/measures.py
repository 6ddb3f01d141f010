"""What an ablation costs a network without one right class: average precision, absolute error.

Independent classes (multi-label) are measured by their average precision, the values of a
regression by their absolute error. Neither is a sum over images, so every answer of every ablation
is kept, in float32, on the host.

Shapes: M images, V ablations (0 is the original network), K classes or values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.output.record import HIDDEN, Interval, Record, Says
from cnnviz.core.statistics import percentile_interval

LARGEST = 4 << 30
"""Maximum bytes of answers to keep."""
RESAMPLES = 500


@dataclass(frozen=True)
class Measure:
    """A measure of how good answers are."""

    name: str  # name of the mean over classes or values
    each: str  # name for one class or value
    sign: int  # 1 if larger is better, else -1

    def of(
        self, truth_MK: NDArray[np.float32], answers_MK: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Measures each class or value, (K,) float64; NaN for a class that no image has."""
        if self.sign < 0:
            return np.asarray(np.abs(answers_MK.astype(np.float64) - truth_MK).mean(0))
        from sklearn.metrics import average_precision_score

        precisions = np.full(truth_MK.shape[1], np.nan)
        for k in np.flatnonzero(truth_MK.any(0)):
            precisions[k] = average_precision_score(truth_MK[:, k], answers_MK[:, k])
        return precisions


PRECISION = Measure("mean average precision", "average precision", 1)
ERROR = Measure("mean absolute error", "absolute error", -1)


def measure_of(head: Head) -> Measure | None:
    """The measure for a head's answers; None if they are right or wrong."""
    return {Kind.SOFTMAX: None, Kind.SIGMOID: PRECISION, Kind.NONE: ERROR}[head.kind]


@dataclass(frozen=True, eq=False)
class Measured(Record):
    """The measure before and after; null after where filters are not switched off together.

    Hidden are the measure itself, its value for each class or value by ablation (NaN for a class
    that no image has), and the number of images with the class (all, for a value).
    """

    measure: Annotated[Measure, HIDDEN]
    each_VK: Annotated[NDArray[np.float64], HIDDEN]
    images_K: Annotated[NDArray[np.int64], HIDDEN]
    before: float
    after: float | None
    change: float | None
    interval: Annotated[Interval | None, Says("95 % of the change, by resampling images")]

    @cached_property
    def mean_V(self) -> NDArray[np.float64]:  # noqa: N802 (a shape)
        """The mean over classes that images have, or over values."""
        return np.asarray(np.nanmean(self.each_VK, axis=1))

    def hurt_most(self, ablation: int) -> tuple[int, float] | None:
        """The class or value that was harmed most, and its change; None if none was."""
        changes_K = self.each_VK[ablation] - self.each_VK[0]
        harm_K = np.nan_to_num(-self.measure.sign * changes_K)
        worst = int(harm_K.argmax())
        return (worst, float(changes_K[worst])) if harm_K[worst] > 0 else None


class Answers:
    """Collects logits part by part, as `Tally` does, and keeps all of them.

    `images` is the maximum of M; with `together`, ablation 1 is that of `--filters`.
    """

    def __init__(
        self, ablations: int, images: int, classes: int, measure: Measure, together: bool
    ) -> None:
        needed = 4 * ablations * images * classes
        if needed > LARGEST:
            raise UsageError(
                f"{ablations} ablations of {images} images would keep {needed / 2**30:.1f} GiB of "
                f"answers; the maximum is {LARGEST >> 30} GiB: use fewer layers with --sweep, or "
                "fewer images with --limit"
            )
        self._measure, self._together, self._ablations = measure, together, ablations
        self._truth = [torch.zeros(0, classes)]
        self._answers = [torch.zeros(ablations, 0, classes)]

    def start(self, truth: Tensor) -> None:
        """Starts a batch with the truth about its images, (N, K)."""
        self._truth.append(truth)
        self._answers.append(torch.full((self._ablations, *truth.shape), torch.nan))

    def add(self, images: slice, ablations: slice, logits: Tensor) -> None:
        """Adds logits (N, G, K) of some of the batch's images and some ablations."""
        self._answers[-1][ablations, images] = logits.movedim(1, 0).float().cpu()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All answers so far, and the truth."""
        truth, answers = torch.cat(self._truth).float(), torch.cat(self._answers, 1)
        return {"truth": truth.numpy(), "answers": answers.numpy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Resumes from arrays of the same names, types and shapes as `arrays` returns."""
        self._truth = [torch.from_numpy(arrays["truth"])]
        self._answers = [torch.from_numpy(arrays["answers"])]

    def finish(self) -> Measured:
        """Measures all answers, which are finite."""
        arrays = self.arrays()
        truth_MK, answers_VMK = arrays["truth"], arrays["answers"]
        each_VK = np.stack([self._measure.of(truth_MK, answers_MK) for answers_MK in answers_VMK])
        valued = self._measure.sign < 0
        images_K = np.full(truth_MK.shape[1], len(truth_MK)) if valued else truth_MK.sum(0)
        mean_V = np.nanmean(each_VK, axis=1).tolist()
        return Measured(
            self._measure,
            each_VK,
            images_K.astype(np.int64),
            before=mean_V[0],
            after=mean_V[1] if self._together else None,
            change=mean_V[1] - mean_V[0] if self._together else None,
            interval=self._interval(truth_MK, answers_VMK[:2]) if self._together else None,
        )

    def _interval(
        self, truth_MK: NDArray[np.float32], both_2MK: NDArray[np.float32]
    ) -> tuple[float, float]:
        """Interval of the change of the mean, resampling images."""
        generator = np.random.default_rng(0)
        changes = []
        for _ in range(RESAMPLES):
            drawn = generator.integers(0, len(truth_MK), len(truth_MK))
            if not truth_MK[drawn].any() and self._measure.sign > 0:
                continue
            before, after = (
                np.nanmean(self._measure.of(truth_MK[drawn], answers_MK[drawn]))
                for answers_MK in both_2MK
            )
            changes.append(after - before)
        return percentile_interval(changes)
