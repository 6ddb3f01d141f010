"""The running top k and the score statistics against plain loops that keep everything."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cnnviz.filters.patches.options import Ranking
from cnnviz.filters.patches.state import RELATIVE_ERROR, ScoreStats
from cnnviz.filters.patches.top_k import Rescaled, TopK, pack, peaks, score_maps, strongest, unpack

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def few_values(seed: int, *shape: int) -> Tensor:
    """Whole numbers from -3 to 3: most scores are tied, and sums are exact."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def loop_top_k(maps: Tensor, score: Ranking, k: int) -> list[list[tuple[float, int, int]]]:
    """Per filter the (score, image, unit) of every image, sorted as the contract says, cut at k."""
    kept = []
    for channel in range(maps.shape[1]):
        found = []
        for image in range(len(maps)):
            units = [float(v) for v in maps[image, channel].flatten()]
            value = {
                Ranking.MAX: max(units),
                Ranking.NORM: math.sqrt(sum(v * v for v in units)),
                Ranking.MEAN: sum(units) / len(units),
            }[score]
            found.append((value, image, units.index(max(units))))
        kept.append(sorted(found, key=lambda item: (-item[0], item[1]))[:k])
    return kept


def listed(state: TopK, per_image: int = 1) -> list[list[tuple[float, int, int]]]:
    scores, tickets = unpack(state.keys)
    return [
        [
            (float(score), int(ticket) // per_image, int(unit))
            for score, ticket, unit in zip(*row, strict=True)
            if unit >= 0
        ]
        for row in zip(scores, tickets, state.units, strict=True)
    ]


def assert_same_patches(got: TopK, maps: Tensor, score: Ranking, k: int) -> None:
    for ours, theirs in zip(listed(got), loop_top_k(maps, score, k), strict=True):
        assert [item[1:] for item in ours] == [item[1:] for item in theirs]
        assert [item[0] for item in ours] == pytest.approx([item[0] for item in theirs], rel=1e-6)


def run(
    maps: Tensor,
    order: Tensor,
    batch: int,
    score: Ranking,
    k: int,
    *,
    per_image: int = 1,
    how: Rescaled | None = None,
) -> TopK:
    state = TopK.empty(maps.shape[1], k)
    for images in torch.split(order, batch):
        found = score_maps(maps[images], images, state, score, per_image, how)
        found = found.true(how) if how else found
        state = state.merged(found.candidates(images))
    return state


@given(st.lists(FINITE, min_size=2, max_size=30))
def test_keys_sort_by_value_then_by_earlier_ticket_and_unpack_exactly(values: list[float]) -> None:
    scores, tickets = torch.tensor(values), torch.arange(len(values)) * 7
    keys = pack(scores, tickets)
    order = sorted(range(len(values)), key=lambda i: (-np.float32(values[i]), i))
    assert keys.argsort(descending=True).tolist() == order
    back, numbers = unpack(keys)
    assert torch.equal(back, scores)
    assert torch.equal(numbers, tickets)


def test_keys_hold_for_the_largest_ticket() -> None:
    scores, tickets = unpack(pack(torch.tensor([-1.5]), torch.tensor([2**32 - 1])))
    assert (scores.item(), tickets.item()) == (-1.5, 2**32 - 1)


@pytest.mark.parametrize("score", Ranking)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_running_top_k_equals_a_loop_that_keeps_everything(score: Ranking, batch: int) -> None:
    maps = few_values(1, 61, 5, 3, 4)
    assert_same_patches(run(maps, torch.arange(61), batch, score, 9), maps, score, 9)


@pytest.mark.parametrize("score", Ranking)
def test_the_order_in_which_images_come_does_not_matter(score: Ranking) -> None:
    maps = few_values(2, 40, 3, 2, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    forward, mixed = (run(maps, o, 6, score, 5) for o in (torch.arange(40), order))
    assert torch.equal(forward.keys, mixed.keys)
    assert torch.equal(forward.units, mixed.units)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 29), k=st.integers(1, 35), seed=st.integers(0, 99))
def test_merging_the_top_k_of_two_halves_is_the_top_k_of_all(cut: int, k: int, seed: int) -> None:
    maps, images = few_values(seed, 30, 2, 2, 2), torch.arange(30)
    whole = run(maps, images, 8, Ranking.MAX, k)
    first, second = (run(maps, part, 8, Ranking.MAX, k) for part in (images[:cut], images[cut:]))
    for merged in (first.merged(second), second.merged(first)):
        assert torch.equal(merged.keys, whole.keys)
        assert torch.equal(merged.units, whole.units)


def test_fewer_images_than_k_leave_places_empty() -> None:
    state = run(few_values(3, 2, 4, 2, 2), torch.arange(2), 2, Ranking.MAX, 5)
    assert (state.units >= 0).sum(1).tolist() == [2, 2, 2, 2]


def loop_summits(grid: list[list[float]]) -> list[tuple[float, int]]:
    found = []
    rows, columns = len(grid), len(grid[0])
    for y in range(rows):
        for x in range(columns):
            around = [
                grid[j][i]
                for j in range(max(0, y - 1), min(rows, y + 2))
                for i in range(max(0, x - 1), min(columns, x + 2))
            ]
            if grid[y][x] == max(around):
                found.append((grid[y][x], y * columns + x))
    return sorted(found, key=lambda item: (-item[0], item[1]))


@pytest.mark.parametrize("batch", [1, 5, 20])
@pytest.mark.parametrize("per_image", [2, 3])
def test_several_patches_of_an_image_are_its_highest_summits(per_image: int, batch: int) -> None:
    maps, k = few_values(4, 20, 3, 4, 5), 7
    got = listed(run(maps, torch.arange(20), batch, Ranking.MAX, k, per_image=per_image), per_image)
    for channel in range(3):
        everything = [
            (value, image, unit)
            for image in range(20)
            for value, unit in loop_summits(maps[image, channel].tolist())[:per_image]
        ]
        everything.sort(key=lambda item: (-item[0], item[1], item[2]))
        assert got[channel] == everything[:k]


