"""How far two maps of one picture agree.

Maps of different methods have different units, so only their order is compared: Spearman's rank
correlation over all pixels, 1 for the same order, 0 for none, -1 for the opposite one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor


def rank_correlation(first_HW: Tensor, second_HW: Tensor) -> float | None:
    """Spearman's rank correlation of two maps (H, W); None where one of them is constant.

    Raises:
        ValueError: the maps differ in size.
    """
    if first_HW.shape != second_HW.shape:
        raise ValueError(f"maps of {tuple(first_HW.shape)} and {tuple(second_HW.shape)} pixels")
    first, second = (
        np.asarray(m.detach().cpu(), np.float64).ravel() for m in (first_HW, second_HW)
    )
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A saliency map beside a map of another kind, of the same class and picture.

    Attributes:
        other: what made the other map, in words.
        other_unit: what its values measure.
        other_HW: the other map.
        rank_correlation: of the two; None where one of them is constant.
        seconds: that the saliency map took.
        other_seconds: that the other one took.
    """

    other: str
    other_unit: str
    other_HW: Tensor
    rank_correlation: float | None
    seconds: float
    other_seconds: float
