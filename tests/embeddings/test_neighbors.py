"""Neighbours: the same as scikit-learn's brute force, also where float32 alone goes wrong."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from cnnviz.core.errors import UsageError
from cnnviz.embeddings import neighbors
from cnnviz.embeddings.neighbors import near_points, nearest


def clusters(count, dimensions, spread=1.0, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dimensions)) * 3
    points = centres[rng.integers(5, size=count)] + spread * rng.normal(size=(count, dimensions))
    return (points + offset).astype(np.float32)


def brute_force(points, k):
    wide = points.astype(np.float64)
    finder = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="sqeuclidean").fit(wide)
    _, columns = finder.kneighbors()
    return columns, np.linalg.norm(wide[columns] - wide[:, None], axis=-1)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighbors, "TILE_ROWS", 64)
    monkeypatch.setattr(neighbors, "TILE_COLUMNS", 80)


@pytest.mark.parametrize("dimensions", [2, 50, 300])
def test_neighbours_are_those_of_brute_force(dimensions, small_tiles):
    points = clusters(500, dimensions)
    found = nearest(points, 20)
    columns, distances = brute_force(points, 20)
    np.testing.assert_array_equal(found.indices, columns)
    np.testing.assert_allclose(found.distances, distances, rtol=5e-4)


def test_exact_where_float32_distances_drown_in_rounding():
    points = clusters(400, 200, spread=2e-3, offset=50.0)
    columns, distances = brute_force(points, 15)
    centred = torch.from_numpy(points - points.mean(0))
    norms = centred.square().sum(1)
    hasty = (norms[:, None] + norms - 2 * centred @ centred.T).fill_diagonal_(torch.inf)
    hasty = hasty.topk(15, largest=False).indices
    assert (np.sort(hasty.numpy()) != np.sort(columns)).any(), "the case is too easy"
    found = nearest(points, 15)
    np.testing.assert_array_equal(found.indices, columns)
    np.testing.assert_allclose(found.distances, distances, rtol=5e-4)


def test_tiled_equals_untiled(monkeypatch):
    points = clusters(300, 100)
    whole = nearest(points, 10)
    monkeypatch.setattr(neighbors, "TILE_ROWS", 7)
    monkeypatch.setattr(neighbors, "TILE_COLUMNS", 13)
    tiled = nearest(points, 10)
    np.testing.assert_array_equal(whole.indices, tiled.indices)
    np.testing.assert_allclose(whole.distances, tiled.distances, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [10, 100])
def test_identical_points_are_at_distance_zero_in_order_of_index(dimensions):
    points = clusters(60, dimensions)
    points[30] = points[10] = points[5]
    found = nearest(points, 3)
    for point, others in ((5, [10, 30]), (10, [5, 30]), (30, [5, 10])):
        assert found.indices[point, :2].tolist() == others
        assert found.distances[point, :2].tolist() == [0, 0]
        assert found.distances[point, 2] > 0


def test_memory_mapped_points_are_read_in_place(tmp_path):
    points = clusters(200, 80)
    mapped = np.memmap(tmp_path / "points", np.float32, "w+", shape=points.shape)
    mapped[:] = points
    np.testing.assert_array_equal(nearest(mapped, 5).indices, nearest(points, 5).indices)


def test_progress_counts_every_point(small_tiles):
    steps = []
    nearest(clusters(150, 3), 2, progress=steps.append)
    assert steps == [64, 64, 22]


@pytest.mark.parametrize("k", [0, 10])
def test_more_neighbours_than_points_are_refused(k):
    with pytest.raises(UsageError, match=rf"10 points do not have {k} neighbors each; use 1 to 9"):
        nearest(clusters(10, 3), k)


def test_whole_rows_hold_no_more_pairs_than_allowed():
    tiles = list(neighbors.row_tiles(500, max_pairs=5000))
    assert np.concatenate(tiles).tolist() == list(range(500))
    assert max(len(rows) for rows in tiles) * 500 == 5000
    assert len(next(neighbors.row_tiles(10, max_pairs=3))) == 1


def test_of_very_many_points_nearly_all_neighbours_are_found(monkeypatch):
    monkeypatch.setattr(neighbors, "LARGEST_EXACT", 100)
    points = clusters(600, 30)
    found, exact = near_points(points, 15), nearest(points, 15)
    assert exact.exact
    assert not found.exact
    shared = [len({*a} & {*b}) for a, b in zip(found.indices, exact.indices, strict=True)]
    assert sum(shared) / found.indices.size > 0.95
    assert not (found.indices == np.arange(600)[:, None]).any()
    true = np.linalg.norm(points[found.indices].astype(float) - points[:, None], axis=-1)
    np.testing.assert_allclose(found.distances, true, rtol=1e-3)
    again = near_points(points, 15)
    assert (again.indices == found.indices).all()
    assert near_points(points[:100], 15).exact
