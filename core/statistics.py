"""The statistics that several analyses share: intervals, paired tests, many p-values at once.

Whoever draws random numbers passes the generator or the seed, so that results can be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # imports `scipy.stats`, which takes long, when it is used
from numpy.typing import ArrayLike, NDArray

FLIPS = 9_999
EXACT = 20
"""The signs of so many values are flipped in all ways."""
RESAMPLES = 2_000
CONFIDENCE = 0.95
MINIMUM_OTHERS = 3
"""Fewer values to compare with give no p-value."""


@dataclass(frozen=True)
class Mean:
    """A mean over images and its confidence interval."""

    value: float
    interval: tuple[float, float]
    count: int


def percentile_interval(resampled: ArrayLike) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrap values (Efron 1979); NaN is ignored."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(np.asarray(resampled, np.float64), [tail, 100 - tail]).tolist()
    return low, high


def mean_of(values_N: NDArray[np.float64], seed: int) -> Mean | None:
    """The mean of the values that are not NaN, with its bootstrap interval; None if all are NaN."""
    known = values_N[~np.isnan(values_N)]
    if not len(known):
        return None
    draw = np.random.default_rng(seed)
    means = [known[draw.integers(0, len(known), len(known))].mean() for _ in range(RESAMPLES)]
    return Mean(float(known.mean()), percentile_interval(means), len(known))


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, JASA 22, 209-212); count is at least 1."""
    interval = scipy.stats.binomtest(correct, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def exact_mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value of McNemar (1947, Psychometrika 12, 153-157).

    `lost` and `gained` count the pairs that changed one way and the other.
    """
    changed = lost + gained
    return float(scipy.stats.binomtest(lost, changed).pvalue) if changed else 1.0


def signed_rank(values_N: NDArray[np.float64]) -> float | None:
    """Two-sided p-value of Wilcoxon's signed-rank test; None if all values are 0 or NaN."""
    known = values_N[~np.isnan(values_N)]
    return float(scipy.stats.wilcoxon(known).pvalue) if known.any() else None


def sign_flips(values: NDArray[np.float64], draw: np.random.Generator) -> float:
    """One-sided p-value of mean > 0 by flipping the signs of the values.

    Many values have random signs; the result is then at most the bound of Hoeffding (1963, JASA 58,
    13-30), since random signs show no p-value below 1/10,000.
    """
    total = values.sum()
    if len(values) <= EXACT:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((sums >= total - 1e-12).mean())
    signs = draw.choice((-1.0, 1.0), (FLIPS, len(values)))
    reached = (signs * np.abs(values)).sum(1) >= total - 1e-12
    bound = np.exp(-(max(total, 0.0) ** 2) / max(2 * (values**2).sum(), np.finfo(float).tiny))
    return float(min((1 + reached.sum()) / (1 + FLIPS), bound))


def against_others(share: float, others: Sequence[float], by_chance: float) -> float | None:
    """One-sided p-value that a share is larger than others of its kind.

    The arc sine of its square root is compared with Student's prediction interval of the others
    (normal numbers: the mean of those seen, and one more).

    Args:
        share: the share to judge, 0 to 1.
        others: the shares to compare with; with fewer than `MINIMUM_OTHERS` the result is None.
        by_chance: minimum standard deviation of the arc sine that chance alone causes.
    """
    if len(others) < MINIMUM_OTHERS:
        return None
    height, *heights = np.arcsin(np.sqrt(np.clip([share, *others], 0, 1))).tolist()
    count = len(heights)
    expected = float(np.std(heights, ddof=1)) * np.sqrt(1 + 1 / count)
    distance = (height - float(np.mean(heights))) / float(np.hypot(expected, by_chance))
    return float(scipy.stats.t.sf(distance, count - 1))


def suspicions(p_values: Sequence[float | None]) -> list[float | None]:
    """1 - q of each p-value (Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57, 289-300).

    Of all that are above 0.95, one in twenty is expected to be there by chance. None stays None.
    """
    known = [p for p in p_values if p is not None]
    q = iter(scipy.stats.false_discovery_control(known).tolist() if known else [])
    return [None if p is None else 1 - next(q) for p in p_values]
