"""Comparing maps of one image, from any methods, regardless of their units.

A map is positive where the image speaks for the class. Shapes: H W rows and columns.
"""

import numpy as np
import numpy.typing as npt
import scipy  # imports `scipy.ndimage` when it is used
import torch
from torch import Tensor

STRONGEST = 0.99  # quantile of the pixels
PLATEAU = 1e-6  # values this close to the peak, relative to it, are the peak


def plateau(map_HW: Tensor, within: float = PLATEAU) -> Tensor:
    """(H, W) bool: where the values are the largest, up to a share `within` of the strongest.

    If they are in several places (connected by sides or corners), it is the place with the most of
    them; of equally large ones the first from the top left.
    """
    highest = map_HW >= map_HW.max() - within * map_HW.abs().max()
    if highest.sum() == 1:
        return highest
    places, _count = scipy.ndimage.label(highest.numpy(force=True), np.ones((3, 3)))
    return torch.from_numpy(places == np.bincount(places[places > 0]).argmax())


def peak(map_HW: Tensor) -> tuple[int, int]:
    """Row and column of the largest value; for a plateau, the pixel nearest to its centre."""
    rows, columns = torch.where(plateau(map_HW))
    center = torch.stack([rows, columns], 1).double().mean(0)
    nearest = int(((rows - center[0]) ** 2 + (columns - center[1]) ** 2).argmin())
    return int(rows[nearest]), int(columns[nearest])


def positive_part(map_HW: Tensor) -> Tensor:
    """The positive values, scaled to a maximum of 1, float64; zeros if there are none."""
    positive = map_HW.double().clamp(min=0)
    return positive / positive.max().clamp(min=torch.finfo(torch.float64).tiny)


def agreement(first_HW: Tensor, second_HW: Tensor) -> Tensor:
    """The mean of the positive parts of two maps, each over its 99 % quantile, float32.

    It is 1 where both are as strong as their strongest hundredth, and half of that where one map is
    and the other is not positive; it is 0 if one of them is positive nowhere. docs/truth.md has the
    rule by which it was chosen.
    """
    parts = [_by_quantile(map_HW) for map_HW in (first_HW, second_HW)]
    if not all(bool(part.any()) for part in parts):
        return torch.zeros_like(first_HW, dtype=torch.float32)
    return ((parts[0] + parts[1]) / 2).float()


def _by_quantile(map_HW: Tensor) -> Tensor:
    """The positive values over their 99 % quantile; over their maximum if that is 0."""
    part = positive_part(map_HW)
    limit = float(np.quantile(part.numpy(force=True), STRONGEST))
    return part / limit if limit > 0 else part


def rank_correlation(first_HW: Tensor, second_HW: Tensor) -> float | None:
    """Spearman's rank correlation of two maps of one size; None if one of them is constant.

    Maps of different methods have different units, so only their order is compared: 1 for the same
    order, 0 for independent ones, -1 for the opposite one.
    """
    if first_HW.shape != second_HW.shape:
        raise ValueError(f"maps of {tuple(first_HW.shape)} and {tuple(second_HW.shape)} pixels")
    first, second = (_ranks(m.detach().cpu().double().numpy()) for m in (first_HW, second_HW))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(map_HW: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1; equal values get their mean rank; scipy.stats has it and imports slowly."""
    _, places, counts = np.unique(map_HW, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places.ravel()]
    return ranks
