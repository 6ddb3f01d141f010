"""The figure of `--sufficient`: what of the image is enough for a class, and what loses it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.canvas import Entry
from cnnviz.core.output.drawing import image_pixels, label_axes
from cnnviz.core.output.layout import Cell, board, picture, plot
from cnnviz.core.output.overlays import draw_picture
from cnnviz.core.output.style import BLUE, RED
from cnnviz.occlusion.results import OcclusionResult, Sufficiency
from cnnviz.occlusion.sufficient import HELD


def draw_sufficient(result: OcclusionResult, first: Cell) -> Figure:
    """Draws a row for each class: the image, the sufficient and the losing region, the search."""
    image, size = result.measured.image, result.measured.size
    number = result.measured.head.number
    rows = []
    for entry in result.sufficient or ():
        region, losing = entry.region, entry.losing
        kept_HW = entry.pixels_of(region)
        kept = (
            f"{100 * region.share:.1f} % of the image is enough\n"
            f"{_of(entry, number(region.probability))} (full image {number(entry.reading)}, "
            f"without this region {number(entry.without)})"
        )
        shown = torch.zeros_like(kept_HW)
        lost = "The class is never lost\neven with everything occluded"
        if losing is not None:
            what = "class" if entry.value is None else "box"
            shown = ~entry.pixels_of(losing)
            lost = (
                f"Occluding {100 * losing.share:.1f} % loses the {what}\n"
                f"{_of(entry, number(losing.probability))}: {entry.lost_when}"
            )
        cells = [
            picture(_replaced(image, entry.fill_CHW, pixels_HW), size, title)
            for pixels_HW, title in ((kept_HW, kept), (shown, lost))
        ]
        rows.append([first, *cells, _curves(entry, cells[0].height)])
    return board(
        rows,
        legend=(
            Entry("only these cells kept", BLUE, marker="-"),
            Entry("these cells occluded", RED, marker="-"),
            Entry(f"{100 * HELD:.0f} % of the original", "#888888", marker="-"),
        ),
    )


def _of(entry: Sufficiency, number: str = "") -> str:
    """How a region's number is written: `p(dog) = 0.94`, `score(1 dog) = 0.61`."""
    name = f"{'p' if entry.value is None else 'score'}({entry.class_})"
    return (
        f"{name} {number}" if number.startswith("<") else f"{name} = {number}" if number else name
    )


def _replaced(image: WorkingImage, fill_CHW: Tensor, kept_HW: Tensor) -> Callable[[Axes], None]:
    """Draws what the network sees with only those pixels kept."""
    seen = replace(image, pixels=torch.where(kept_HW, image.pixels, fill_CHW))
    size = (int(kept_HW.shape[0]), int(kept_HW.shape[1]))
    return lambda axes: draw_picture(axes, image_pixels(seen), size)


def _curves(entry: Sufficiency, height: float) -> Cell:
    """The class's probability while cells are kept alone, or occluded, most important first."""

    def paint(axes: Axes) -> None:
        shares = np.linspace(0, 100, len(entry.kept_curve))
        axes.plot(shares, entry.kept_curve.numpy(), color=BLUE)
        axes.plot(shares, entry.covered_curve.numpy(), color=RED)
        axes.axhline(HELD * entry.reading, color="#888888", linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, 100), ylim=(-0.02, 1.02))
        label_axes(axes, "% of the cells, most important first", _of(entry))

    what = "Probability" if entry.value is None else "Score"
    return plot(paint, f"{what} by the share of cells", height=height - 30, width=230)
