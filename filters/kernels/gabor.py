"""How much a kernel looks like a Gabor filter, and which one.

A Gabor filter is a wave under a Gaussian window: what simple cells of the visual cortex respond to,
and what first layers of trained networks tend to become. Each kernel is fitted by least squares,

    w[c, x, y] ~ b[c] + a[c] exp(-u^2 / 2 s_u^2 - v^2 / 2 s_v^2) cos(2 pi u / wavelength + phase),

with u across the stripes and v along them. The colours share one pattern; their amplitudes a and
offsets b are linear and solved in closed form, so the search runs over the pattern alone. It starts
at the best few of a coarse dictionary. The variance that the fit explains is R^2.

A pattern with seven parameters fits anything that has nine pixels, so small kernels need caution:
below 5 pixels the window is round and sits in the middle (four parameters), kernels with fewer than
two weights per parameter are not fitted at all, and `shuffled` gives the same weights with their
pixels in random order: what their R^2 comes to is what R^2 is worth without spatial structure.

Legend: F filters, C channels, H W rows and columns, P positions (H x W), D dictionary entries,
K sets of parameters at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

GABOR_LIKE = 0.7
"""R^2 above which a kernel counts as a Gabor filter."""

_STARTS = 4
_MAX_EVALUATIONS = 100
_STEP = 1.5e-8  # of a parameter, for slopes: the square root of the rounding of float64
_SHORTEST_WAVE = 2.0  # pixels: shorter ones alias
_NARROWEST = 0.4  # pixels, standard deviation of the window: a single pixel's worth


@dataclass(frozen=True)
class GaborFit:
    """The Gabor filter nearest to a kernel.

    Attributes:
        orientation: direction in which the wave runs, across the stripes, in degrees from 0 to
            180, counter-clockwise as seen from the horizontal: 0 has vertical stripes.
        wavelength: pixels, from 2 to twice the kernel's longer side. Near that upper end the
            kernel is a blob and its orientation means little.
        phase: degrees from 0 to 360 at the window's centre, of the strongest colour: 0 is a bright
            line, 180 a dark one, 90 and 270 are edges.
        centre: the window's centre, (right, up) of the kernel's middle, pixels.
        window: standard deviations across and along the stripes, pixels.
        amplitudes: one for each input channel; the strongest is positive.
        r2: share of the kernel's variance (about each channel's mean) that the fit explains, 0..1.
    """

    orientation: float
    wavelength: float
    phase: float
    centre: tuple[float, float]
    window: tuple[float, float]
    amplitudes: tuple[float, ...]
    r2: float

    def pattern(self, height: int, width: int) -> Array:
        """(C, H, W) the fitted filter itself, each channel's mean taken off."""
        space = _Space(height, width)
        right, up = self.centre
        angle = np.deg2rad(self.orientation)
        wave_P = space.wave(right, up, self.wavelength, *self.window, angle, np.deg2rad(self.phase))
        pattern_CHW: Array = np.array(self.amplitudes)[:, None, None] * wave_P.reshape(
            height, width
        )
        return pattern_CHW


def can_fit(channels: int, height: int, width: int) -> bool:
    """Whether kernels of that shape hold enough weights to tell a Gabor filter from chance."""
    parameters = (7 if _is_large(height, width) else 4) + 2 * channels
    return min(height, width) >= 3 and channels * height * width >= 2 * parameters


