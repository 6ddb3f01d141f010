"""Gabor fits: which Gabor filter a kernel resembles most, and how much.

A Gabor filter is a wave under a Gaussian window. Simple cells of the visual cortex respond to such
patterns, and first layers of trained networks tend to learn them. Each kernel is fitted by least
squares,

    w[c, x, y] ~ b[c] + a[c] exp(-u^2 / 2 s_u^2 - v^2 / 2 s_v^2) cos(2 pi u / wavelength + phase),

with u across the stripes and v along them. The colours share one pattern. Their amplitudes a and
offsets b are linear and solved in closed form, so only the pattern's parameters are searched,
starting from the best few entries of a coarse dictionary. R^2 is the share of variance explained.

Seven parameters fit almost any kernel of nine pixels. So below 5 pixels the window is round and
centred (four parameters), and kernels with fewer than two weights per parameter are not fitted.
`shuffled` puts the pixels into random order: the R^2 of these kernels is what chance gives.

Legend: F filters, C channels, H W rows and columns, P positions (H x W), D dictionary entries,
K sets of parameters at once.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import product, repeat

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from cnnviz.filters.kernels.results import GABOR_LIKE, Fits, GaborFit

Array = NDArray[np.float64]

_STARTS = 4
_MAX_EVALUATIONS = 100
_STEP = 1.5e-8  # of a parameter, for slopes: the square root of the rounding of float64
_SHORTEST_WAVE = 2.0  # pixels: shorter ones alias
_NARROWEST = 0.4  # pixels, standard deviation of the window: a single pixel's worth


def can_fit(channels: int, height: int, width: int) -> bool:
    """Whether kernels of that shape have enough weights to tell a Gabor filter from chance."""
    parameters = (7 if _is_large(height, width) else 4) + 2 * channels
    return min(height, width) >= 3 and channels * height * width >= 2 * parameters


def fit_gabor(kernel_CHW: Array) -> GaborFit | None:
    """The least-squares Gabor filter of one kernel; None if every channel is constant.

    Raises:
        ValueError: the kernel has too few weights (`can_fit`).
    """
    channels, height, width = kernel_CHW.shape
    if not can_fit(channels, height, width):
        raise ValueError(f"a {channels}x{height}x{width} kernel has too few weights for a fit")
    weights_CP = kernel_CHW.reshape(channels, -1).astype(np.float64)
    weights_CP = weights_CP - weights_CP.mean(axis=1, keepdims=True)
    total = float(np.square(weights_CP).sum())
    if total <= 1e-20 * max(1.0, float(np.square(kernel_CHW).sum())):
        return None
    weights_CP /= np.sqrt(total)
    space = _Space(height, width)
    fits = [
        least_squares(
            space.residuals,
            start,
            jac=space.slopes,
            args=(weights_CP,),
            bounds=space.bounds,
            method="dogbox",
            ftol=1e-7,
            xtol=1e-7,
            max_nfev=_MAX_EVALUATIONS,
        )
        for start in _starts(weights_CP, height, width)
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    return space.describe(best.x, weights_CP, np.sqrt(total), r2=1 - 2 * float(best.cost))


def fit_gabors(
    kernels_FCHW: Array,
    alive: Iterable[bool] = repeat(True),
    advance: Callable[[int], None] = lambda _filters: None,
) -> Fits:
    """Fits each kernel that is alive; calls `advance` with 1 after each kernel."""
    fits: list[GaborFit | None] = []
    for kernel_CHW, fitted in zip(kernels_FCHW, alive, strict=False):
        fits.append(fit_gabor(kernel_CHW) if fitted else None)
        advance(1)
    return tuple(fits)


def shuffled(kernels_FCHW: Array, seed: int = 0) -> Array:
    """The kernels with their pixels in random order, the same for all channels of a kernel."""
    count, channels, height, width = kernels_FCHW.shape
    order_FP = np.random.default_rng(seed).permuted(
        np.tile(np.arange(height * width), (count, 1)), axis=1
    )
    flat_FCP = kernels_FCHW.reshape(count, channels, -1)
    return np.take_along_axis(flat_FCP, order_FP[:, None], axis=2).reshape(kernels_FCHW.shape)


def gabor_pattern(fit: GaborFit, height: int, width: int) -> Array:
    """(C, H, W) the fitted filter, without the mean of each channel."""
    right, up = fit.centre
    angle, phase = np.deg2rad(fit.orientation), np.deg2rad(fit.phase)
    wave_P = _Space(height, width).wave(right, up, fit.wavelength, *fit.window, angle, phase)
    pattern_CHW: Array = np.multiply.outer(fit.amplitudes, wave_P.reshape(height, width))
    return pattern_CHW


def gabor_share(fits: Fits) -> float:
    """Share of the kernels with R^2 above `GABOR_LIKE`; kernels without a fit count as below."""
    return sum(fit is not None and fit.r2 > GABOR_LIKE for fit in fits) / max(1, len(fits))


def _is_large(height: int, width: int) -> bool:
    return min(height, width) >= 5


class _Space:
    """The search space of one kernel shape: parameters to patterns.

    The parameters are window across, wavelength, orientation and phase; for kernels of at least 5
    pixels also centre right, centre up and window along.
    """

    def __init__(self, height: int, width: int) -> None:
        rows_HW, columns_HW = np.mgrid[:height, :width]
        self.right_P: Array = (columns_HW - (width - 1) / 2).ravel()
        self.up_P: Array = ((height - 1) / 2 - rows_HW).ravel()
        self.reach = reach = max(height, width)
        self.large = _is_large(height, width)
        count = 7 if self.large else 4
        half, turns = reach / 2, np.inf
        lowest = (_NARROWEST, _SHORTEST_WAVE, -turns, -turns, -half, -half, _NARROWEST)
        highest = (reach, 2.0 * reach, turns, turns, half, half, reach)
        self.bounds = np.array(lowest[:count]), np.array(highest[:count])

    def named(self, parameters: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Centre right and up, wavelength, window across and along."""
        across, wave = parameters[..., 0], parameters[..., 1]
        if not self.large:
            return np.zeros_like(wave), np.zeros_like(wave), wave, across, across
        return parameters[..., 4], parameters[..., 5], wave, across, parameters[..., 6]

    def entry(self, right: float, up: float, wave: float, window: float, angle: float) -> Array:
        """The parameters of a pattern with a round window and phase 0."""
        return np.array([window, wave, angle, 0.0, *([right, up, window] if self.large else [])])

    def wave(self, *parameters: ArrayLike) -> Array:
        """(P,), or (K, P) for K values each, the wave under its window, minus its mean.

        The parameters are centre right and up, wavelength, window across and along, angle, phase.
        """
        columns = [np.asarray(value, np.float64)[..., None] for value in parameters]
        right, up, length, across, along, angle, phase = columns
        cos, sin = np.cos(angle), np.sin(angle)
        x_P, y_P = self.right_P - right, self.up_P - up
        u_P, v_P = cos * x_P + sin * y_P, cos * y_P - sin * x_P
        window_P = np.exp(-np.square(u_P / across) / 2 - np.square(v_P / along) / 2)
        wave_P: Array = window_P * np.cos(2 * np.pi / length * u_P + phase)
        wave_P -= wave_P.mean(axis=-1, keepdims=True)
        return wave_P

    def pattern(self, parameters: Array) -> Array:
        """(P,) the wave of these parameters; (K, P) for K rows of them."""
        return self.wave(*self.named(parameters), parameters[..., 2], parameters[..., 3])

    def residuals(self, parameters: Array, weights_CP: Array) -> Array:
        """(C * P,), or (K, C * P), the residuals of the best multiple of the pattern."""
        pattern_P = self.pattern(parameters)
        amplitudes_C = _amplitudes(pattern_P, weights_CP)
        left = weights_CP - amplitudes_C[..., None] * pattern_P[..., None, :]
        return left.reshape(*parameters.shape[:-1], -1)

    def slopes(self, parameters: Array, weights_CP: Array) -> Array:
        """(C * P, parameters) the Jacobian of the residuals, by finite differences."""
        steps = _STEP * np.maximum(1.0, np.abs(parameters))
        moved = parameters + np.diag(steps)
        both = self.residuals(np.vstack([parameters, moved]), weights_CP)
        slopes: Array = ((both[1:] - both[0]) / steps[:, None]).T
        return slopes

    def describe(self, parameters: Array, weights_CP: Array, scale: float, r2: float) -> GaborFit:
        """The fit in degrees and pixels, with a unique sign and orientation."""
        right, up, wave, across, along = self.named(parameters)
        amplitudes_C = scale * _amplitudes(self.pattern(parameters), weights_CP)
        angle, phase = np.rad2deg(parameters[2:4])
        if angle % 360 >= 180:
            phase = -phase
        if amplitudes_C[np.abs(amplitudes_C).argmax()] < 0:
            amplitudes_C, phase = -amplitudes_C, phase + 180
        return GaborFit(
            orientation=float(angle % 180),
            wavelength=float(wave),
            phase=float(phase % 360),
            centre=(float(right), float(up)),
            window=(float(across), float(along)),
            amplitudes=tuple(amplitudes_C.tolist()),
            r2=min(1.0, max(0.0, r2)),
        )


