import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cnnviz.core.choices import pixels
from cnnviz.core.errors import UsageError
from cnnviz.occlusion.masks import inside_boxes, mask_grid, masks_and_stride
from cnnviz.occlusion.options import Border, Preset


def test_cover_of_224_by_mask_15_stride_10_has_22_by_22_positions():
    grid = mask_grid((224, 224), (15, 15), 10, Border.COVER)
    assert grid.shape == (22, 22)
    assert len(grid.boxes_P4) == 484
    assert grid.boxes_P4[0].tolist() == [0, 0, 15, 15]
    assert grid.boxes_P4[-1].tolist() == [210, 210, 224, 224]


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (32, 32), (33, 50), (224, 193)])
@pytest.mark.parametrize(("mask", "stride"), [(1, 1), (3, 2), (5, 5), (4, 7)])
def test_cover_touches_the_last_row_and_column_and_no_mask_is_idle(size, mask, stride):
    mask = min(mask, *size)
    boxes = mask_grid(size, (mask, mask), stride, Border.COVER).boxes_P4
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
    if stride <= mask:
        assert boxes[:, 2:].amax(0).tolist() == list(size)
        assert {*range(size[0])} == {y for b in boxes.tolist() for y in range(b[0], b[2])}


def test_inside_has_whole_masks_only():
    boxes = mask_grid((10, 13), (4, 3), 3, Border.INSIDE).boxes_P4
    assert ((boxes[:, 2] - boxes[:, 0]) == 4).all()
    assert ((boxes[:, 3] - boxes[:, 1]) == 3).all()
    assert boxes[:, 2].max() <= 10
    assert boxes[:, 3].max() <= 13
    assert len(boxes) == 3 * 4


def test_center_puts_a_mask_on_every_pixel_and_cuts_it_at_the_edges():
    grid = mask_grid((32, 32), (5, 5), 1, Border.CENTER)
    assert grid.shape == (32, 32)
    assert grid.boxes_P4[0].tolist() == [0, 0, 3, 3]
    assert grid.boxes_P4[32 * 10 + 20].tolist() == [8, 18, 13, 23]


def test_defaults_are_shares_of_the_shorter_side():
    for side, mask, stride in (
        (224, 64, 16),
        (32, 8, 2),
        (64, 16, 4),
        (112, 32, 8),
        (384, 108, 27),
    ):
        assert masks_and_stride((side, side + 76), (), None) == (((mask, mask),), (stride, stride))
    assert masks_and_stride((1, 1), (), None) == (((1, 1),), (1, 1))


@pytest.mark.parametrize("side", [1, 7, 8, 15, 28, 32, 33, 64, 100, 224])
@pytest.mark.parametrize("given", [None, 3, 10])
def test_the_default_mask_leaves_no_seams(side, given):
    """Inside, where no mask is cut off, every pixel lies under equally many masks."""
    ((mask, _),), (stride, _) = masks_and_stride((side, side), (), given)
    if given is not None and given > side:
        return
    assert mask % stride == 0
    boxes = mask_grid((side, side), (mask, mask), stride, Border.COVER).boxes_P4
    counts = inside_boxes(boxes, (side, side)).sum(0)
    inner = counts[mask - 1 : side - mask + 1, mask - 1 : side - mask + 1]
    assert inner.numel() == 0 or (inner == inner.max()).all()


def test_with_a_mask_or_a_stride_of_the_users_the_other_is_the_default():
    assert masks_and_stride((224, 300), ((70, 90),), None) == (((70, 90),), (16, 16))
    assert masks_and_stride((224, 300), (), 10) == (((60, 60),), (10, 10))
    assert masks_and_stride((224, 300), (), (10, 9)) == (((60, 63),), (10, 9))
    assert masks_and_stride((1, 1), (), 5) == (((1, 1),), (5, 5))


def test_the_default_stride_leaves_no_gap_between_small_masks():
    assert masks_and_stride((224, 300), ((15, 15), (9, 30)), None)[1] == (9, 9)


def test_the_classic_preset_has_matlabs_shares_for_what_is_not_given():
    classic = Preset.CLASSIC
    assert masks_and_stride((224, 300), (), None, classic) == (((45, 45),), (22, 22))
    assert masks_and_stride((224, 300), ((15, 15),), None, classic) == (((15, 15),), (22, 22))
    assert masks_and_stride((224, 300), (), 10, classic) == (((45, 45),), (10, 10))


def test_a_stride_of_two_numbers_is_of_rows_and_of_columns():
    grid = mask_grid((20, 20), (4, 4), (8, 4), Border.COVER)
    assert grid.shape == (3, 5)
    assert grid.boxes_P4[:6].tolist() == [[0, x, 4, x + 4] for x in range(0, 20, 4)] + [
        [8, 0, 12, 4]
    ]
    assert mask_grid((20, 20), (4, 4), (8, 8), Border.COVER).stride == 8


def test_mask_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match=r"mask 40x40 is larger than the working image 32x32"):
        mask_grid((32, 32), (40, 40), 10, Border.COVER)


def test_stride_zero_is_refused():
    with pytest.raises(UsageError, match=r"stride 0 is too small; --stride takes whole pixels"):
        mask_grid((32, 32), (4, 4), 0, Border.COVER)


def test_masks_are_read_as_side_or_rows_by_columns():
    assert pixels("15", "--mask") == (15, 15)
    assert pixels("15x30", "--mask") == (15, 30)


@pytest.mark.parametrize("text", ["", "0", "-3", "3x", "1x2x3", "four", "3.5", "9" * 5000])
def test_anything_else_is_no_mask(text):
    with pytest.raises(UsageError, match=r"invalid mask .*; --mask takes a side"):
        pixels(text, "--mask")


SIDES = st.integers(1, 40)


@given(size=st.tuples(SIDES, SIDES), mask=st.tuples(SIDES, SIDES), stride=SIDES)
def test_any_grid_lies_in_the_image_and_covers_what_it_says(
    size: tuple[int, int], mask: tuple[int, int], stride: int
) -> None:
    """Against the definition, pixel by pixel, for each border."""
    mask = (min(mask[0], size[0]), min(mask[1], size[1]))
    for border in Border:
        grid = mask_grid(size, mask, stride, border)
        rows, columns = grid.shape
        assert len(grid.boxes_P4) == rows * columns
        covered = torch.zeros(size, dtype=torch.bool)
        for y0, x0, y1, x1 in grid.boxes_P4.tolist():
            assert 0 <= y0 < y1 <= size[0]
            assert 0 <= x0 < x1 <= size[1]
            assert y1 - y0 <= mask[0]
            assert x1 - x0 <= mask[1]
            covered[y0:y1, x0:x1] = True
            if border is Border.INSIDE:
                assert (y1 - y0, x1 - x0) == mask
        if border is Border.COVER and stride <= min(mask):
            assert covered.all()
        if border is Border.CENTER and stride == 1:
            assert (rows, columns) == size
