"""From p-values to suspicions, and the tests that they come from.

Of all suspicions in an audit above 0.95, one in twenty is expected to be there by chance: they are
1 − q with the q-values of Benjamini and Hochberg (1995, J. R. Stat. Soc. B 57, 289-300).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FLIPS = 9_999
FEWEST_OTHERS = 3


def sign_flips(values: NDArray[np.float64], draw: np.random.Generator) -> float:
    """One-sided p-value of mean > 0 where signs could as well be others."""
    mean = values.mean()
    signs = draw.choice((-1.0, 1.0), (FLIPS, len(values)))
    reached = (signs * np.abs(values)).mean(1) >= mean - 1e-12
    return float((1 + reached.sum()) / (1 + FLIPS))


def exact_mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of so many pairs that changed each way, were both ways as likely."""
    from scipy import stats

    changed = lost + gained
    return float(stats.binomtest(lost, changed).pvalue) if changed else 1.0


def against_others(own: float, others: Sequence[float], by_chance: float) -> float | None:
    """One-sided p-value of a share that is larger than the others'.

    The arc sine of its root is held against the interval in which those of the others let one more
    be expected (Student's, for the mean of normal numbers and one to come).

    Args:
        own: the share.
        others: theirs; fewer than `FEWEST_OTHERS` are no ground to judge on (None).
        by_chance: how far the own one's arc sine of the root scatters by chance, at least.
    """
    from scipy import stats

    if len(others) < FEWEST_OTHERS:
        return None
    own_height, *heights = np.arcsin(np.sqrt(np.clip([own, *others], 0, 1))).tolist()
    count = len(heights)
    expected = float(np.std(heights, ddof=1)) * np.sqrt(1 + 1 / count)
    distance = (own_height - float(np.mean(heights))) / float(np.hypot(expected, by_chance))
    return float(stats.t.sf(distance, count - 1))


def suspicions(p_values: Sequence[float | None]) -> list[float | None]:
    """1 − q of each; None of those that are not known."""
    from scipy import stats

    known = [p for p in p_values if p is not None]
    q = iter(stats.false_discovery_control(known).tolist() if known else [])
    return [None if p is None else 1 - next(q) for p in p_values]