def _amplitudes(pattern_P: Array, weights_CP: Array) -> Array:
    """(C,), or (K, C), the least-squares factors of the pattern."""
    squares = np.square(pattern_P).sum(axis=-1, keepdims=True)
    amplitudes_C: Array = pattern_P @ weights_CP.T / (squares + 1e-12)
    return amplitudes_C


@lru_cache(maxsize=8)
def _dictionary(height: int, width: int) -> tuple[Array, Array]:
    """(D, parameters) coarse patterns and (D, 2, P) orthonormal bases of their phases."""
    space = _Space(height, width)
    reach = space.reach
    entries, pairs = [], []
    places = (-reach / 4, 0.0, reach / 4) if space.large else (0.0,)
    waves, windows = np.geomspace(2.2, 1.6 * reach, 6), (reach / 6, reach / 3)
    angles = np.arange(12) * np.pi / 12
    for right, up, wave, window, angle in product(places, places, waves, windows, angles):
        entry = space.entry(right, up, float(wave), max(0.5, window), angle)
        quarter = entry.copy()
        quarter[3] = np.pi / 2
        pair_P2 = np.stack([space.pattern(entry), space.pattern(quarter)], axis=1)
        entries.append(entry)
        pairs.append(np.linalg.qr(pair_P2)[0].T)
    return np.array(entries), np.array(pairs)


def _starts(weights_CP: Array, height: int, width: int) -> list[Array]:
    """The best dictionary entries of different orientation or wavelength, at their best phases."""
    space = _Space(height, width)
    entries_D, pairs_D2P = _dictionary(height, width)
    parts_D2C = pairs_D2P @ weights_CP.T
    scores_D = np.square(parts_D2C).sum(axis=(1, 2))
    starts: dict[tuple[float, float], Array] = {}
    for index in np.argsort(-scores_D, kind="stable"):
        entry = entries_D[index]
        kind = (float(entry[1]), float(entry[2]))
        if kind not in starts:
            starts[kind] = _with_best_phase(space, entry, weights_CP)
        if len(starts) == _STARTS:
            break
    return list(starts.values())


def _with_best_phase(space: _Space, entry: Array, weights_CP: Array) -> Array:
    candidates = [entry.copy() for _ in range(4)]
    for quarter, candidate in enumerate(candidates):
        candidate[3] = quarter * np.pi / 4
    return min(candidates, key=lambda p: float(np.square(space.residuals(p, weights_CP)).sum()))
