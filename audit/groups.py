"""Groups of evidence of one kind: patches that take the same away from the network's features.

A patch is described by what its image's features lose when it is covered, at unit length, so that
the kind of evidence counts and not its amount. k-means runs for each number of groups; the number
with the best silhouette is used (Rousseeuw 1987, "Silhouettes"), or one group where no partition is
clearly better.

Shapes: N images, D features.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from cnnviz.audit.options import ALARM
from cnnviz.audit.rows import Rows

SMALLEST = 5
"""Minimum number of images of a group."""
ENOUGH = 20
"""Minimum number of images of a class that is judged."""
WAYS = 3
"""Ways to look at a class that count the same: its patches, its residual and its reliance."""
MAX_GROUPS = 5
MIN_SILHOUETTE = 0.1
DIMENSIONS = 20
JUDGED = 2_000
"""Maximum number of images used to choose the number of groups."""
REST = "other classes"


@dataclass(frozen=True, eq=False)
class Class:
    """Images that are judged together: those predicted as one class, or those of small classes.

    Attributes:
        index: the class; None for the images of all small classes.
        members_N: places in the rows.
        groups: of its evidence, largest first; places in the rows, most typical first.
    """

    index: int | None
    members_N: NDArray[np.int64]
    groups: tuple[NDArray[np.int64], ...]

    @property
    def enough(self) -> bool:
        """Whether it is a single class with enough images to be judged."""
        return self.index is not None and len(self.members_N) >= ENOUGH


def needed(groups: int, judged: int) -> int:
    """Images of each group of a class without which not even a perfect shortcut raises an alarm.

    The p-value of n signs flipped at random is at least 1/2^n; it is multiplied by the number of
    ways, of groups of the class, and of classes that are judged.
    """
    return math.ceil(math.log2(WAYS * groups * judged / (1 - ALARM)))


def classes(rows: Rows, seed: int) -> Iterator[Class]:
    """The predicted classes; those with few images are combined at the end."""
    rest: list[int] = []
    judged = int((np.bincount(rows.predicted_N) >= ENOUGH).sum())
    for index in sorted(set(rows.predicted_N.tolist())):
        members_N = np.flatnonzero(rows.predicted_N == index)
        if len(members_N) < SMALLEST:
            rest += members_N.tolist()
        else:
            yield Class(index, members_N, group(rows.features_ND, members_N, seed, judged))
    if rest:
        members_N = np.array(sorted(rest))
        yield Class(None, members_N, group(rows.features_ND, members_N, seed))


def group(
    features_ND: NDArray[np.float32], members_N: NDArray[np.int64], seed: int, among: int = 0
) -> tuple[NDArray[np.int64], ...]:
    """Partitions the images at `members_N` by their evidence; too few images make no group.

    A class that is judged `among` so many has no groups that are too small to be.
    """
    count = len(members_N)
    if count < SMALLEST:
        return ()
    values_ND = features_ND[members_N].astype(np.float64)
    lengths_N = np.linalg.norm(values_ND, axis=1, keepdims=True)
    values_ND /= np.maximum(lengths_N, np.finfo(np.float32).tiny)
    distinct = len(np.unique(values_ND, axis=0))
    best, labels_N = MIN_SILHOUETTE, np.zeros(count, np.int64)
    width = min(DIMENSIONS, count - 1, values_ND.shape[1])
    reduced_ND = PCA(width, random_state=seed).fit_transform(values_ND) if distinct > 1 else None
    for number in range(2, min(MAX_GROUPS, count // SMALLEST, distinct - 1) + 1):
        groups_N = KMeans(number, n_init=4, random_state=seed).fit_predict(reduced_ND)
        fewest = needed(number, among) if among and count >= ENOUGH else SMALLEST
        if np.bincount(groups_N).min() < max(SMALLEST, fewest):
            continue
        sampled = min(count, JUDGED)
        score = silhouette_score(reduced_ND, groups_N, sample_size=sampled, random_state=seed)
        if score > best:
            best, labels_N = float(score), groups_N
    parts = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N)]
    typical = [_typical_first(values_ND, part) for part in parts]
    return tuple(members_N[part] for part in sorted(typical, key=len, reverse=True))


def _typical_first(values_ND: NDArray[np.float64], part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of a group, nearest to its mean first."""
    members_ND = values_ND[part]
    distance_N = np.linalg.norm(members_ND - members_ND.mean(0), axis=1)
    return part[np.argsort(distance_N, kind="stable")]
