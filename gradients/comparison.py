"""How far two maps of one picture agree.

Maps of different methods have different units, so only their order is compared: Spearman's rank
correlation over all pixels, 1 for the same order, 0 for none, -1 for the opposite one.
"""

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
