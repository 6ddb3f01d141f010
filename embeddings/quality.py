"""How far a map can be trusted: what of the feature space is preserved in the plane.

Each measure compares the features with one layout of them. Three are about neighbors (are they
kept, are new ones false, do they share a class), one about classes as a whole, one about large
distances, which t-SNE is known to lose. All but the last use every pair of points, tile by tile; it
samples pairs. For very many points, a random subset is judged, each point of it against all.

Shapes: N points, M of them judged, k neighbors, K classes, R rows of a tile, C columns of a tile.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import silhouette_score

from cnnviz.core.device import send
from cnnviz.core.output.record import Change, Record, Says, Share
from cnnviz.embeddings.neighbors import DistanceTiles, Points, nearest, row_tiles

NEAR, FAR = 10, 50
PAIRS = 1000
UNKNOWN = -1
LARGEST_JUDGED, JUDGED = 25_000, 10_000
"""Of more points than the first, the second number of them are judged."""
Rows = NDArray[np.int64] | None
"""Which points are judged; None: all."""
CACHED_PAIRS = 2**21
"""Distances in a tile that is read several times, so that it stays in the caches."""


@dataclass(frozen=True)
class LabelQuality(Record):
    """How well a space separates the classes; null without labels."""

    knn_accuracy: Annotated[
        Share | None,
        Says(
            "share of labelled images whose class is the most common among their 10 nearest; null "
            "with 11 images or fewer",
            digits=6,
        ),
    ]
    silhouette: Annotated[
        Change | None,
        Says(
            "mean over labelled images: nearer to their own class (1) or to another (-1); null "
            "with fewer than two classes",
            digits=6,
        ),
    ]


@dataclass(frozen=True)
class MapQuality(LabelQuality):
    """How well a map preserves the features' neighbors, distances and classes."""

    preservation_10: Annotated[
        Share | None,
        Says(
            "share of each image's 10 nearest in the features that are among its 10 nearest on the "
            "map; null with 11 images or fewer",
            digits=6,
        ),
    ]
    preservation_50: Annotated[
        Share | None, Says("the same for 50; null with 51 images or fewer", digits=6)
    ]
    trustworthiness: Annotated[
        Share | None,
        Says(
            "1 if no distant image became one of the 10 nearest, 0.5 for a random map; null with "
            "20 images or fewer",
            digits=6,
        ),
    ]
    spearman: Annotated[
        Change, Says("rank correlation of distances between 1,000 random pairs", digits=6)
    ]


def judged_points(count: int, seed: int) -> NDArray[np.int64]:
    """(M,) which points are judged, ascending: all, or a seeded sample of very many."""
    if count <= LARGEST_JUDGED:
        return np.arange(count)
    chosen = np.random.default_rng(seed).choice(count, JUDGED, replace=False)
    return np.sort(chosen).astype(np.int64)


def _rows(rows_M: Rows, count: int) -> NDArray[np.int64]:
    return np.arange(count) if rows_M is None else rows_M


def preservation(reference_Nk: NDArray[np.int64], neighbors_Nk: NDArray[np.int64]) -> float:
    """The share, 0 to 1, of each point's reference neighbors that are among its neighbors here."""
    both = np.concatenate([reference_Nk, neighbors_Nk], axis=1)
    both.sort(axis=1)
    shared = (both[:, 1:] == both[:, :-1]).sum()
    return float(shared) / reference_Nk.size


def knn_accuracy(
    neighbors_Mk: NDArray[np.int64], labels_N: NDArray[np.int64], rows_M: Rows = None
) -> float | None:
    """The share of labelled points whose class is the most common among their neighbors.

    Ties go to the class that comes first. Neighbors without a label have no vote. None if no point
    is labelled.
    """
    rows_M = _rows(rows_M, len(labels_N))
    known = np.flatnonzero(labels_N[rows_M] != UNKNOWN)
    if not len(known):
        return None
    classes, agreed = int(labels_N.max()) + 1, 0
    for tile in row_tiles(len(known)):
        places = known[tile]
        votes_Rk = labels_N[neighbors_Mk[places]]
        counts_RK = np.zeros((len(places), classes), np.int64)
        voter, place = np.nonzero(votes_Rk != UNKNOWN)
        np.add.at(counts_RK, (voter, votes_Rk[voter, place]), 1)
        elected = counts_RK.argmax(axis=1)
        true = labels_N[rows_M[places]]
        agreed += int(((elected == true) & (counts_RK.max(axis=1) > 0)).sum())
    return agreed / len(known)


