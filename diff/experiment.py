"""Two runs of one command over the same data with two networks: what changed?"""

from dataclasses import dataclass

import numpy as np

from cnnviz.core.statistics import Mean, mean_of
from cnnviz.diff.choices import NAMED, DiffSpec
from cnnviz.diff.classes import ClassChange, compare_classes
from cnnviz.diff.filters import LayerChange, compare_filters
from cnnviz.diff.images import Images, compare_images
from cnnviz.diff.sides import Side, aligned


@dataclass(frozen=True, eq=False)
class DiffResult:
    """What changed from one run to the other.

    Attributes:
        a: the first run, with the images that both could study.
        b: the second, likewise.
        lost: images that one of them could not study.
        images: what changed on each image; None where the command looks at none.
        worst_N: their rows, the most changed first.
        classes: what changed in each class; empty without images.
        layers: what became of the filters; empty where the command tells nothing of them.
        agreement: how far the two agree in what the command is about; None where it does not tell.
        agreement_of: what that is.
    """

    a: Side
    b: Side
    lost: tuple[str, ...]
    images: Images | None
    worst_N: np.ndarray
    classes: tuple[ClassChange, ...]
    layers: tuple[LayerChange, ...]
    agreement: Mean | None
    agreement_of: str

    @property
    def named(self) -> list[str]:
        """Classes that changed more than the others."""
        return [own.name for own in self.classes if (own.certainty or 0.0) > NAMED]


def diff(a: Side, b: Side, spec: DiffSpec | None = None) -> DiffResult:
    """Compares two runs.

    Args:
        a: one of them.
        b: the other.
        spec: what is asked.

    Raises:
        UsageError: they cannot be compared; it says in what they differ.
    """
    spec = spec or DiffSpec()
    a, b, lost = aligned(a, b)
    images = compare_images(a, b, spec.neighbors)
    worst = np.empty(0, np.int64)
    classes: tuple[ClassChange, ...] = ()
    if images is not None and a.answers is not None and b.answers is not None:
        worst = images.worst(b.answers.probability_N - a.answers.probability_N)
        classes = compare_classes(a.answers, images, spec.seed)
    layers = compare_filters(a, b)
    agreement, of = _agreement(images, layers, spec.seed)
    return DiffResult(a, b, lost, images, worst, classes, layers, agreement, of)


def _agreement(
    images: Images | None, layers: tuple[LayerChange, ...], seed: int
) -> tuple[Mean | None, str]:
    """The one number that says how far the two agree, and what it is."""
    if images is not None and images.agreement_N is not None:
        return mean_of(images.agreement_N, seed), "rank correlation of the maps, mean over images"
    if images is not None and images.kept_N is not None:
        return mean_of(images.kept_N, seed), "share of the nearest images kept, mean over images"
    likeness = [f.likeness for own in layers for f in own.filters if f.likeness is not None]
    if likeness:
        return mean_of(np.array(likeness), seed), "likeness of the filters, mean over filters"
    ranks = [own.rank_correlation for own in layers if own.rank_correlation is not None]
    if ranks:
        of = "rank correlation of the filters' harm, mean over layers"
        return mean_of(np.array(ranks), seed), of
    return None, "nothing that these runs tell of"
