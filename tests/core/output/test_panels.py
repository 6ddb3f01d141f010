"""Maps over pictures: what lies beneath, what colours mean, where the empty cells are."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnviz.core.choices import Colormap
from cnnviz.core.data.images import read_image
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_map, draw_picture, grid_of_axes, panels, photograph

SMALL = Preprocess(8, (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def picture(tmp_path: Path, side: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize(("side", "shown"), [(40, 40), (8, 8), (5, 8)])
def test_the_file_lies_beneath_where_it_has_more_pixels(
    tmp_path: Path, side: int, shown: int
) -> None:
    image = read_image(picture(tmp_path, side), SMALL)
    beneath = photograph(image)
    assert beneath.shape == (shown, shown, 3)
    wanted = np.asarray(Image.open(image.path)) if side == shown else image_pixels(image)
    assert np.array_equal(beneath, wanted)


def test_pictures_of_any_resolution_fill_the_maps_pixels() -> None:
    axes = Figure().subplots()
    beneath = np.full((40, 60, 3), (255, 0, 0), np.uint8)
    draw_map(axes, np.ones((4, 6)), Look(), "x", over=beneath)
    below, above = axes.images
    assert below.get_extent() == above.get_extent() == [0, 6, 4, 0]
    assert np.allclose(np.asarray(below.get_array()), 0.299)
    draw_picture(axes, beneath, (4, 6), grey=False)
    assert np.array_equal(np.asarray(axes.images[-1].get_array()), beneath)


@pytest.mark.parametrize(
    ("values", "colormap", "options", "limits", "arrows"),
    [
        ([-1, 0, 4], Colormap.DIVERGING, {}, (-4, 4), "neither"),
        ([0, 1, 4], Colormap.DIVERGING, {}, (-4, 4), "neither"),
        ([0, 1, 4], Colormap.DIVERGING, {"one_sided": True}, (0, 4), "neither"),
        ([-1, 0, 4], Colormap.DIVERGING, {"one_sided": True}, (-4, 4), "neither"),
        ([-1, 0, 4], Colormap.VIRIDIS, {}, (-1, 4), "neither"),
        ([-1, 0, 4], Colormap.DIVERGING, {"limit": 2.0}, (-2, 2), "max"),
        ([-4, 0, 4], Colormap.DIVERGING, {"limit": 2.0}, (-2, 2), "both"),
        ([-4, 0, 1], Colormap.VIRIDIS, {"limit": 2.0}, (-2, 1), "min"),
        ([0, 0, 0], Colormap.DIVERGING, {"one_sided": True, "limit": 0.0}, (0, 1e-12), "neither"),
    ],
)
def test_colours_end_where_the_bar_says(values, colormap, options, limits, arrows) -> None:
    figure = Figure()
    axes = figure.subplots()
    draw_map(axes, np.array([values], float), Look(colormap), "x", **options)
    shown = axes.images[0]
    assert (shown.norm.vmin, shown.norm.vmax) == pytest.approx(limits)
    assert shown.cmap.colorbar_extend == arrows
    assert figure.axes[1].get_ylim() == pytest.approx(limits)
    if colormap is Colormap.DIVERGING:
        red, green, blue, _ = shown.cmap(shown.norm(0.0))
        assert min(red, green, blue) > 0.94
        assert shown.cmap(1.0)[0] > shown.cmap(1.0)[2]


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (5, 2, 4)])
def test_cells_without_a_panel_are_hidden(count: int, rows: int, columns: int) -> None:
    figure, axes = grid_of_axes(count, (2.0, 1.5), extra=(0.5, 0.25))
    assert len(axes) == count
    assert [cell.get_visible() for cell in figure.axes] == [
        place < count for place in range(rows * columns)
    ]
    assert figure.get_size_inches() == pytest.approx((2 * columns + 0.5, 1.5 * rows + 0.25))


@pytest.mark.parametrize("colormap", list(Colormap))
@pytest.mark.parametrize("values", [[0.0, 0.1], [-0.2, 0.1], [-3.0, 4.0]])
def test_a_fixed_scale_has_the_same_colours_whatever_the_values(
    colormap: Colormap, values: list[float]
) -> None:
    figure, (axes,) = panels(1, (1, 2))
    look = Look(colormap, scale=0.5)
    draw_map(axes, np.array([values]), look, "x", limit=look.scale)
    shown = axes.images[0]
    assert (shown.norm.vmin, shown.norm.vmax) == (-0.5, 0.5)
    bar = figure.axes[-1]
    assert (bar.get_ylim()[0], bar.get_ylim()[1]) == (-0.5, 0.5)


def test_a_fixed_scale_of_values_that_cannot_be_negative_starts_at_zero() -> None:
    _, (axes,) = panels(1, (1, 2))
    look = Look(scale=0.5)
    draw_map(axes, np.array([[0.1, 0.2]]), look, "x", one_sided=True, limit=look.scale)
    assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0.0, 0.5)
