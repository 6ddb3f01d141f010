"""The caption below every figure, dark figures, and their size."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnviz.core.output.canvas import CAPTION, pixels_of, sign
from cnnviz.core.output.layout import Cell, board, plot
from cnnviz.core.output.run_folder import RunFolder, png
from cnnviz.core.output.style import GROUND, INK, ink, style

GROUND_RGB = tuple(int(GROUND[i : i + 2], 16) for i in (1, 3, 5))


def pixels_in(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def drawn() -> Figure:
    def left(axes) -> None:
        axes.imshow(np.zeros((4, 4)), cmap="gray", vmin=0, vmax=1)
        axes.text(1, 1, "over", color="black")

    def right(axes) -> None:
        axes.plot([0, 1], [0, 1], color=ink("#1a1a1a"))
        axes.scatter([0, 1], [1, 0], color=[ink(), ink("red")])

    return board([[Cell(left, title="picture"), plot(right, "plot")]])


def test_a_caption_is_below_and_moves_nothing() -> None:
    plain, signed = drawn(), drawn()
    sign(signed, "cnnviz x · weights 12 " * 20)  # is cut off at the figure's width
    before, after = pixels_of(plain), pixels_of(signed)
    assert before.shape == after.shape
    strip = round(CAPTION * plain.dpi / 72)
    np.testing.assert_array_equal(after[:-strip], before[:-strip])
    assert (before[-strip:] == 255).all()
    assert (after[-strip:] < 250).any()
    assert (after[:, :5] == 255).all()


def test_dark_figures_have_light_ink_and_the_same_pictures() -> None:
    with style(dark=True):
        figure = drawn()
        left, right = figure.axes
        assert left.texts[0].get_color() == "black"
        assert {artist.get_color() for artist in figure.artists} == {INK}
        assert right.lines[0].get_color() == INK
        faces = right.collections[0].get_facecolor()
        np.testing.assert_allclose(faces[0][:3], [0.902, 0.929, 0.953], atol=0.01)
        np.testing.assert_allclose(faces[1][:3], [1, 0, 0])
        assert tuple(pixels_of(figure)[0, 0]) == GROUND_RGB
    assert drawn().axes[1].lines[0].get_color() == "#1a1a1a"  # outside of the context


@pytest.mark.parametrize("width", [600, 1200, 2400])
def test_text_and_pictures_scale_with_the_width(width: int) -> None:
    with style(width=width):
        figure = board([[Cell(lambda _axes: None, title="a"), Cell(lambda _axes: None)]])
    assert pixels_of(figure).shape[1] == pytest.approx(width, abs=1)


@pytest.mark.pictures
@pytest.mark.parametrize("dark", [False, True])
def test_the_run_folder_writes_figures_in_their_style(dark: bool, tmp_path) -> None:
    folder = RunFolder.open(tmp_path / "out")
    folder.caption = "cnnviz x · $net$"
    inside = folder.subfolder("a")
    with style(dark=dark):
        data = inside.write_figure("a.png", drawn()).read_bytes()
        again = inside.write_figure("b.png", drawn()).read_bytes()
    assert data == again
    corner = tuple(pixels_in(data)[-1, 0])
    assert corner == (GROUND_RGB if dark else (255, 255, 255))


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 4, 3), (1, 9, 3), (40, 1, 3)])
def test_png_files_hold_the_pixels(shape) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    assert np.array_equal(np.asarray(image), pixels)
    assert image.mode == ("L" if len(shape) == 2 else "RGB")
