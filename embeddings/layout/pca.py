"""Principal components: the directions in which features differ most, by scikit-learn.

Few dimensions go through their covariance, many through a randomised range finder, and a
memory-mapped file batch by batch. The sign of a component is free; its largest weight is positive.

Shapes: N points, D dimensions, c components.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.utils import gen_batches

from cnnviz.core.errors import CnnvizError
from cnnviz.embeddings.layout.neighbors import Points

BATCH = 8192
LARGEST_MATRIX = 2048  # dimensions up to which the covariance is taken apart, or points in all
POWER_ITERATIONS = 6
# A component whose share of the variance is below this is rounding noise.
NOISE = 1e-7


@dataclass(frozen=True, eq=False)
class Pca:
    """Points in their principal components.

    Attributes:
        scores_Nc: (N, c) float32 coordinates, widest component first.
        explained: (c,) float64, each component's share of the total variance, 0 to 1.
    """

    scores_Nc: NDArray[np.float32]
    explained: NDArray[np.float64]


def pca(points_ND: Points, count: int, *, seed: int = 0) -> Pca:
    """The first principal components of a point set.

    Args:
        points_ND: (N, D) finite numbers; may be a memory-mapped file.
        count: components wanted; fewer come back where the points do not vary in more.
        seed: of the range finder, which only large N and D together need.

    Raises:
        CnnvizError: all points are the same.
    """
    points, dimensions = points_ND.shape
    largest = max(float(points_ND.max()), -float(points_ND.min()))
    spread = float((points_ND.max(0) - points_ND.min(0)).max())
    if spread <= 4 * np.finfo(np.float32).eps * largest:
        raise CnnvizError(
            f"all {points} points are the same, so there is nothing to lay out; "
            "are the images identical, or is the layer dead?"
        )
    wanted = min(count, points - 1, dimensions)
    if isinstance(points_ND, np.memmap):
        solver, parts = IncrementalPCA(wanted), _batches(points, wanted)
        for part in parts:  # `fit` would read the whole file first
            solver.partial_fit(np.array(points_ND[part]))
    else:
        solver, parts = (
            PCA(
                wanted,
                svd_solver=_way(points, dimensions),
                iterated_power=POWER_ITERATIONS,
                random_state=seed,
            ),
            [slice(0, points)],
        )
        points_ND = points_ND.astype(np.float64)
        solver.fit(points_ND)
    explained = np.asarray(solver.explained_variance_ratio_, np.float64)
    kept = explained > NOISE
    scores = [solver.transform(np.array(points_ND[part]))[:, kept] for part in parts]
    return Pca(np.concatenate(scores).astype(np.float32), explained[kept])


def _batches(points: int, least: int) -> list[slice]:
    return list(gen_batches(points, max(BATCH, least), min_batch_size=least))


def _way(points: int, dimensions: int) -> str:
    if dimensions <= LARGEST_MATRIX:
        return "covariance_eigh"
    return "full" if points <= LARGEST_MATRIX else "randomized"
