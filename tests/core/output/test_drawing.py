import io

import numpy as np
import pytest

from cnnviz.core.output.canvas import pixels_of
from cnnviz.core.output.layout import board, picture
from cnnviz.core.output.sheets import tile_columns, tiles
from cnnviz.core.output.text import balanced, escape, text_width, wrap


@pytest.mark.parametrize("count", [1, 5, 6, 7])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3)])
def test_tiles_puts_each_picture_at_its_place(count, shape):
    rng = np.random.default_rng(0)
    pictures = rng.integers(1, 200, (count, *shape), dtype=np.uint8)
    sheet = tiles(pictures, columns=3, gap=2, background=255, scale=2)
    for index, shown in enumerate(pictures):
        row, column = divmod(index, 3)
        y, x = 2 + row * (6 + 2), 2 + column * (8 + 2)
        large = shown.repeat(2, 0).repeat(2, 1)
        assert np.array_equal(sheet[y : y + 6, x : x + 8], large)
    assert (sheet[:2] == 255).all()
    assert (sheet[:, -2:] == 255).all()
    assert sheet.shape[:2] == (2 + -(-count // 3) * 8, 2 + 3 * 10)


def test_tile_columns_never_exceeds_the_count():
    assert tile_columns(1, 5, 5) == 1
    assert tile_columns(64, 11, 11) in range(8, 12)


@pytest.mark.parametrize(
    "label", ["a $\\frac{$ b", "$x$", "100 $", "\x1b[31m", "漢字", "a\nb", "ü–é"]
)
def test_any_label_is_drawn_literally(label):
    figure = board([[picture(lambda _axes: None, (2, 2), label, label)]], heading=label)
    pixels_of(figure)
    figure.savefig(io.BytesIO(), format="svg")


def test_labels_are_cut_with_a_sign_that_they_were():
    assert escape("x" * 100, 10) == "x" * 9 + "…"


def test_a_title_has_lines_of_about_equal_length() -> None:
    text = "most important position occluded; mask 64, stride 16"
    assert wrap(text, 8, 210, 4)[-1] == "16"
    first, second = balanced(text, 8, 210, 4)
    assert text_width(second, 8) > text_width(first, 8) / 3
    assert f"{first} {second}" == text
    assert balanced("short", 8, 210, 4) == ["short"]
    assert balanced(text * 9, 8, 210, 3) == wrap(text * 9, 8, 210, 3)
