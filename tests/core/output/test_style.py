"""The caption below every figure, and dark figures."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnviz.core.output.drawing import new_figure
from cnnviz.core.output.run_folder import DPI, RunFolder
from cnnviz.core.output.style import GROUND, INK, STRIP, ink, sign, style

GROUND_RGB = tuple(int(GROUND[i : i + 2], 16) for i in (1, 3, 5))


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def drawn() -> Figure:
    figure = new_figure(4.0, 3.0)
    left, right = figure.subplots(1, 2)
    left.imshow(np.zeros((4, 4)), cmap="gray", vmin=0, vmax=1)
    left.text(1, 1, "over", color="black")
    right.plot([0, 1], [0, 1], color=ink("#1a1a1a"), label="line")
    right.scatter([0, 1], [1, 0], color=[ink(), ink("red")])
    right.set_title("title")
    right.legend()
    return figure


@pytest.mark.pictures
def test_a_caption_stands_below_and_moves_nothing() -> None:
    plain, signed = drawn(), drawn()
    streams = io.BytesIO(), io.BytesIO()
    plain.savefig(streams[0], dpi=DPI)
    signed.savefig(streams[1], dpi=DPI, bbox_inches=sign(signed, "cnnviz x · weights 12"))
    before, after = (pixels_of(stream.getvalue()) for stream in streams)
    strip = after.shape[0] - before.shape[0]
    assert abs(strip - STRIP * DPI) <= 1
    np.testing.assert_array_equal(after[: len(before) - 2], before[:-2])
    assert (after[-strip + 3 :] < 250).any()  # the line
    assert (after[-strip:, :40] == 255).all()


@pytest.mark.pictures
def test_dark_figures_have_light_ink_and_the_same_pictures() -> None:
    with style(dark=True):
        figure = drawn()
    left, right = figure.axes
    assert left.texts[0].get_color() == "black"
    assert right.title.get_color() == INK
    assert right.lines[0].get_color() == INK
    faces = right.collections[0].get_facecolor()
    np.testing.assert_allclose(faces[0][:3], [0.902, 0.929, 0.953], atol=0.01)
    np.testing.assert_allclose(faces[1][:3], [1, 0, 0])
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI)
    assert tuple(pixels_of(stream.getvalue())[0, 0]) == GROUND_RGB
    assert drawn().axes[1].lines[0].get_color() == "#1a1a1a"  # outside of the context


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
    corner = tuple(pixels_of(data)[-1, 0])
    assert corner == (GROUND_RGB if dark else (255, 255, 255))
