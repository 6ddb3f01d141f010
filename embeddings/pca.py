"""Principal components: the directions in which features vary most, by scikit-learn.

Few dimensions go through their covariance, many through a randomized range finder, and a
memory-mapped file is read in batches. scikit-learn makes the largest weight of a component
positive.

Shapes: N points, D dimensions, c components.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.utils import gen_batches

from cnnviz.core.errors import CnnvizError
from cnnviz.embeddings.neighbors import Points

BATCH = 8192
LARGEST_MATRIX = 2048
"""Maximum number of dimensions for the covariance, or else of points for a full decomposition."""
POWER_ITERATIONS = 6
NOISE = 1e-12
"""A component with a smaller share of the variance is rounding noise."""


@dataclass(frozen=True, eq=False)
class Pca:
    """Points in their principal components.

    Attributes:
        scores_Nc: (N, c) float32 coordinates, largest variance first.
        explained: (c,) float64, each component's share of the total variance, 0 to 1.
    """

    scores_Nc: NDArray[np.float32]
    explained: NDArray[np.float64]


def pca(points_ND: Points, count: int, *, seed: int = 0) -> Pca:
    """Computes at most `count` principal components; a CnnvizError if all points are the same."""
    points, dimensions = points_ND.shape
    mean_D, total = _moments(points_ND)
    largest = max(float(points_ND.max()), -float(points_ND.min()))
    if total <= (np.finfo(np.float32).eps * largest) ** 2 * points_ND.size:
        raise CnnvizError(
            f"all {points} points are the same, so there is nothing to lay out; "
            "are the images identical, or is the layer dead?"
        )
    count = min(count, points - 1, dimensions)
    # Centered beforehand: scikit-learn's covariance loses digits far from zero.
    if isinstance(points_ND, np.memmap):
        solver, parts = IncrementalPCA(count), _batches(points, count)
        for part in parts:  # `fit` would read the whole file first
            solver.partial_fit(points_ND[part] - mean_D)
    else:
        solver = PCA(
            count,
            svd_solver=_solver(points, dimensions),
            iterated_power=POWER_ITERATIONS,
            random_state=seed,
        )
        parts = [slice(0, points)]
        solver.fit(points_ND - mean_D)
    explained = np.asarray(solver.explained_variance_ratio_, np.float64)
    kept = explained > NOISE
    scores = [solver.transform(points_ND[part] - mean_D)[:, kept] for part in parts]
    return Pca(np.concatenate(scores).astype(np.float32), explained[kept])


def _moments(points_ND: Points) -> tuple[NDArray[np.float64], float]:
    """The mean (D,), and the sum of squared distances from it, in float64, batch by batch."""
    parts = _batches(len(points_ND), 1)
    sums = [points_ND[part].sum(0, dtype=np.float64) for part in parts]
    mean_D = np.asarray(np.sum(sums, axis=0) / len(points_ND))
    return mean_D, float(sum(np.square(points_ND[part] - mean_D).sum() for part in parts))


def _batches(points: int, minimum: int) -> list[slice]:
    return list(gen_batches(points, max(BATCH, minimum), min_batch_size=minimum))


def _solver(points: int, dimensions: int) -> str:
    if dimensions <= LARGEST_MATRIX:
        return "covariance_eigh"
    return "full" if points <= LARGEST_MATRIX else "randomized"