def test_a_map_with_one_summit_offers_no_second_patch() -> None:
    bump = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 0.0]]])
    values, places = peaks(bump, 2)
    assert values.tolist() == [[2.0, -math.inf]]
    assert places[0, 0].item() == 4


def stats_of(scores: Tensor, batch: int) -> ScoreStats:
    stats = ScoreStats.empty(scores.shape[1])
    for part in torch.split(scores, batch):
        stats = stats.with_scores(part, part)
    return stats


@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_quantiles_are_within_the_stated_error_of_the_nearest_rank(scale: float) -> None:
    scores = torch.randn(501, 3, generator=torch.Generator().manual_seed(5)) * scale
    levels = (0.0, 0.05, 0.25, 0.5, 0.95, 1.0)
    got = stats_of(scores, 32).quantiles(levels)
    exact = np.quantile(scores.double().numpy(), levels, axis=0, method="inverted_cdf").T
    np.testing.assert_allclose(got.numpy(), exact, rtol=RELATIVE_ERROR, atol=2.0**-16)


def test_quantiles_beyond_the_histogram_stay_between_the_extremes() -> None:
    scores = torch.tensor([[1e30], [2e30], [-3e30], [1e-30]])
    quantiles = stats_of(scores, 4).quantiles((0.0, 0.5, 1.0))[0]
    assert scores.min() <= quantiles.min()
    assert quantiles.max() <= scores.max()
    assert quantiles.tolist() == sorted(quantiles.tolist())


def test_counts_and_means_equal_a_loop_whatever_the_batches() -> None:
    scores = few_values(6, 50, 4)
    for batch in (1, 7, 64):
        stats = stats_of(scores, batch)
        assert stats.count == 50
        assert stats.active.tolist() == [sum(v > 0 for v in c) for c in scores.T.tolist()]
        assert stats.mean().tolist() == pytest.approx(
            [sum(c) / 50 for c in scores.T.tolist()], rel=1e-6
        )


def test_merged_statistics_equal_those_of_all_images() -> None:
    scores = few_values(7, 30, 3)
    whole, halves = stats_of(scores, 30), stats_of(scores[:11], 4).merged(stats_of(scores[11:], 5))
    for name, value in vars(whole).items():
        other = getattr(halves, name)
        assert value == other if name == "count" else torch.equal(value, other), name


def test_active_share_counts_images_with_a_unit_above_zero_not_scores() -> None:
    stats = ScoreStats.empty(1).with_scores(
        torch.tensor([[5.0], [4.0]]), torch.tensor([[0.0], [1]])
    )
    assert stats.active.tolist() == [1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("score", [Ranking.MAX, Ranking.MEAN])
@pytest.mark.parametrize("per_image", [1, 2])
def test_rescaled_maps_give_the_true_ones_top_k(layout, score, per_image):
    if per_image > 1 and score is not Ranking.MAX:
        return
    maps = torch.randn(20, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    scale, shift = torch.tensor([2.0, -3, 1, -0.1]), torch.tensor([1.0, -2, 0, 5])
    images, none = torch.arange(20), TopK.empty(4, 5)
    wanted = run(maps, images, 6, score, 5, per_image=per_image)
    true = score_maps(maps, images, none, score)
    for negative in (True, False):
        scale = scale if negative else scale.abs()
        changed = (maps * scale[:, None, None] + shift[:, None, None]).to(memory_format=layout)
        how = Rescaled.of(scale, shift)
        scores = score_maps(changed, images, none, score, 1, how).true(how)
        torch.testing.assert_close(scores.ranked, true.ranked, atol=5e-5, rtol=0)
        torch.testing.assert_close(scores.highest_NF, true.highest_NF, atol=5e-5, rtol=0)
        found = run(changed, images, 6, score, 5, per_image=per_image, how=how)
        assert torch.equal(found.units, wanted.units)
        got, want = unpack(found.keys), unpack(wanted.keys)
        assert torch.equal(got[1], want[1])
        torch.testing.assert_close(got[0], want[0], atol=5e-5, rtol=0)


def test_a_rescaled_zero_stays_zero():
    scale, shift = torch.rand(1000) + 0.01, torch.randn(1000)
    how = Rescaled.of(scale, shift)
    assert not how.true(shift[None]).any()
    assert (how.true((shift + 1e-4 * scale)[None])[0, shift.abs() / scale < 1] > 0).all()


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 4, 7, 5), (2, 3, 1, 9), (2, 3, 6, 1), (1, 8, 1, 1)])
def test_of_equal_units_the_first_is_the_strongest(shape, layout, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    maps = torch.randint(-2, 3, shape).to(dtype).to(memory_format=layout)  # many ties
    falling = torch.tensor([0, shape[1] - 1])
    for least in (None, falling):
        signs = torch.ones(shape[1], 1)
        signs[[] if least is None else least] = -1
        flat = maps.float().flatten(2) * signs
        values, units = strongest(maps, least)
        assert units.tolist() == flat.numpy().argmax(2).tolist()
        assert torch.equal(values.float() * signs[:, 0], flat.amax(2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_score(layout, bad):
    maps = torch.randn(2, 3, 4, 5)
    maps[1, 2, 3, 1] = bad
    maps = maps.to(memory_format=layout)
    for score in Ranking:
        found = score_maps(maps, torch.arange(2), TopK.empty(3, 2), score)
        assert found.ranked.isfinite().tolist() == [[True] * 3, [True, True, False]]
