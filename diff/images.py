"""What changed from one network to another on each image of a data set, and over all.

Shapes: N images, P positions of all masks one after the other, V values of a sign.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.core.maps import rank_correlation
from cnnviz.core.statistics import exact_mcnemar
from cnnviz.diff.sides import Evidence, Floats, Side


@dataclass(frozen=True, eq=False)
class Images:
    """Both networks on each image; `a` is the first, `b` the second.

    Attributes:
        flipped_N: whether the prediction is another class.
        right_N2: whether each is right; NaN where no label is known.
        agreement_N: rank correlation of the two maps, mean over masks; NaN where one is constant.
            None without maps.
        moved_NP: evidence of b minus that of a, each of sum 1. None without maps.
        reliance_N: that of b minus that of a; NaN where it is not known.
        inside_N: likewise, of the evidence's share on the object.
        kept_N: share of its nearest images that are still among them. None without features.
        near: rows (N, k) of the nearest in both networks, nearest first. None likewise.
    """

    flipped_N: NDArray[np.bool_]
    right_N2: Floats
    agreement_N: Floats | None
    moved_NP: NDArray[np.float32] | None
    reliance_N: Floats
    inside_N: Floats
    kept_N: Floats | None
    near: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    def worst(self, probability_N: Floats) -> NDArray[np.int64]:
        """Rows, the most changed first: other predictions, then the least alike.

        Args:
            probability_N: how far the probability changed, to order what is alike otherwise.
        """
        alike_N = self.kept_N if self.agreement_N is None else self.agreement_N
        if alike_N is None:
            alike_N = np.zeros(len(self.flipped_N))
        known_N = np.where(np.isnan(alike_N), np.inf, alike_N)
        change_N = np.nan_to_num(np.abs(probability_N))
        return np.lexsort((-change_N, known_N, ~self.flipped_N))


def compare_images(a: Side, b: Side, neighbors: int) -> Images | None:
    """Two aligned sides, image by image; None where their command looks at no images.

    Args:
        a: one run.
        b: the other.
        neighbors: how many nearest images are compared, where there are features.
    """
    if a.answers is None or b.answers is None:
        return None
    count = len(a.answers.images)
    pairs = zip(a.answers.labels, a.answers.predicted, b.answers.predicted, strict=True)
    right = [(float(p == t), float(q == t)) if t else (np.nan, np.nan) for t, p, q in pairs]
    unknown_N: Floats = np.full(count, np.nan)
    near = None
    k = min(neighbors, (count - 1) // 2)
    if a.features_ND is not None and b.features_ND is not None and k > 0:
        near = nearest(a.features_ND, k), nearest(b.features_ND, k)
    found = Images(
        flipped_N=np.not_equal(np.array(a.answers.predicted), np.array(b.answers.predicted)),
        right_N2=np.array(right, np.float64).reshape(count, 2),
        agreement_N=None,
        moved_NP=None,
        reliance_N=unknown_N,
        inside_N=unknown_N,
        kept_N=None if near is None else kept(*near),
        near=near,
    )
    if a.evidence is None or b.evidence is None:
        return found
    return replace(
        found,
        agreement_N=agreement(a.evidence, b.evidence),
        moved_NP=_shares(b.evidence) - _shares(a.evidence),
        reliance_N=b.evidence.reliance_N - a.evidence.reliance_N,
        inside_N=b.evidence.inside_N - a.evidence.inside_N,
    )


def _by_mask(evidence: Evidence) -> list[NDArray[np.float32]]:
    return np.split(evidence.maps_NP, np.cumsum(evidence.parts)[:-1], axis=1)


def agreement(a: Evidence, b: Evidence) -> Floats:
    """(N,) Spearman's rank correlation of the maps, mean over masks; NaN where one is constant."""
    found = [
        [_rank_correlation(*rows) for rows in zip(x, y, strict=True)]
        for x, y in zip(_by_mask(a), _by_mask(b), strict=True)
    ]
    mean_N: Floats = np.mean(found, axis=0)
    return mean_N


def _rank_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    return np.nan if found is None else found


def _shares(evidence: Evidence) -> NDArray[np.float32]:
    """Positive evidence, of sum 1 over all masks; zeros where there is none."""
    positive = evidence.maps_NP.clip(min=0).astype(np.float32)
    sums_N = positive.sum(1, keepdims=True)
    return (positive / np.where(sums_N > 0, sums_N, 1)).astype(np.float32)


def nearest(points_ND: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(N, k) the nearest other points of each, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points_ND.astype(np.float64))
    return np.asarray(index.kneighbors(return_distance=False), np.int64)


def kept(a_NK: NDArray[np.int64], b_NK: NDArray[np.int64]) -> Floats:
    """(N,) share of each point's nearest that are among its nearest in the other space too."""
    same_NKK = a_NK[:, :, None] == b_NK[:, None, :]
    shares_N: Floats = same_NKK.any(2).mean(1)
    return shares_N


def mcnemar(right_N2: Floats) -> tuple[int, int, float] | None:
    """How many answers became wrong and right, and the exact p-value; None without labels."""
    known = right_N2[~np.isnan(right_N2[:, 0])].astype(bool)
    if not len(known):
        return None
    lost = int((known[:, 0] & ~known[:, 1]).sum())
    gained = int((~known[:, 0] & known[:, 1]).sum())
    return lost, gained, exact_mcnemar(lost, gained)
