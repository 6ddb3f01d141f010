"""Figures of a layer's kernels and of its Gabor fits.

Zero is mid-grey. Kernels over three channels are shown in colour, one tile per filter; others as a
matrix with one row per filter and one column per input channel, in pages.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from numpy.typing import NDArray

from cnnviz.core.choices import Scaling, percent
from cnnviz.core.output.canvas import Bar, Entry
from cnnviz.core.output.drawing import label_axes, to_uint8
from cnnviz.core.output.layout import board, in_rows, plot
from cnnviz.core.output.sheets import Sheet, grid, matrix, sheet_cell
from cnnviz.core.output.style import BLUE, SMALL, ink
from cnnviz.filters.kernels.results import GABOR_LIKE, GaborFit, GaborStats, KernelStats

FITTED, CHANCE = BLUE, "#999999"


def draw_kernels(stats: KernelStats, model_name: str, normalize: Scaling) -> Iterator[Figure]:
    """Draws all kernels of one layer, page by page."""
    sheet, bar = _sheet(stats, normalize)
    rows, columns = stats.kernel
    size = f"{stats.filters} filters over {stats.channels} channels, {rows}x{columns}"
    pages = list(sheet.pages())
    for number, page in enumerate(pages, start=1):
        which = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        yield board([[sheet_cell(page, f"{model_name} {stats.layer}\n{size}{which}", bar)]])


def preview(stats: KernelStats) -> Figure | None:
    """The figure that a notebook shows."""
    return next(draw_kernels(stats, "", Scaling.FILTER), None) if stats.kernels.size else None


def draw_comparison(layers: Sequence[tuple[str, KernelStats]], normalize: Scaling) -> Figure:
    """Draws one layer of each of several models, side by side."""
    cells = []
    for name, stats in layers:
        sheet, bar = _sheet(stats, normalize)
        size = "x".join(map(str, (stats.channels, *stats.kernel)))
        heading = f"{name}\n{stats.layer}: {stats.filters} filters, {size}"
        cells.append(sheet_cell(sheet, heading, bar, width=360.0))
    return board(in_rows(cells, 3))


def grey_levels(
    values: NDArray[np.floating],
    scaling: Scaling,
    unit: str,
    each: str,
    *,
    signed: bool = True,
    colour: bool = False,
) -> tuple[NDArray[np.uint8], Bar]:
    """Levels of kernels or maps, and their bar; zero is mid-grey, or black if not signed.

    With `colour` the levels are those of red, green and blue, and the bar has a strip for each.
    """
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    most, low = float(largest.max(initial=0)), -1.0 if signed else 0.0
    divisor = np.maximum(largest, 1e-30) if scaling is Scaling.FILTER else max(most, 1e-30)
    shares = values / divisor
    levels = to_uint8(0.5 + 0.5 * shares if signed else shares)
    greys = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
    if colour:
        greys = np.where(np.eye(3, dtype=bool)[:, None], greys[None], 0.5)
    if scaling is Scaling.FILTER:
        label = f"{unit} ÷ the {each}'s largest |{unit}|"
        return levels, Bar(greys, low, 1, label + ", for red, green and blue" * colour)
    label = f"{unit}, for red, green and blue" if colour else unit
    return levels, Bar(greys, low * most, most or 1.0, label)


def _sheet(stats: KernelStats, normalize: Scaling) -> tuple[Sheet, Bar]:
    kernels = stats.kernels
    colour = kernels.shape[1] == 3
    levels, bar = grey_levels(kernels, normalize, "weight", "filter", colour=colour)
    if colour:
        return grid(levels.transpose(0, 2, 3, 1), "filter"), bar
    if kernels.shape[1] == 1:
        return grid(levels[:, 0], "filter"), bar
    of_group = f" of the group ({stats.groups} groups)" if stats.groups > 1 else ""
    return matrix(levels, "filter", f"input channel{of_group}"), bar


def kernel_pixels(kernel_CHW: NDArray[np.floating]) -> NDArray[np.uint8] | None:
    """A kernel over 1 or 3 channels as RGB pixels, zero at mid-grey; None for other kernels."""
    if len(kernel_CHW) not in (1, 3):
        return None
    scaled = 0.5 + 0.5 * kernel_CHW / max(float(np.abs(kernel_CHW).max()), 1e-30)
    return to_uint8(np.broadcast_to(scaled, (3, *scaled.shape[1:])).transpose(1, 2, 0))


def draw_gabor(stats: KernelStats, model_name: str) -> Figure:
    """Draws orientation and wavelength of the Gabor-like filters, and R² compared with chance."""
    assert stats.gabor is not None  # noqa: S101 (the caller checks)
    gabor, count = stats.gabor, len(stats.gabor.fits)
    left = plot(
        lambda axes: _draw_polar(cast(PolarAxes, axes), gabor.fits),
        f"{model_name} {stats.layer}: {percent(gabor.share)} of {count} filters with "
        f"R² > {GABOR_LIKE}\n"
        "angle: wave direction (perpendicular to the stripes); radius: wavelength in pixels (near "
        "the rim: blobs)",
        width=270.0,
        height=190.0,
        left=30.0,
        polar=True,
    )
    right = plot(
        lambda axes: _draw_r2(axes, gabor),
        "Variance explained, compared with chance\n"
        f"above {GABOR_LIKE}: {percent(gabor.share)} of the kernels, "
        f"{percent(gabor.share_by_chance)} with shuffled pixels",
        width=270.0,
        height=190.0,
    )
    legend = [
        Entry(f"R² > {GABOR_LIKE}", FITTED, marker="o"),
        Entry("other filters", "none", marker="o", edge=CHANCE),
        Entry("kernels", FITTED, marker="-"),
        Entry("shuffled kernels (chance)", CHANCE, marker="-"),
    ]
    return board([[left, right]], legend=legend)


def _draw_polar(axes: PolarAxes, fits: Sequence[GaborFit | None]) -> None:
    alike = [fit for fit in fits if fit is not None and fit.r2 > GABOR_LIKE]
    others = [fit for fit in fits if fit is not None and fit.r2 <= GABOR_LIKE]
    axes.set_thetamin(0)
    axes.set_thetamax(180)
    for chosen, colour in ((others, CHANCE), (alike, FITTED)):
        axes.scatter(
            [np.deg2rad(fit.orientation) for fit in chosen],
            [fit.wavelength for fit in chosen],
            s=22,
            facecolors=colour if colour == FITTED else "none",
            edgecolors=colour,
            alpha=0.8,
        )
    axes.set_ylim(0, None)
    axes.tick_params(labelsize=SMALL - 1)


def _draw_r2(axes: Axes, gabor: GaborStats) -> None:
    for fits, colour in ((gabor.fits, FITTED), (gabor.shuffled_fits, CHANCE)):
        values = np.sort([0.0 if fit is None else fit.r2 for fit in fits])[::-1]
        axes.plot(values, color=colour, linewidth=1.8)
    axes.axhline(GABOR_LIKE, color=ink(), linewidth=0.6, linestyle="--")
    axes.set_ylim(0, 1.02)
    label_axes(axes, "filters, best fit first", "R² of the Gabor fit")
