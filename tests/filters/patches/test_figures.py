"""The sheets show the very pixels that the result speaks of."""

from pathlib import Path

import numpy as np
import pytest
from networks import model_of
from PIL import Image
from torch import nn

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.models.load import Model
from cnnviz.filters.patches import figures as patch_figures
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.figures import GAP, IMAGE_SIDE, LINE, MARGIN, NAMES, PATCH_SIDE
from cnnviz.filters.patches.max_patches import find_patches
from cnnviz.filters.patches.options import Crop, MaxPatchesSpec
from cnnviz.filters.patches.results import MaxPatches
from cnnviz.filters.patches.scan import make_plan

SIZE = (28, 28)
HEADER = 2 * MARGIN + 20  # one line


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    generator = np.random.default_rng(0)
    for number in range(4):
        place = tmp_path / ("$x$" if number % 2 else "plain")
        place.mkdir(exist_ok=True)
        noise = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number}.png")
    return open_data([str(tmp_path)])


@pytest.fixture
def model() -> Model:
    conv = nn.Conv2d(3, 30, 3, padding=1)
    conv.weight.data[:5] = -1  # these are strongest where padding takes the neighbours' place
    conv.weight.data[:5, :, 1, 1] = 1
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model_of(net, SIZE, ("0",) * 30)


@pytest.fixture
def result(model: Model, data: ImageData) -> MaxPatches:
    return find_patches(
        model,
        data,
        make_plan(model, MaxPatchesSpec(layers=("0",), top=3, crop=Crop.RECEPTIVE_FIELD)),
    )


def cell(sheet: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top = HEADER + row * (side + 3 * LINE + GAP)
    left = MARGIN + NAMES + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def pixels_of(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_cells_of_the_patch_sheet_are_the_boxes_pixel_by_pixel(
    result: MaxPatches, model: Model, data: ImageData
) -> None:
    sheets = dict(patch_figures.draw(result, "0", PatchImages(data, model.preprocess)))
    scale = PATCH_SIDE // 3
    whole = 0
    for row, entry in enumerate(result.filters[: patch_figures.ROWS]):
        for column, patch in enumerate(entry.patches):
            y0, x0, y1, x1 = patch.box
            if (y1 - y0, x1 - x0) != (3, 3):
                continue
            shown = cell(sheets["patches.png"], row, column, PATCH_SIDE)
            wanted = pixels_of(patch.image)[y0:y1, x0:x1].repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(shown, wanted)
            whole += 1
    assert whole > 20


def test_the_white_box_is_where_the_patch_is_and_the_rest_is_the_image(
    result: MaxPatches, model: Model, data: ImageData
) -> None:
    sheets = dict(patch_figures.draw(result, "0", PatchImages(data, model.preprocess)))
    scale = IMAGE_SIDE // SIZE[0]
    for row, entry in enumerate(result.filters[: patch_figures.ROWS]):
        for column, patch in enumerate(entry.patches):
            y0, x0, y1, x1 = (scale * edge for edge in patch.box)
            shown = cell(sheets["images.png"], row, column, IMAGE_SIDE)
            assert (shown[y0 + 1, x0 + 1 : x1 - 1] == 255).all()
            assert (shown[y1 - 2, x0 + 1 : x1 - 1] == 255).all()
            assert (shown[y0 + 1 : y1 - 1, [x0 + 1, x1 - 2]] == 255).all()
            outside = np.ones(shown.shape[:2], bool)
            outside[y0:y1, x0:x1] = False
            wanted = pixels_of(patch.image).repeat(scale, 0).repeat(scale, 1)
            np.testing.assert_array_equal(shown[outside], wanted[outside])


def test_a_layer_of_many_filters_takes_several_pages(
    result: MaxPatches, model: Model, data: ImageData
) -> None:
    drawn = list(patch_figures.draw(result, "0", PatchImages(data, model.preprocess)))
    names = [name for name, _sheet in drawn]
    assert names == ["patches.png", "images.png", "patches-2.png", "images-2.png"]
    assert len(names) == patch_figures.count_sheets(result, "0")
    first, last = drawn[0][1], drawn[2][1]
    assert (len(first) - HEADER) // (len(last) - HEADER) == 25 // 5


def test_all_patches_of_a_layer_are_at_one_scale(
    result: MaxPatches, model: Model, data: ImageData
) -> None:
    sheet = dict(patch_figures.draw(result, "0", PatchImages(data, model.preprocess)))
    scale, cut = PATCH_SIDE // 3, 0
    for row, entry in enumerate(result.filters[: patch_figures.ROWS]):
        for column, patch in enumerate(entry.patches):
            y0, x0, y1, x1 = patch.box
            shown = cell(sheet["patches.png"], row, column, PATCH_SIDE)
            grey_rows = (shown == patch_figures.GREY).all(axis=(1, 2)).sum()
            assert grey_rows == PATCH_SIDE - scale * (y1 - y0)
            cut += (y1 - y0, x1 - x0) != (3, 3)
    assert cut
