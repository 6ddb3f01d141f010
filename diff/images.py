"""What changed from one network to another on each image of a data set, and over all.

Shapes: N images, P positions of all masks one after the other, k neighbours.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cnnviz.core.maps import rank_correlation
from cnnviz.core.statistics import exact_mcnemar, mean_of, signed_rank
from cnnviz.diff.results import ImageChange, Images, Moved, Predictions
from cnnviz.diff.sides import Answers, Evidence, Floats, Side


def compare_images(a: Side, b: Side, neighbors: int) -> Images | None:
    """Compares two aligned sides image by image; None where their command has no predictions.

    Args:
        a: one run.
        b: the other.
        neighbors: number of nearest images that are compared, where there are features.
    """
    if a.answers is None or b.answers is None:
        return None
    count = len(a.answers.images)
    pairs = zip(a.answers.labels, a.answers.predicted, b.answers.predicted, strict=True)
    right = [(float(p == t), float(q == t)) if t else (np.nan, np.nan) for t, p, q in pairs]
    flipped_N = np.not_equal(np.array(a.answers.predicted), np.array(b.answers.predicted))
    right_N2 = np.array(right, np.float64).reshape(count, 2)
    unknown_N: Floats = np.full(count, np.nan)
    x, y = a.evidence, b.evidence
    if x is not None and y is not None:
        return Images(
            flipped_N,
            right_N2,
            reliance_N=y.reliance_N - x.reliance_N,
            inside_N=y.inside_N - x.inside_N,
            agreement_N=agreement(x, y),
            moved_NP=_shares(y) - _shares(x),
        )
    k = min(neighbors, (count - 1) // 2)
    if a.features_ND is None or b.features_ND is None or k <= 0:
        return Images(flipped_N, right_N2, unknown_N, unknown_N)
    near = nearest(a.features_ND, k), nearest(b.features_ND, k)
    return Images(flipped_N, right_N2, unknown_N, unknown_N, kept_N=kept(*near), near=near)


def image_changes(images: Images, a: Answers, b: Answers) -> list[ImageChange]:
    """The images as records, in the order of the rows."""
    numbers = {
        "probability_a": a.probability_N,
        "probability_b": b.probability_N,
        "agreement": images.agreement_N,
        "reliance": images.reliance_N,
        "inside": images.inside_N,
        "kept": images.kept_N,
    }
    known = {name: column.tolist() for name, column in numbers.items() if column is not None}
    return [
        ImageChange(
            image=image,
            label=a.labels[row] or None,
            a=a.predicted[row],
            b=b.predicted[row],
            flipped=bool(images.flipped_N[row]),
            **{n: None if math.isnan(column[row]) else column[row] for n, column in known.items()},
        )
        for row, image in enumerate(a.images)
    ]


def _by_mask(evidence: Evidence) -> list[NDArray[np.float32]]:
    return np.split(evidence.maps_NP, np.cumsum(evidence.parts)[:-1], axis=1)


def agreement(a: Evidence, b: Evidence) -> Floats:
    """(N,) Spearman's rank correlation of the maps, mean over masks; NaN where one is constant."""
    correlations = [
        [_rank_correlation(*rows) for rows in zip(x, y, strict=True)]
        for x, y in zip(_by_mask(a), _by_mask(b), strict=True)
    ]
    mean_N: Floats = np.mean(correlations, axis=0)
    return mean_N


def _rank_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    correlation = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    return np.nan if correlation is None else correlation


def _shares(evidence: Evidence) -> NDArray[np.float32]:
    """Positive evidence, of sum 1 over all masks; zeros where there is none."""
    positive = evidence.maps_NP.clip(min=0).astype(np.float32)
    sums_N = positive.sum(1, keepdims=True)
    return (positive / np.where(sums_N > 0, sums_N, 1)).astype(np.float32)


def nearest(points_ND: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(N, k) the nearest other points of each, nearest first."""
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points_ND.astype(np.float64))
    return np.asarray(index.kneighbors(return_distance=False), np.int64)


def kept(a_Nk: NDArray[np.int64], b_Nk: NDArray[np.int64]) -> Floats:
    """(N,) share of each point's nearest that are among its nearest in the other space, too."""
    same_Nkk = a_Nk[:, :, None] == b_Nk[:, None, :]
    shares_N: Floats = same_Nkk.any(2).mean(1)
    return shares_N


def predictions(images: Images) -> Predictions:
    """The changes of the predictions over all images."""
    right_N2 = images.right_N2[~np.isnan(images.right_N2[:, 0])]
    accuracy: Sequence[float | None] = right_N2.mean(0).tolist() if len(right_N2) else (None, None)
    lost, gained, p_value = mcnemar(right_N2) or (None, None, None)
    return Predictions(
        flips=float(images.flipped_N.mean()),
        flipped=int(images.flipped_N.sum()),
        labelled=len(right_N2),
        accuracy_a=accuracy[0],
        accuracy_b=accuracy[1],
        lost=lost,
        gained=gained,
        p_value=p_value,
    )


def mcnemar(right_N2: Floats) -> tuple[int, int, float] | None:
    """How many answers became wrong and right, and the exact p-value; None without labels."""
    known = right_N2[~np.isnan(right_N2[:, 0])].astype(bool)
    if not len(known):
        return None
    lost = int((known[:, 0] & ~known[:, 1]).sum())
    gained = int((~known[:, 0] & known[:, 1]).sum())
    return lost, gained, exact_mcnemar(lost, gained)


def moved_inside(images: Images, seed: int) -> Moved | None:
    """The evidence that moved onto the objects; None where they are not known."""
    mean = mean_of(images.inside_N, seed)
    if mean is None:
        return None
    return Moved(mean.value, mean.interval, mean.count, signed_rank(images.inside_N))