def fit_gabor(kernel_CHW: Array) -> GaborFit | None:
    """The least-squares Gabor filter of one kernel; None where every channel is constant.

    Raises:
        ValueError: `can_fit` denies the shape.
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
    scale = np.sqrt(total)
    return space.describe(best.x, weights_CP, scale, r2=1 - 2 * float(best.cost))


def fit_gabors(kernels_FCHW: Array) -> tuple[GaborFit | None, ...]:
    """`fit_gabor` of each kernel."""
    return tuple(fit_gabor(kernel_CHW) for kernel_CHW in kernels_FCHW)


def shuffled(kernels_FCHW: Array, seed: int = 0) -> Array:
    """The kernels with their pixels in random order, the same for all channels of a kernel."""
    count, channels, height, width = kernels_FCHW.shape
    order_FP = np.random.default_rng(seed).permuted(
        np.tile(np.arange(height * width), (count, 1)), axis=1
    )
    flat_FCP = kernels_FCHW.reshape(count, channels, -1)
    return np.take_along_axis(flat_FCP, order_FP[:, None], axis=2).reshape(kernels_FCHW.shape)


def gabor_share(fits: Sequence[GaborFit | None]) -> float:
    """Share of the kernels with R^2 above `GABOR_LIKE`; kernels without a fit count as unlike."""
    return sum(fit is not None and fit.r2 > GABOR_LIKE for fit in fits) / max(1, len(fits))


def _is_large(height: int, width: int) -> bool:
    return min(height, width) >= 5


class _Space:
    """The search space of one kernel shape: bounded numbers in, patterns over the pixels out.

    The parameters are window across, wavelength, orientation and phase, and in kernels from
    5 pixels on also centre right, centre up and window along.
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

    def wave(
        self,
        *numbers: ArrayLike,
    ) -> Array:
        """(P,), or (K, P) of K numbers each, the wave under its window, its mean taken off.

        Args:
            numbers: centre right and up, wavelength, window across and along, angle, phase.
        """
        columns = [np.asarray(number, np.float64)[..., None] for number in numbers]
        right, up, length, across, along, angle, phase = columns
        cos, sin = np.cos(angle), np.sin(angle)
        x_P, y_P = self.right_P - right, self.up_P - up
        u_P, v_P = cos * x_P + sin * y_P, cos * y_P - sin * x_P
        window_P = np.exp(-np.square(u_P / across) / 2 - np.square(v_P / along) / 2)
        wave_P: Array = window_P * np.cos(2 * np.pi / length * u_P + phase)
        wave_P -= wave_P.mean(axis=-1, keepdims=True)
        return wave_P

    def pattern(self, parameters: Array) -> Array:
        """(P,) the wave that the parameters stand for; (K, P) of K rows of them."""
        return self.wave(*self.named(parameters), parameters[..., 2], parameters[..., 3])

    def residuals(self, parameters: Array, weights_CP: Array) -> Array:
        """(C * P,), or (K, C * P), what the best multiple of the pattern leaves over."""
        pattern_P = self.pattern(parameters)
        amplitudes_C = _amplitudes(pattern_P, weights_CP)
        left = weights_CP - amplitudes_C[..., None] * pattern_P[..., None, :]
        return left.reshape(*parameters.shape[:-1], -1)

    def slopes(self, parameters: Array, weights_CP: Array) -> Array:
        """(C * P, parameters) by how much the residuals change with each parameter."""
        steps = _STEP * np.maximum(1.0, np.abs(parameters))
        moved = parameters + np.diag(steps)
        both = self.residuals(np.vstack([parameters, moved]), weights_CP)
        slopes: Array = ((both[1:] - both[0]) / steps[:, None]).T
        return slopes

    def describe(self, parameters: Array, weights_CP: Array, scale: float, r2: float) -> GaborFit:
        """The fit in its own units, the ambiguities of sign and half turns settled."""
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
    """(C,), or (K, C), what the pattern is to be multiplied with for the least squared residual."""
    squares = np.square(pattern_P).sum(axis=-1, keepdims=True)
    amplitudes_C: Array = pattern_P @ weights_CP.T / (squares + 1e-12)
    return amplitudes_C


@lru_cache(maxsize=8)
def _dictionary(height: int, width: int) -> tuple[Array, Array]:
    """(D, parameters) coarse patterns and (D, 2, P) orthonormal pairs that span their phases."""
    space = _Space(height, width)
    reach = space.reach
    entries, pairs = [], []
    places = (-reach / 4, 0.0, reach / 4) if space.large else (0.0,)
    for right in places:
        for up in places:
            for wave in np.geomspace(2.2, 1.6 * reach, 6):
                for window in (reach / 6, reach / 3):
                    for angle in np.arange(12) * np.pi / 12:
                        entry = space.entry(right, up, float(wave), max(0.5, window), angle)
                        quarter = entry.copy()
                        quarter[3] = np.pi / 2
                        pair_P2 = np.stack([space.pattern(entry), space.pattern(quarter)], axis=1)
                        entries.append(entry)
                        pairs.append(np.linalg.qr(pair_P2)[0].T)
    return np.array(entries), np.array(pairs)


def _starts(weights_CP: Array, height: int, width: int) -> list[Array]:
    """The best dictionary entries, of different orientation or wavelength, at their best phases."""
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
