"""Figures of a layer's kernels and of its Gabor fits.

Zero is mid-grey. Kernels over three channels are shown in colour, one tile per filter; others as a
matrix with one row per filter and one column per input channel.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from numpy.typing import NDArray

from cnnviz.core.choices import Scaling
from cnnviz.core.output.drawing import new_figure, title, to_uint8
from cnnviz.core.output.overlays import grid_of_axes
from cnnviz.core.output.sheets import Scale, Sheet, draw_on, draw_sheet, grid, matrix
from cnnviz.core.output.style import BLUE, FONT_SIZE, ink
from cnnviz.filters.kernels.results import GABOR_LIKE, GaborFit, GaborStats, KernelStats

FITTED, CHANCE = BLUE, "#999999"


def draw_kernels(stats: KernelStats, model_name: str, normalize: Scaling) -> Figure:
    """Draws all kernels of one layer."""
    sheet, scale = _sheet(stats, normalize)
    rows, columns = stats.kernel
    size = f"{stats.filters} filters over {stats.channels} channels, {rows}x{columns}"
    heading = f"{model_name} {stats.layer}\n{size}"
    return draw_sheet(sheet, heading, scale)


def draw_comparison(layers: Sequence[tuple[str, KernelStats]], normalize: Scaling) -> Figure:
    """Draws one layer of each of several models, side by side."""
    figure, cells = grid_of_axes(len(layers), (5.0, 4.9), columns=3)
    for axes, (name, stats) in zip(cells, layers, strict=True):
        sheet, scale = _sheet(stats, normalize)
        size = "x".join(map(str, (stats.channels, *stats.kernel)))
        heading = f"{name}\n{stats.layer}: {stats.filters} filters, {size}"
        draw_on(axes, sheet, heading, scale)
    return figure


def grey_levels(
    values: NDArray[np.floating], scaling: Scaling, unit: str, each: str, *, signed: bool = True
) -> tuple[NDArray[np.uint8], Scale]:
    """Grey levels of kernels or maps, and their scale; zero is mid-grey, or black if not signed."""
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    most, low = float(largest.max(initial=0)), -1.0 if signed else 0.0
    divisor = np.maximum(largest, 1e-30) if scaling is Scaling.FILTER else max(most, 1e-30)
    shares = values / divisor
    levels = to_uint8(0.5 + 0.5 * shares if signed else shares)
    if scaling is Scaling.FILTER:
        return levels, Scale(low, 1, f"{unit} / the {each}'s largest |{unit}|")
    return levels, Scale(low * most, most or 1.0, unit)


def _sheet(stats: KernelStats, normalize: Scaling) -> tuple[Sheet, Scale]:
    kernels = stats.kernels
    levels, scale = grey_levels(kernels, normalize, "weight", "filter")
    if kernels.shape[1] == 3:
        return grid(levels.transpose(0, 2, 3, 1), "filter"), scale
    if kernels.shape[1] == 1:
        return grid(levels[:, 0], "filter"), scale
    name = (
        "input channel"
        if stats.groups == 1
        else f"input channel of the group ({stats.groups} groups)"
    )
    return matrix(levels, "filter", name), scale


def kernel_pixels(kernel_CHW: NDArray[np.floating]) -> NDArray[np.uint8] | None:
    """A kernel over 1 or 3 channels as RGB pixels, zero at mid-grey; None for other kernels."""
    if len(kernel_CHW) not in (1, 3):
        return None
    scaled = 0.5 + 0.5 * kernel_CHW / max(float(np.abs(kernel_CHW).max()), 1e-30)
    return to_uint8(np.broadcast_to(scaled, (3, *scaled.shape[1:])).transpose(1, 2, 0))


def draw_gabor(stats: KernelStats, model_name: str) -> Figure:
    """Draws orientation and wavelength of the Gabor-like filters, and R² compared with chance."""
    assert stats.gabor is not None  # noqa: S101 (the caller checks)
    figure = new_figure(9.0, 4.2)
    left = cast(PolarAxes, figure.add_subplot(1, 2, 1, projection="polar"))
    _draw_polar(left, stats.gabor.fits)
    count = len(stats.gabor.fits)
    title(
        left,
        f"{model_name} {stats.layer}: {stats.gabor.share:.0%} of {count} filters with "
        f"R² > {GABOR_LIKE}\nangle: direction across the stripes\n"
        f"radius: wavelength in pixels (near the rim: blobs)",
    )
    _draw_r2(figure, stats.gabor)
    return figure


def _draw_polar(axes: PolarAxes, fits: Sequence[GaborFit | None]) -> None:
    alike = [fit for fit in fits if fit is not None and fit.r2 > GABOR_LIKE]
    others = [fit for fit in fits if fit is not None and fit.r2 <= GABOR_LIKE]
    axes.set_thetamin(0)
    axes.set_thetamax(180)
    groups = ((others, CHANCE, "other filters"), (alike, FITTED, f"R² > {GABOR_LIKE}"))
    for chosen, colour, name in groups:
        angles = [np.deg2rad(fit.orientation) for fit in chosen]
        filled = colour if colour == FITTED else "none"
        axes.scatter(
            angles,
            [fit.wavelength for fit in chosen],
            s=22,
            facecolors=filled,
            edgecolors=colour,
            alpha=0.8,
            label=f"{name} ({len(chosen)})",
        )
    axes.set_ylim(0, None)
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=FONT_SIZE - 1)


def _draw_r2(figure: Figure, gabor: GaborStats) -> None:
    axes = figure.add_subplot(1, 2, 2)
    for fits, colour, name, share in (
        (gabor.fits, FITTED, "kernels", gabor.share),
        (gabor.shuffled_fits, CHANCE, "the same, pixels shuffled", gabor.share_by_chance),
    ):
        values = np.sort([0.0 if fit is None else fit.r2 for fit in fits])[::-1]
        axes.plot(values, color=colour, label=f"{name}: {share:.0%} above", linewidth=1.8)
    axes.axhline(GABOR_LIKE, color=ink(), linewidth=0.6, linestyle="--")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("filters, best fit first", fontsize=FONT_SIZE)
    axes.set_ylabel("R² of the Gabor fit", fontsize=FONT_SIZE)
    axes.tick_params(labelsize=FONT_SIZE - 2)
    axes.legend(loc="lower left", fontsize=FONT_SIZE - 1)
    axes.spines[["top", "right"]].set_visible(False)
    title(axes, "variance explained, compared with chance")
