"""The grid: a cell for each point, optimal for few points and nearly so for many."""

import itertools

import numpy as np
import pytest

from cnnviz.embeddings import sheets as grid
from cnnviz.embeddings.sheets import grid_shape, snap_to_grid


def blobs(count, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 2)) * 3
    points = centres[rng.integers(6, size=count)] + 0.5 * rng.normal(size=(count, 2))
    return points.astype(np.float32)


def cost(places, cells, rows, columns):
    return np.square(grid._spread(places, rows, columns) - cells).sum()


def is_one_to_one(cells, rows, columns):
    inside = (cells >= 0).all() and (cells < (rows, columns)).all()
    return bool(inside) and len(np.unique(cells, axis=0)) == len(cells)


def test_few_points_are_assigned_as_trying_all_ways_would():
    places = blobs(5)
    cells, rows, columns = snap_to_grid(places)
    every = list(itertools.product(range(rows), range(columns)))
    best = min(
        cost(places, np.array(way), rows, columns) for way in itertools.permutations(every, 5)
    )
    assert cost(places, cells, rows, columns) == pytest.approx(best)


@pytest.mark.parametrize("count", [1, 2, 7, 97, 700, 1025, 1500])
def test_every_point_has_a_cell_of_its_own(count):
    cells, rows, columns = snap_to_grid(blobs(count))
    assert len(cells) == count
    assert is_one_to_one(cells, rows, columns)


def test_windows_come_within_four_percent_of_the_optimum(monkeypatch):
    places = blobs(800)
    best, rows, columns = snap_to_grid(places)
    monkeypatch.setattr(grid, "EXACT_UP_TO", 0)
    found, _, _ = snap_to_grid(places)
    assert is_one_to_one(found, rows, columns)
    halved = grid._halved(grid._spread(places, rows, columns), rows, columns)
    lowest = cost(places, best, rows, columns)
    assert lowest <= cost(places, found, rows, columns) <= 1.04 * lowest
    assert cost(places, halved, rows, columns) > 1.05 * lowest, "the case is too easy"


def test_up_on_the_map_is_up_on_the_grid():
    places = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    cells, _, _ = snap_to_grid(places)
    assert cells.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]


def test_identical_points_still_get_cells():
    cells, rows, columns = snap_to_grid(np.zeros((9, 2), np.float32))
    assert is_one_to_one(cells, rows, columns)


def test_grid_has_room_and_no_empty_row():
    for count in range(1, 200):
        rows, columns = grid_shape(count)
        assert rows * columns >= count > (rows - 1) * columns
