"""Maps over pictures: what lies beneath, what colours mean, how they are interpolated."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.interpolate import PchipInterpolator

from cnnviz.core.data.images import read_image
from cnnviz.core.errors import UsageError
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.canvas import pixels_of
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.layout import board, picture
from cnnviz.core.output.options import Display, Ends, Look
from cnnviz.core.output.overlays import (
    Scale,
    draw_picture,
    enlarged,
    paint_kinds,
    paint_map,
    photograph,
    scales,
)

SMALL = Preprocess(8, (8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def image_file(tmp_path: Path, side: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def drawn(paint) -> np.ndarray:
    """The pixels of a picture of 40×60 in a figure that has a dot for each of them."""
    figure = Figure((0.6, 0.4), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    paint(axes)
    return pixels_of(figure).astype(int)


def scale_of(values, look=None, **options) -> Scale:
    return scales([np.array([values], float)], look or Look(), "x", **options)[0]


@pytest.mark.parametrize(("side", "shown"), [(40, 40), (8, 8), (5, 8)])
def test_the_file_lies_beneath_where_it_has_more_pixels(
    tmp_path: Path, side: int, shown: int
) -> None:
    image = read_image(image_file(tmp_path, side), SMALL)
    beneath = photograph(image)
    assert beneath.shape == (shown, shown, 3)
    wanted = np.asarray(Image.open(image.path)) if side == shown else image_pixels(image)
    assert np.array_equal(beneath, wanted)


@pytest.mark.parametrize("colormap", ["diverging", "viridis", "magma", "PuOr_r"])
@pytest.mark.parametrize("display", list(Display))
def test_the_photograph_is_untouched_where_the_map_is_zero(colormap, display) -> None:
    values_HW = np.zeros((4, 6), np.float32)
    values_HW[1, 1], values_HW[2, 4] = 2.0, -1.0
    look = Look(colormap=colormap)
    scale = scales([values_HW], look, "x")[0]
    pixels = drawn(lambda axes: paint_map(axes, values_HW, scale, display, PHOTO))
    same = (np.abs(pixels - PHOTO) <= 1).all(axis=2)
    assert same[:, 30:34].all() == (display is Display.CELLS)
    assert same[-1, 0]
    assert not same[15, 15]
    at_peak, opacity = scale.table[-1] * 255, look.opacity
    wanted = opacity * at_peak + (1 - opacity) * PHOTO[15, 15]
    assert np.abs(pixels[15, 15] - wanted).max() <= 12


def test_opacity_is_in_proportion_to_the_magnitude_but_for_jet() -> None:
    weights = scale_of([-1, 0, 4]).weights[:, 0]
    assert weights == pytest.approx(0.9 * np.abs(np.linspace(-1, 1, len(weights))), abs=1e-6)
    assert set(scale_of([-1, 0, 4], Look("jet")).weights[:, 0]) == {0.5}
    assert scale_of([-1, 0, 4], Look("jet", alpha=0.25)).weights[0] == 0.25


def test_a_photograph_is_drawn_dot_for_dot() -> None:
    pixels = drawn(lambda axes: draw_picture(axes, PHOTO, (4, 6)))
    assert np.array_equal(pixels, PHOTO)


def test_kinds_have_their_colour_and_kind_zero_has_none() -> None:
    kinds_HW = np.zeros((4, 6), np.intp)
    kinds_HW[0, 0] = 1
    rgba = np.array([[0, 0, 0, 0], [1, 0, 0, 1]], np.float32)
    pixels = drawn(lambda axes: paint_kinds(axes, kinds_HW, rgba, PHOTO))
    assert (pixels[:10, :10] == (255, 0, 0)).all()
    assert np.array_equal(pixels[10:], PHOTO[10:])


@pytest.mark.parametrize(
    ("values", "look", "options", "limits", "beyond"),
    [
        ([-1, 0, 4], Look(), {}, (-4, 4), (False, False)),
        ([0, 1, 4], Look(), {}, (-4, 4), (False, False)),
        ([0, 1, 4], Look(), {"one_sided": True}, (0, 4), (False, False)),
        ([-1, 0, 4], Look(), {"one_sided": True}, (-4, 4), (False, False)),
        ([-1, 0, 4], Look("viridis"), {}, (-1, 4), (False, False)),
        ([-1, 0, 4], Look("coolwarm"), {}, (-4, 4), (False, False)),
        ([-1, 0, 4], Look(), {"ends": [2.0]}, (-2, 2), (False, True)),
        ([-4, 0, 4], Look(), {"ends": [2.0]}, (-2, 2), (True, True)),
        ([-4, 0, 1], Look("viridis"), {"ends": [2.0]}, (-2, 1), (True, False)),
        ([0, 0], Look(), {"one_sided": True, "ends": [0.0]}, (0, 1.0), (False, False)),
        ([0, 0.1], Look(scale=0.5), {}, (-0.5, 0.5), (False, False)),
        ([-3, 4], Look("jet", scale=0.5), {}, (-0.5, 0.5), (True, True)),
        ([0.1, 0.2], Look(scale=0.5), {"one_sided": True}, (0, 0.5), (False, False)),
    ],
)
def test_colours_end_where_the_bar_says(values, look, options, limits, beyond) -> None:
    scale = scale_of(values, look, **options)
    assert (scale.low, scale.high) == pytest.approx(limits)
    assert (scale.bar.low, scale.bar.high) == pytest.approx(limits)
    assert scale.beyond == beyond
    texts = [text for _, text in scale.bar.ticks()]
    assert texts[0].startswith("≤ ") == beyond[0]
    assert texts[1].startswith("≥ ") == beyond[1]
    if look.colormap == "diverging":
        assert min(scale.table[scale.levels(np.array(0.0))]) > 0.94
        assert scale.table[-1][0] > scale.table[-1][2]


def test_panels_share_a_scale_unless_each_has_its_own() -> None:
    maps = [np.array([[0.0, 1.0]]), np.array([[0.0, 4.0]])]
    shared = scales(maps, Look(), "x")
    assert shared[0] is shared[1]
    assert shared[0].high == 4
    assert [s.high for s in scales(maps, Look(scale=Ends.OWN), "x")] == [1, 4]
    assert [s.high for s in scales(maps, Look(scale=0.5), "x")] == [0.5, 0.5]


def tiled(tiles: np.ndarray, side: int) -> np.ndarray:
    return tiles.repeat(side, axis=0).repeat(side, axis=1)


def test_cells_are_the_exact_tiles() -> None:
    values_HW = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(enlarged(values_HW, (30, 40), Display.CELLS), tiled(values_HW, 10))


@pytest.mark.parametrize("side", [1, 4, 16])
def test_smooth_keeps_the_value_at_the_centre_of_each_tile(side: int) -> None:
    tiles = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    dots = 9  # per tile
    shown = enlarged(tiled(tiles, side), (5 * dots, 7 * dots), Display.SMOOTH)
    centres = shown[dots // 2 :: dots, dots // 2 :: dots]
    np.testing.assert_allclose(centres, tiles, atol=1e-5)
    assert shown.min() >= tiles.min()
    assert shown.max() <= tiles.max()
    steps = np.abs(np.diff(shown, axis=0)).max()
    assert steps < np.abs(np.diff(tiles, axis=0)).max() / 2, "there is an edge"


def test_smooth_is_monotone_between_tiles_as_scipys_pchip_is() -> None:
    values = np.random.default_rng(2).normal(size=8).astype(np.float32)
    values[3:5] = 0.0, 0.01
    shown = enlarged(values[:, None], (8 * 11, 1), Display.SMOOTH)[:, 0]
    places = (np.arange(8 * 11) + 0.5) / 11 - 0.5
    inner = (places >= 1) & (places <= 6)  # at the ends the slope is zero here
    expected = PchipInterpolator(np.arange(8), values)(places[inner])
    np.testing.assert_allclose(shown[inner], expected, atol=1e-5)
    flat = (places >= 3) & (places <= 4)
    assert shown[flat].min() >= 0
    assert shown[flat].max() <= 0.0101


def test_smooth_takes_rounding_for_no_edge_and_a_constant_map_for_constant() -> None:
    tiles = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    noisy = tiled(tiles, 8) + np.random.default_rng(0).normal(size=(16, 16)) * 1e-7
    shown = enlarged(noisy.astype(np.float32), (64, 64), Display.SMOOTH)
    np.testing.assert_allclose(
        shown, enlarged(tiled(tiles, 8), (64, 64), Display.SMOOTH), atol=1e-5
    )
    assert np.ptp(enlarged(np.full((4, 4), 2.0), (9, 9), Display.SMOOTH)) < 1e-6


def test_colour_maps_are_those_of_matplotlib() -> None:
    with pytest.raises(UsageError, match=r"no colour map 'virids'; --colormap takes .* viridis"):
        scale_of([0, 1], Look("virids"))


def test_pictures_have_the_pixels_of_the_figure() -> None:
    """A board puts panels on whole pixels, so that pictures are copied, not resampled."""
    figure = board([[picture(lambda axes: draw_picture(axes, PHOTO, (40, 60)), (40, 60), "a")]])
    (axes,) = figure.axes
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape[:2] == (round(axes.bbox.height), round(axes.bbox.width))
    x, y = round(axes.bbox.x0), round(figure.bbox.height - axes.bbox.y1)
    there = pixels_of(figure)[y : y + shown.shape[0], x : x + shown.shape[1]]
    assert np.array_equal(there, shown)
