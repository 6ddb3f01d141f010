"""Evidence of one kind: patches that take the same from the network's features.

A patch is described by what the features of its image lose when it is covered, at unit length, so
that it is the kind of evidence that counts and not its amount. k-means for each number of groups;
the number is the one whose silhouette is best (Rousseeuw 1987, "Silhouettes"), or one group where
no partition is clearly better than none.
Shapes: N images, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnviz.audit.rows import Rows

SMALLEST = 5  # images of a group
MOST = 5  # groups of a class
LEAST_SILHOUETTE = 0.1
DIMENSIONS = 20
JUDGED = 2_000  # images by which the number of groups is chosen, at most
REST = "other classes"


@dataclass(frozen=True, eq=False)
class Class:
    """Images that are judged together: those predicted as one class, or those of small classes.

    Attributes:
        index: the class; None of the images of all classes with too few of their own.
        members_N: places in the rows.
        groups: of its evidence, largest first; each holds places in the rows, most typical first.
    """

    index: int | None
    members_N: NDArray[np.int64]
    groups: tuple[NDArray[np.int64], ...]


def classes(rows: Rows, seed: int) -> Iterator[Class]:
    """The classes that are predicted, those with few images together at the end."""
    rest: list[int] = []
    for index in sorted(set(rows.predicted_N.tolist())):
        members_N = np.flatnonzero(rows.predicted_N == index)
        if len(members_N) < SMALLEST:
            rest += members_N.tolist()
        else:
            yield Class(index, members_N, group(rows.features_ND, members_N, seed))
    if rest:
        members_N = np.array(sorted(rest))
        yield Class(None, members_N, group(rows.features_ND, members_N, seed))


def group(
    features_ND: NDArray[np.float32], members_N: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Partitions some images by their evidence; see the module.

    Args:
        features_ND: of all images.
        members_N: places of those that are meant; fewer than `SMALLEST` make no group.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    count = len(members_N)
    if count < SMALLEST:
        return ()
    values_ND = features_ND[members_N].astype(np.float64)
    lengths_N = np.linalg.norm(values_ND, axis=1, keepdims=True)
    values_ND /= np.maximum(lengths_N, np.finfo(np.float32).tiny)
    distinct = len(np.unique(values_ND, axis=0))
    best, labels_N = LEAST_SILHOUETTE, np.zeros(count, np.int64)
    width = min(DIMENSIONS, count - 1, values_ND.shape[1])
    reduced_ND = PCA(width, random_state=seed).fit_transform(values_ND) if distinct > 1 else None
    for number in range(2, min(MOST, count // SMALLEST, distinct - 1) + 1):
        found_N = KMeans(number, n_init=4, random_state=seed).fit_predict(reduced_ND)
        if np.bincount(found_N).min() < SMALLEST:
            continue
        score = float(
            silhouette_score(reduced_ND, found_N, sample_size=min(count, JUDGED), random_state=seed)
        )
        if score > best:
            best, labels_N = score, found_N
    parts = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N)]
    typical = [_typical_first(values_ND, part) for part in parts]
    return tuple(members_N[part] for part in sorted(typical, key=len, reverse=True))


def _typical_first(values_ND: NDArray[np.float64], part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of a group, those nearest its mean first."""
    own_ND = values_ND[part]
    distance_N = np.linalg.norm(own_ND - own_ND.mean(0), axis=1)
    return part[np.argsort(distance_N, kind="stable")]
