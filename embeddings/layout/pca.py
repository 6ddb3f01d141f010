"""Principal components: the directions in which features differ most.

Three ways to the same components, by the shape of the data: the covariance where there are few
dimensions, the Gram matrix where there are few points, and a randomised range finder where there
are many of both (Halko, Martinsson and Tropp 2011, "Finding structure with randomness", algorithm
4.4). All of them pass over the points block by block, so that a memory-mapped file will do. The
sign of a component is free; it is fixed by making its largest weight positive.

Shapes: N points, D dimensions, c components, B points of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.errors import CnnvizError
from cnnviz.embeddings.layout.neighbors import Points

BLOCK = 8192
LARGEST_MATRIX = 2048
OVERSAMPLING = 20
POWER_ITERATIONS = 6
# A component whose share of the variance is below this is rounding noise.
NOISE = 1e-12


@dataclass(frozen=True, eq=False)
class Pca:
    """Points in their principal components.

    Attributes:
        scores_Nc: (N, c) float32 coordinates, widest component first.
        explained: (c,) float64, each component's share of the total variance, 0 to 1.
    """

    scores_Nc: NDArray[np.float32]
    explained: NDArray[np.float64]


class _Centred:
    """The points minus their mean, in blocks of float64 on the device."""

    def __init__(self, points_ND: Points, device: torch.device | str) -> None:
        self._points = points_ND
        # float64 is unknown to MPS; the CPU beside it knows it.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.count, self.dimensions = points_ND.shape
        self._mean = torch.zeros(self.dimensions, dtype=torch.float64, device=self.device)
        self._mean = sum((b.sum(0) for _, b in self.blocks()), self._mean) / self.count

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of range(N) and the (B, D) points in them."""
        for start in range(0, self.count, BLOCK):
            part = slice(start, min(start + BLOCK, self.count))
            block = torch.from_numpy(np.array(self._points[part])).to(self.device)
            yield part, block.double() - self._mean

    def times(self, weights_Dc: Tensor) -> Tensor:
        """(N, c): the points projected on the columns of a matrix."""
        return torch.cat([block @ weights_Dc for _, block in self.blocks()])

    def transposed_times(self, values_Nc: Tensor) -> Tensor:
        """(D, c): the points weighted and summed."""
        start = torch.zeros(
            self.dimensions, values_Nc.shape[1], dtype=torch.float64, device=self.device
        )
        return sum((block.T @ values_Nc[part] for part, block in self.blocks()), start)

    def variance(self) -> float:
        """The sum of squares of all coordinates."""
        return sum(float(block.square().sum()) for _, block in self.blocks())


def _from_covariance(points: _Centred, count: int) -> Tensor:
    start = torch.zeros(
        points.dimensions, points.dimensions, dtype=torch.float64, device=points.device
    )
    covariance_DD = sum((block.T @ block for _, block in points.blocks()), start)
    vectors: Tensor = torch.linalg.eigh(covariance_DD).eigenvectors
    return vectors.flip(1)[:, :count]


def _from_gram(points: _Centred, count: int) -> Tensor:
    columns = [points.times(block.T) for _, block in points.blocks()]
    gram_NN = torch.cat(columns, dim=1)
    values, vectors = torch.linalg.eigh((gram_NN + gram_NN.T) / 2)
    kept = vectors.flip(1)[:, :count][:, (values.flip(0) > NOISE * values[-1])[:count]]
    orthonormal: Tensor = torch.linalg.qr(points.transposed_times(kept)).Q
    return orthonormal


def _randomised(points: _Centred, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = count + OVERSAMPLING
    basis = torch.randn(points.dimensions, width, generator=generator, dtype=torch.float64)
    basis = basis.to(points.device)
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(points.transposed_times(points.times(basis))).Q
    small = points.times(basis)
    rotation: Tensor = torch.linalg.eigh(small.T @ small).eigenvectors.flip(1)
    return (basis @ rotation)[:, :count]


def _fix_signs(weights_Dc: Tensor) -> Tensor:
    largest = weights_Dc.abs().argmax(0, keepdim=True)
    return weights_Dc * weights_Dc.gather(0, largest).sign()


def pca(points_ND: Points, count: int, *, device: torch.device | str = "cpu", seed: int = 0) -> Pca:
    """The first principal components of a point set.

    Args:
        points_ND: (N, D) finite numbers; may be a memory-mapped file.
        count: components wanted; fewer come back where the points do not vary in more.
        device: where it is computed.
        seed: of the range finder, which only large N and D together need.

    Raises:
        CnnvizError: all points are the same.
    """
    points = _Centred(points_ND, device)
    total = points.variance()
    largest = max(float(points_ND.max()), -float(points_ND.min()))
    if total <= (np.finfo(np.float32).eps * largest) ** 2 * points_ND.size:
        raise CnnvizError(
            f"all {points.count} points are the same, so there is nothing to lay out; "
            "are the images identical, or is the layer dead?"
        )
    wanted = min(count, points.count - 1, points.dimensions)
    if points.dimensions <= LARGEST_MATRIX:
        weights = _from_covariance(points, wanted)
    elif points.count <= LARGEST_MATRIX:
        weights = _from_gram(points, wanted)
    else:
        weights = _randomised(points, wanted, seed)
    scores = points.times(_fix_signs(weights))
    explained = (scores.square().sum(0) / total).cpu().numpy()
    kept = explained > NOISE
    return Pca(scores.float().cpu().numpy()[:, kept], explained[kept])