def trustworthiness(
    points_ND: Points,
    neighbors_Mk: NDArray[np.int64],
    rows_M: Rows = None,
    *,
    device: torch.device | str = "cpu",
) -> float | None:
    """How few of a map's neighbors are distant in the features; 0 to 1, 1 is best.

    Venna and Kaski 2001, "Neighborhood preservation in nonlinear projection methods". The rank of a
    point is one more than the number of points that are strictly nearer. None if N is below 2k, for
    which it is not defined.
    """
    count, k, rows_M = len(points_ND), neighbors_Mk.shape[1], _rows(rows_M, len(points_ND))
    if k >= count / 2:
        return None
    tiles = DistanceTiles(points_ND, device)
    penalty = torch.zeros((), dtype=torch.int64, device=tiles.device)
    for places in row_tiles(len(rows_M), max(1, CACHED_PAIRS * len(rows_M) // count)):
        rows = rows_M[places]
        near_Rk = send(torch.from_numpy(neighbors_Mk[places]), tiles.device)
        distances_RN = torch.cat([tile_RC for _, tile_RC in tiles.of(rows)], dim=1)
        limits_Rk = distances_RN.gather(1, near_Rk)
        true_R1 = distances_RN.topk(k, dim=1, largest=False).values[:, -1:]
        # True neighbors cost nothing; the others, their rank beyond k.
        false_Rk = limits_Rk > true_R1
        limits_Rk = limits_Rk.masked_fill(~false_Rk, -torch.inf)
        nearer_RN = torch.zeros_like(distances_RN, dtype=torch.uint8)
        for column in range(k):
            nearer_RN += distances_RN < limits_Rk[:, column, None]
        penalty += nearer_RN.sum() + (1 - k) * false_Rk.sum()
    worst: float = len(rows_M) * k * (2 * count - 3 * k - 1) / 2
    return 1 - int(penalty) / worst


def silhouette(points_ND: Points, labels_N: NDArray[np.int64]) -> float | None:
    """The mean silhouette of the labelled points, -1 to 1, by scikit-learn.

    Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis". A point alone in its class counts as 0. None with fewer than two classes.
    """
    known = np.flatnonzero(labels_N != UNKNOWN)
    classes = len(np.unique(labels_N[known]))
    if classes < 2:
        return None
    score = 0.0
    if classes < len(known):
        score = float(silhouette_score(points_ND[known].astype(np.float64), labels_N[known]))
    return score


def distance_correlation(points_ND: Points, places_N2: Points, seed: int) -> float:
    """Spearman's rank correlation of the distances between random pairs; 0 if they do not vary."""
    generator = np.random.default_rng(seed)
    first = generator.integers(len(points_ND), size=PAIRS)
    second = (first + generator.integers(1, len(points_ND), size=PAIRS)) % len(points_ND)
    spans = [
        np.linalg.norm(space[first].astype(np.float64) - space[second], axis=1)
        for space in (points_ND, places_N2)
    ]
    if any(np.ptp(span) == 0 for span in spans):
        return 0.0
    return float(spearmanr(*spans).statistic)


def label_quality(
    points_ND: Points,
    neighbors_Mk: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    rows_M: Rows = None,
) -> LabelQuality:
    """How well a space separates the classes, given each judged point's neighbors in it."""
    enough, rows_M = len(labels_N) > NEAR + 1, _rows(rows_M, len(labels_N))
    return LabelQuality(
        knn_accuracy(neighbors_Mk[:, :NEAR], labels_N, rows_M) if enough else None,
        silhouette(points_ND[rows_M], labels_N[rows_M]),
    )


def map_quality(
    points_ND: Points,
    reference_Mk: NDArray[np.int64],
    places_N2: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    rows_M: Rows = None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> MapQuality:
    """Judges a layout of the points; `reference_Mk` are their at least min(50, N - 1) nearest."""
    count, rows_M = len(points_ND), _rows(rows_M, len(points_ND))
    near_Mk = nearest(places_N2, min(FAR, count - 1), rows=rows_M, device=device).indices

    def kept(k: int) -> float | None:
        return preservation(reference_Mk[:, :k], near_Mk[:, :k]) if count > k + 1 else None

    return MapQuality(
        preservation_10=kept(NEAR),
        preservation_50=kept(FAR),
        trustworthiness=trustworthiness(points_ND, near_Mk[:, :NEAR], rows_M, device=device),
        spearman=distance_correlation(points_ND, places_N2, seed),
        **vars(label_quality(places_N2, near_Mk, labels_N, rows_M)),
    )
