"""Gabor fits against planted filters, random weights and a brute-force search."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnviz.filters.kernels.gabor import (
    can_fit,
    fit_gabor,
    fit_gabors,
    gabor_pattern,
    gabor_share,
    shuffled,
)

Array = NDArray[np.float64]


def gabor(
    side: int, orientation: float, wavelength: float, phase: float, across: float, along: float
) -> Array:
    """A Gabor filter written down pixel by pixel, centred."""
    picture = np.zeros((side, side))
    angle, shift = np.deg2rad(orientation), np.deg2rad(phase)
    for row in range(side):
        for column in range(side):
            x, y = column - (side - 1) / 2, (side - 1) / 2 - row
            u = x * np.cos(angle) + y * np.sin(angle)
            v = y * np.cos(angle) - x * np.sin(angle)
            window = np.exp(-(u**2) / (2 * across**2) - v**2 / (2 * along**2))
            picture[row, column] = window * np.cos(2 * np.pi * u / wavelength + shift)
    return picture


def turned(first: float, second: float) -> float:
    """Degrees between two orientations, which repeat every 180."""
    return abs((first - second + 90) % 180 - 90)


@pytest.mark.parametrize(
    ("side", "orientation", "wavelength", "phase"),
    [(11, 30, 5, 90), (11, 120, 4, 0), (7, 0, 3.5, 180), (7, 75, 6, 270), (5, 45, 3, 45)],
)
def test_a_planted_gabor_filter_is_recovered(
    side: int, orientation: float, wavelength: float, phase: float
) -> None:
    pattern = gabor(side, orientation, wavelength, phase, side / 5, side / 4)
    fit = fit_gabor(np.multiply.outer(np.array([0.5, 1.0, -0.2]), pattern) + 0.1)
    assert fit is not None
    assert fit.r2 > 0.999
    assert turned(fit.orientation, orientation) < 1
    assert fit.wavelength == pytest.approx(wavelength, rel=0.01)
    assert abs((fit.phase - phase + 180) % 360 - 180) < 2
    assert fit.window == pytest.approx((side / 5, side / 4), rel=0.02)
    assert fit.amplitudes == pytest.approx((0.5, 1.0, -0.2), rel=0.02)


def test_a_noisy_gabor_filter_is_recovered_within_3_degrees_and_5_percent() -> None:
    noise = np.random.default_rng(3).normal(size=(3, 11, 11))
    kernel = gabor(11, 60, 5, 90, 2.2, 2.8)[None] + 0.1 * noise
    fit = fit_gabor(kernel)
    assert fit is not None
    assert turned(fit.orientation, 60) < 3
    assert fit.wavelength == pytest.approx(5, rel=0.05)


def test_the_claimed_r2_is_that_of_the_drawn_filter() -> None:
    kernel = np.random.default_rng(4).normal(size=(3, 7, 7))
    fit = fit_gabor(kernel)
    assert fit is not None
    variation = kernel - kernel.mean(axis=(1, 2), keepdims=True)
    left = np.square(variation - gabor_pattern(fit, 7, 7)).sum()
    assert fit.r2 == pytest.approx(1 - left / np.square(variation).sum(), abs=1e-6)


@pytest.mark.parametrize("side", [3, 7])
def test_no_fit_of_a_brute_force_search_is_better(side: int) -> None:
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=(3, side, side)) + 4 * gabor(side, 100, 0.7 * side, 20, 1.5, 1.5)
    variation = (kernel - kernel.mean(axis=(1, 2), keepdims=True)).reshape(3, -1)
    best = 0.0
    for _ in range(1500):
        across = rng.uniform(0.4, side)
        along = across if side < 5 else rng.uniform(0.4, side)
        degrees, phase = rng.uniform(0, 180), rng.uniform(0, 360)
        pattern = gabor(side, degrees, rng.uniform(2, 2 * side), phase, across, along).ravel()
        design = np.stack([pattern, np.ones_like(pattern)], axis=1)
        left = np.linalg.lstsq(design, variation.T, rcond=None)[1].sum()
        best = max(best, 1 - left / np.square(variation).sum())
    fit = fit_gabor(kernel)
    assert fit is not None
    assert best > 0.3
    assert fit.r2 >= best


@pytest.mark.parametrize("shape", [(24, 3, 7, 7), (24, 3, 3, 3), (12, 1, 5, 5)])
def test_random_weights_are_hardly_ever_gabor_like(shape: tuple[int, ...]) -> None:
    fits = fit_gabors(np.random.default_rng(6).normal(size=shape))
    assert gabor_share(fits) < 0.1


def test_shuffling_keeps_the_weights_and_destroys_the_pattern() -> None:
    kernels = np.stack([gabor(9, angle, 4, 90, 2, 2)[None] for angle in range(0, 180, 30)])
    mixed = shuffled(kernels, seed=1)
    assert np.allclose(np.sort(mixed, axis=None), np.sort(kernels, axis=None))
    assert gabor_share(fit_gabors(kernels)) == 1
    assert gabor_share(fit_gabors(mixed)) == 0


def test_shuffling_moves_the_colours_of_a_pixel_together() -> None:
    kernels = np.random.default_rng(7).normal(size=(2, 3, 3, 3))
    before = {tuple(pixel) for pixel in kernels[0].reshape(3, -1).T}
    after = {tuple(pixel) for pixel in shuffled(kernels)[0].reshape(3, -1).T}
    assert before == after


def test_a_constant_kernel_has_no_fit() -> None:
    assert fit_gabor(np.full((3, 5, 5), 0.3)) is None
    assert fit_gabor(np.zeros((3, 5, 5))) is None
    assert gabor_share((None, None)) == 0


def test_kernels_with_too_few_weights_are_refused() -> None:
    assert can_fit(3, 3, 3)
    assert can_fit(1, 5, 5)
    assert not can_fit(1, 3, 3)
    assert not can_fit(64, 1, 1)
    with pytest.raises(ValueError, match="1x3x3 kernel has too few weights"):
        fit_gabor(np.ones((1, 3, 3)))


def test_the_scale_of_the_weights_changes_amplitudes_alone() -> None:
    kernel = gabor(7, 20, 4, 90, 1.5, 2)[None]
    small, large = fit_gabor(kernel * 1e-4), fit_gabor(kernel)
    assert small is not None
    assert large is not None
    assert small.orientation == pytest.approx(large.orientation, abs=1e-3)
    assert small.amplitudes[0] == pytest.approx(1e-4 * large.amplitudes[0], rel=1e-3)
