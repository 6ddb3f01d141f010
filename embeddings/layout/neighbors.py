"""Exact nearest neighbours by brute force: a tile of the distance matrix at a time.

Squared distances are |a|² + |b|² - 2ab of centred points, so that a tile is one matrix product.
Above a few dimensions the product is taken in float32 and its rounding error is bounded: where the
k-th and the next neighbour lie closer together than that bound, those that could change places are
compared in float64. The neighbours are therefore those that float64 gives, at the price of float32.
No index, no sampling, and no more memory than a tile takes, whatever the number of points.

Shapes: N points, D dimensions, R rows of a tile, C columns of a tile, k neighbours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.errors import UsageError

TILE_ROWS = 640
TILE_COLUMNS = 16384
# Up to this many dimensions float64 costs no more than selecting the smallest of each row.
WIDE_DIMENSIONS = 64
# Float32 is not trusted where its error may be a larger part of a squared distance than this.
RELATIVE_ERROR = 1e-3
# Rounding errors of a product of D terms add up like sqrt(D), not like D (Higham and Mary 2019,
# "A new approach to probabilistic rounding error analysis"); with this factor the bound
# was at least 1.7 times the largest error seen, on points chosen to make it large.
CONFIDENCE = 2.0
# So many neighbours on either side of the k-th are compared in float64; where rounding could reach
# further, all points are.
SPARE = 8
MOST_NUMBERS = 2**24  # in float64, of points that are compared so

Points = NDArray[np.float32] | NDArray[np.float64]
Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest other points of every point, nearest first, ties by index.

    Attributes:
        indices: (N, k) int64.
        distances: (N, k) float32, Euclidean; relative error below 0.1 %, mostly far below.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]


class DistanceTiles:
    """Squared Euclidean distances from some rows of a point set to all of it, tile by tile."""

    def __init__(
        self,
        points_ND: Points,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.points = points_ND
        # float64 is unknown to MPS; the CPU beside it knows it.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.dtype = dtype
        self.mean = self._mean()
        self._whole: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def _mean(self) -> Tensor:
        total = np.zeros(self.points.shape[1], np.float64)
        for start in range(0, len(self.points), TILE_COLUMNS):
            total += self.points[start : start + TILE_COLUMNS].sum(axis=0, dtype=np.float64)
        return torch.from_numpy(total / max(len(self.points), 1)).to(self.device)

    def take(self, which: slice | NDArray[np.int64]) -> Tensor:
        """Some points, centred: (R, D)."""
        chosen = torch.from_numpy(np.array(self.points[which])).to(self.device)
        return (chosen.double() - self.mean).to(self.dtype)

    def _columns(self, start: int) -> tuple[Tensor, Tensor]:
        """A block of points (C, D) and squared norms (1, C); kept where it is the only one."""
        if self._whole is not None:
            return self._whole
        block_CD = self.take(slice(start, start + TILE_COLUMNS))
        made = block_CD, block_CD.double().square().sum(1)[None].to(self.dtype)
        if len(self) <= TILE_COLUMNS:
            self._whole = made
        return made

    def of(self, rows: NDArray[np.int64], own: float = torch.inf) -> Iterator[tuple[int, Tensor]]:
        """The distances of those rows, a block of columns at a time.

        Yields:
            The first column's index, and squared distances (R, C); `own` for a point itself.
        """
        a_RD = self.take(rows)
        norms_R1 = self._norms(a_RD)
        for start, tile_RC in self._products(a_RD):
            tile_RC.add_(norms_R1).clamp_(min=0)
            self._set_own(tile_RC, start, rows, own)
            yield start, tile_RC

    def smallest(self, rows: NDArray[np.int64], k: int) -> tuple[Tensor, Tensor]:
        """Values and columns (R, k) of each row's k smallest, ascending, ties by column.

        A row's own norm changes nothing about their order, so it is added to those k alone.
        """
        a_RD = self.take(rows)
        values = torch.empty(len(rows), 0, dtype=self.dtype, device=self.device)
        columns = torch.empty(len(rows), 0, dtype=torch.int64, device=self.device)
        for start, tile_RC in self._products(a_RD):
            self._set_own(tile_RC, start, rows, torch.inf)
            found, where = _least(tile_RC, min(k, tile_RC.shape[1]))
            values = torch.cat([values, found], dim=1)
            columns = torch.cat([columns, where + start], dim=1)
            if values.shape[1] > k:
                values, kept = torch.topk(values, k, dim=1, largest=False)
                columns = columns.gather(1, kept)
        values = values.add_(self._norms(a_RD)).clamp_(min=0)
        columns, order = columns.sort(dim=1)
        values, stable = values.gather(1, order).sort(dim=1, stable=True)
        return values, columns.gather(1, stable)

    def _norms(self, points_RD: Tensor) -> Tensor:
        return points_RD.double().square().sum(1, keepdim=True).to(self.dtype)

    def _products(self, a_RD: Tensor) -> Iterator[tuple[int, Tensor]]:
        """|b|² - 2ab, (R, C): the squared distances less the rows' own norms."""
        for start in range(0, len(self), TILE_COLUMNS):
            b_CD, norms_1C = self._columns(start)
            yield start, torch.addmm(norms_1C, a_RD, b_CD.T, alpha=-2)

    def _set_own(self, tile_RC: Tensor, start: int, rows: NDArray[np.int64], own: float) -> None:
        inside = np.flatnonzero((rows >= start) & (rows < start + tile_RC.shape[1]))
        here = torch.from_numpy(inside).to(self.device)
        tile_RC[here, torch.from_numpy(rows[inside] - start).to(self.device)] = own

    def error(self, squared_R: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """A bound (R,) on the rounding error of squared distances up to `squared_R` (R,)."""
        reach = self.take(rows).double().norm(dim=1) + squared_R.double().sqrt()
        unit = torch.finfo(self.dtype).eps / 2
        scale = (2 * CONFIDENCE * self.points.shape[1] ** 0.5 + 4) * unit
        bound: Tensor = scale * reach.square()
        return bound


def row_tiles(count: int, most_pairs: int | None = None) -> Iterator[NDArray[np.int64]]:
    """range(count) in pieces of one tile's height.

    Args:
        count: points in all.
        most_pairs: with whole rows of `count`, a piece shall hold no more pairs than this.
    """
    height = TILE_ROWS if most_pairs is None else min(TILE_ROWS, max(1, most_pairs // count))
    for start in range(0, count, height):
        yield np.arange(start, min(start + height, count))


def _least(values_RC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns (R, k) of each row's k smallest, ascending.

    The k smallest lie in the k groups of columns with the smallest minima; so most columns are
    looked at once, to find the minima.
    """
    rows, columns = values_RC.shape
    size = int((columns / k) ** 0.5)
    if size < 2:
        return torch.topk(values_RC, k, dim=1, largest=False)
    count = columns // size
    groups_RSG = values_RC[:, : size * count].view(rows, size, count)
    group_Rk = torch.topk(groups_RSG.amin(1), k, dim=1, largest=False, sorted=False).indices
    steps_S1 = torch.arange(size, device=values_RC.device)[:, None] * count
    left = torch.arange(size * count, columns, device=values_RC.device).expand(rows, -1)
    where = torch.cat([(group_Rk[:, None] + steps_S1).flatten(1), left], dim=1)
    least, kept = torch.topk(values_RC.gather(1, where), k, dim=1, largest=False)
    return least, where.gather(1, kept)


def _doubts(
    tiles: DistanceTiles, rows: NDArray[np.int64], values: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Which rows (R,) bool float32 does not settle: by a few places around the k-th, or at all."""
    error = tiles.error(values[:, k - 1], rows)
    at_all = values[:, 0] * RELATIVE_ERROR < error
    if values.shape[1] == k:
        return torch.zeros_like(at_all), at_all
    low, high = values[:, k - 1] - 2 * error, values[:, k - 1] + 2 * error
    close = values[:, k] <= high
    more = values.shape[1] < len(tiles) - 1
    beyond = values[:, -1] <= high if more else torch.zeros_like(close)
    before = values[:, k - SPARE - 1] >= low if k > SPARE else torch.zeros_like(close)
    at_all = at_all | (close & (beyond | before))
    return close & ~at_all, at_all


def _swapped(
    tiles: DistanceTiles, rows: NDArray[np.int64], columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and columns (R, c) in the order that float64 gives, ties by column."""
    columns = columns.sort(dim=1).values
    count, dimensions = columns.shape[1], tiles.points.shape[1]
    exact = torch.empty(columns.shape, dtype=tiles.dtype, device=tiles.device)
    some = max(1, MOST_NUMBERS // (count * dimensions))
    for start in range(0, len(rows), some):
        part = slice(start, start + some)
        others = tiles.take(columns[part].cpu().numpy().ravel()).view(-1, count, dimensions)
        exact[part] = (others - tiles.take(rows[part])[:, None]).square().sum(2)
    exact, order = exact.sort(dim=1, stable=True)
    return exact, columns.gather(1, order)


def _settled(tiles: DistanceTiles, rows: NDArray[np.int64], k: int) -> tuple[Tensor, Tensor]:
    """The k smallest in float64, with distances that are rounding noise set to zero."""
    values, columns = tiles.smallest(rows, k)
    noise = tiles.error(torch.zeros(len(rows), device=tiles.device), rows)
    return torch.where(values <= noise[:, None], 0, values), columns


def _precise_enough() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


def nearest(
    points_ND: Points,
    k: int,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = lambda _steps: None,
) -> Neighbors:
    """The k nearest other points of every point, by Euclidean distance; exact.

    Args:
        points_ND: (N, D) finite numbers; may be a memory-mapped file.
        k: from 1 to N - 1.
        device: where the tiles are computed.
        progress: called with the number of points just done.

    Raises:
        UsageError: k does not fit the number of points.
    """
    count, dimensions = points_ND.shape
    if not 1 <= k < count:
        raise UsageError(f"{count} points have no {k} neighbours each; 1 to {count - 1} will do")
    narrow = dimensions > WIDE_DIMENSIONS and _precise_enough()
    wide = DistanceTiles(points_ND, device, torch.float64)
    fast = DistanceTiles(points_ND, device, torch.float32) if narrow else None
    indices = np.empty((count, k), np.int64)
    distances = np.empty((count, k), np.float32)
    for rows in row_tiles(count):
        again = rows
        if fast is not None:
            values, columns = fast.smallest(rows, min(k + SPARE, count - 1))
            some, at_all = _doubts(fast, rows, values, k)
            around = slice(max(0, k - SPARE), None)
            exact, order = _swapped(wide, rows[some.cpu().numpy()], columns[some, around])
            values[some, around], columns[some, around] = exact.to(values.dtype), order
            again = rows[at_all.cpu().numpy()]
            indices[rows] = columns[:, :k].cpu().numpy()
            distances[rows] = values[:, :k].sqrt().cpu().numpy()
        if len(again):
            values, columns = _settled(wide, again, k)
            indices[again] = columns.cpu().numpy()
            distances[again] = values.sqrt().cpu().numpy()
        progress(len(rows))
    return Neighbors(indices, distances)
