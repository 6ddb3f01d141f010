from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.core.models.heads import Head, Kind
from cnnviz.occlusion.maps import class_scores, pixel_map, position_values
from cnnviz.occlusion.masks import mask_grid
from cnnviz.occlusion.options import Border, Score, Upsample


def mean_over_covering_masks(values, boxes, size):
    """The definition, pixel by pixel."""
    result = torch.zeros(size, dtype=torch.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            covering = [
                value
                for value, (y0, x0, y1, x1) in zip(values.tolist(), boxes.tolist(), strict=True)
                if y0 <= y < y1 and x0 <= x < x1
            ]
            result[y, x] = sum(covering) / len(covering) if covering else 0.0
    return result


@pytest.mark.parametrize("border", list(Border))
@pytest.mark.parametrize(("mask", "stride"), [((3, 3), 2), ((4, 2), 3), ((2, 2), 5), ((6, 7), 1)])
def test_coverage_map_is_the_mean_over_the_masks_that_cover_a_pixel(border, mask, stride):
    size = (13, 11)
    grid = mask_grid(size, mask, stride, border)
    values = torch.randn(len(grid.boxes_P4), dtype=torch.float64)
    expected = mean_over_covering_masks(values, grid.boxes_P4, size)
    torch.testing.assert_close(pixel_map(values, grid, size).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("border", list(Border))
@pytest.mark.parametrize(("mask", "stride"), [((3, 3), 2), ((4, 2), 3), ((2, 2), 5), ((6, 7), 1)])
def test_density_is_the_sum_over_the_largest_number_of_masks(border, mask, stride):
    size = (13, 11)
    grid = mask_grid(size, mask, stride, border)
    values = torch.randn(len(grid.boxes_P4), dtype=torch.float64)
    sums, counts = (torch.zeros(size, dtype=torch.float64) for _ in range(2))
    for value, (y0, x0, y1, x1) in zip(values, grid.boxes_P4.tolist(), strict=True):
        sums[y0:y1, x0:x1] += value
        counts[y0:y1, x0:x1] += 1
    found = pixel_map(values, grid, size, Upsample.DENSITY)
    torch.testing.assert_close(found.double(), sums / counts.max(), atol=1e-6, rtol=0)


def test_one_mask_over_the_whole_image_gives_a_constant_map():
    grid = mask_grid((6, 6), (6, 6), 6, Border.COVER)
    assert (pixel_map(torch.tensor([0.25]).double(), grid, (6, 6)) == 0.25).all()


def test_nearest_gives_each_pixel_the_value_of_the_nearest_centre():
    grid = mask_grid((9, 9), (3, 3), 3, Border.INSIDE)
    values = torch.arange(9.0).double()
    expected = values.reshape(3, 3).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(pixel_map(values, grid, (9, 9), Upsample.NEAREST), expected.float())


def test_bilinear_reproduces_a_linear_ramp_between_the_outer_centres():
    grid = mask_grid((20, 20), (4, 4), 4, Border.INSIDE)
    centers = (grid.boxes_P4[:, 1] + grid.boxes_P4[:, 3]).double() / 2
    ramp = pixel_map(centers, grid, (20, 20), Upsample.BILINEAR)
    expected = (torch.arange(20) + 0.5).clamp(2, 18).expand(20, 20)
    torch.testing.assert_close(ramp, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("upsample", [Upsample.BILINEAR, Upsample.BICUBIC])
def test_interpolation_keeps_the_values_at_the_centres(upsample):
    grid = mask_grid((15, 15), (3, 3), 3, Border.INSIDE)
    values = torch.randn(25, dtype=torch.float64)
    at_centres = pixel_map(values, grid, (15, 15), upsample)[1::3, 1::3]
    torch.testing.assert_close(at_centres, values.reshape(5, 5).float())


def test_bicubic_is_pils_away_from_the_rim():
    grid = mask_grid((64, 64), (8, 8), 8, Border.INSIDE)
    values = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pixel_map(values, grid, (64, 64), Upsample.BICUBIC)
    image = Image.fromarray(values.reshape(8, 8).float().numpy())
    wanted = torch.from_numpy(np.array(image.resize((64, 64), Image.Resampling.BICUBIC)))
    inner = slice(12, 52)
    torch.testing.assert_close(found[inner, inner], wanted[inner, inner], atol=1e-5, rtol=0)


def test_position_values_are_positive_where_covering_hurts():
    base = torch.tensor([2.0, 0.0])
    covered = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    for score in Score:
        hurt, helped = position_values(base, covered, 0, score).tolist()
        assert hurt > 0 > helped, score


def test_scores_agree_with_their_definitions():
    logits = torch.randn(5, 7, dtype=torch.float64)
    probability = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    torch.testing.assert_close(class_scores(logits, Score.PROBABILITY), probability)
    torch.testing.assert_close(class_scores(logits, Score.LOSS), -probability.log())
    assert torch.equal(class_scores(logits, Score.LOGIT), logits)
    log_odds = (probability / (1 - probability)).log()
    torch.testing.assert_close(class_scores(logits, Score.LOG_ODDS), log_odds)
    independent = Head(Kind.SIGMOID)
    assert torch.equal(class_scores(logits, Score.LOG_ODDS, independent), logits)


def test_log_odds_are_exact_where_the_probability_is_1_or_0():
    """Against sums in 60 digits."""
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * 100
    found = class_scores(logits, Score.LOG_ODDS)
    with localcontext(prec=60):
        for row, row_K in enumerate(logits.tolist()):
            powers = [Decimal(value).exp() for value in row_K]
            for k, power in enumerate(powers):
                wanted = (power / sum(powers[:k] + powers[k + 1 :])).ln()
                assert float(found[row, k]) == pytest.approx(float(wanted), rel=1e-14)
    assert class_scores(torch.zeros(2), Score.LOG_ODDS).tolist() == [0, 0]
