"""Nearest neighbors: exact ones by brute force, in tiles of the distance matrix.

Squared distances are |a|² + |b|² - 2ab of centered points in float64, so a tile is one matrix
product, and memory does not grow with the number of points. For very many points on a CPU, the
neighbors are approximate, by openTSNE's index (Annoy).

Shapes: N points, D dimensions, R rows of a tile, C columns of a tile, k neighbors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE.affinity import get_knn_index
from torch import Tensor

from cnnviz.core.device import send
from cnnviz.core.errors import UsageError

LARGEST_EXACT = 25_000
"""Number of points above which the index is faster than brute force on a CPU with two cores."""
TILE_ROWS = 640
TILE_COLUMNS = 16384

Points = NDArray[np.float32] | NDArray[np.float64]
Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest other points of every point, nearest first, ties by index.

    Attributes:
        indices: (N, k) int64.
        distances: (N, k) float32, Euclidean; 0 where they are rounding noise.
        exact: False for approximate neighbors.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]
    exact: bool = True


class DistanceTiles:
    """Squared Euclidean distances from some rows of a point set to all of it, tile by tile."""

    def __init__(self, points_ND: Points, device: torch.device | str = "cpu") -> None:
        self.points = points_ND
        # MPS does not support float64.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        total = np.zeros(points_ND.shape[1], np.float64)
        for start in range(0, len(points_ND), TILE_COLUMNS):
            total += points_ND[start : start + TILE_COLUMNS].sum(axis=0, dtype=np.float64)
        self._mean = send(torch.from_numpy(total / max(len(points_ND), 1)), self.device)
        self._whole = self._take(slice(None)) if len(points_ND) <= TILE_COLUMNS else None

    def _take(self, which: slice | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Some points, centered (R, D), and their squared norms (R,)."""
        chosen = send(torch.from_numpy(np.array(self.points[which])), self.device)
        centered = chosen.double() - self._mean
        return centered, centered.square().sum(1)

    def of(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Tensor]]:
        """Yields blocks of columns: the first one's index and squared distances (R, C).

        The distance of a point to itself is infinite.
        """
        a_RD, norms_R = self._take(rows)
        # Errors of a product grow like sqrt(D) (Higham and Mary 2019); below that all is noise.
        noise_R = 8 * torch.finfo(torch.float64).eps * self.points.shape[1] ** 0.5 * norms_R
        for start in range(0, len(self.points), TILE_COLUMNS):
            part = slice(start, start + TILE_COLUMNS)
            b_CD, norms_C = self._take(part) if self._whole is None else self._whole
            tile_RC = torch.addmm(norms_C[None], a_RD, b_CD.T, alpha=-2).add_(norms_R[:, None])
            tile_RC[tile_RC <= noise_R[:, None]] = 0
            inside = np.flatnonzero((rows >= start) & (rows < start + len(norms_C)))
            own = send(torch.from_numpy(np.stack([inside, rows[inside] - start])), self.device)
            tile_RC[own[0], own[1]] = torch.inf
            yield start, tile_RC


def row_tiles(count: int, max_pairs: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Splits range(count) into tiles of rows."""
    height = TILE_ROWS if max_pairs is None else min(TILE_ROWS, max(1, max_pairs // count))
    for start in range(0, count, height):
        yield np.arange(start, min(start + height, count))


def nearest(
    points_ND: Points,
    k: int,
    *,
    rows: NDArray[np.int64] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _steps: None,
) -> Neighbors:
    """Finds the k nearest other points of every point, or of those in `rows`; exact.

    `progress` is called with the number of points just done. A UsageError where k does not fit the
    number of points.
    """
    count = len(points_ND)
    if not 1 <= k < count:
        raise UsageError(f"{count} points do not have {k} neighbors each; use 1 to {count - 1}")
    tiles = DistanceTiles(points_ND, device)
    queries = np.arange(count) if rows is None else rows
    indices = np.empty((len(queries), k), np.int64)
    distances = np.empty((len(queries), k), np.float32)
    for places in row_tiles(len(queries)):
        rows = queries[places]
        values = torch.empty(len(rows), 0, dtype=torch.float64, device=tiles.device)
        columns = torch.empty(len(rows), 0, dtype=torch.int64, device=tiles.device)
        for start, tile_RC in tiles.of(rows):
            low, where = torch.topk(tile_RC, min(k, tile_RC.shape[1]), dim=1, largest=False)
            values, columns = torch.cat([values, low], 1), torch.cat([columns, where + start], 1)
        columns, order = columns.sort(dim=1)  # ties go by index
        values, order = values.gather(1, order).sort(dim=1, stable=True)
        indices[places] = columns.gather(1, order)[:, :k].cpu().numpy()
        distances[places] = values[:, :k].sqrt().cpu().numpy()
        progress(len(rows))
    return Neighbors(indices, distances)


def near_points(
    points_ND: Points,
    k: int,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress = lambda _steps: None,
) -> Neighbors:
    """Finds the k nearest other points of every point the faster way: exact, or nearly so."""
    count = len(points_ND)
    if count <= LARGEST_EXACT or torch.device(device).type != "cpu":
        return nearest(points_ND, k, device=device, progress=progress)
    index = get_knn_index(
        points_ND, "annoy", k, "euclidean", n_jobs=torch.get_num_threads(), random_state=seed
    )
    indices, distances = index.build()
    progress(count)
    return Neighbors(indices.astype(np.int64), distances.astype(np.float32), exact=False)
