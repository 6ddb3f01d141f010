"""Principal components: those of a decomposition in float64, whichever way they are computed."""

import tracemalloc

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cnnviz.core.errors import CnnvizError
from cnnviz.embeddings import pca as module
from cnnviz.embeddings.pca import pca


def points(count, dimensions, seed=0):
    rng = np.random.default_rng(seed)
    scales = 0.7 ** np.arange(dimensions)
    rotation = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    return ((rng.normal(size=(count, dimensions)) * scales) @ rotation + 3).astype(np.float32)


@pytest.fixture(params=["covariance", "full", "randomised"])
def way(request, monkeypatch):
    data = points(120, 60)
    limits = {"covariance": 60, "full": 50, "randomised": 0}
    monkeypatch.setattr(module, "LARGEST_MATRIX", limits[request.param])
    return data[:40] if request.param == "full" else data


def test_components_are_those_of_scikit_learn(way):
    ours = pca(way, 5)
    theirs = PCA(5, svd_solver="full").fit(way.astype(np.float64))
    expected = theirs.transform(way.astype(np.float64))
    signs = np.sign((ours.scores_Nc * expected).sum(0))
    np.testing.assert_allclose(ours.scores_Nc * signs, expected, atol=1e-4)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-5)


def test_a_file_taken_in_batches_gives_the_same_components_nearly(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BATCH", 60)
    data = points(120, 60)
    held = np.memmap(tmp_path / "points", np.float32, "w+", shape=data.shape)
    held[:] = data
    ours, expected = pca(held, 5), pca(data, 5)
    np.testing.assert_allclose(ours.explained, expected.explained, rtol=2e-2)
    alike = [
        abs(np.corrcoef(a, b)[0, 1])  # two weights that are nearly the largest decide the sign
        for a, b in zip(ours.scores_Nc.T, expected.scores_Nc.T, strict=True)
    ]
    assert min(alike) > 0.99


def test_a_file_is_never_in_memory_as_a_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BATCH", 500)
    held = np.memmap(tmp_path / "points", np.float32, "w+", shape=(20_000, 100))
    held[:] = np.random.default_rng(0).normal(size=held.shape) * np.linspace(1, 3, 100)
    tracemalloc.start()
    try:
        found = pca(held, 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.scores_Nc.shape == (20_000, 5)
    assert peak < held.nbytes / 2


def test_the_largest_weight_of_a_component_is_positive(way):
    ours = pca(way, 3)
    weights = np.linalg.lstsq(ours.scores_Nc, way - way.mean(0), rcond=None)[0]
    assert (weights[range(3), np.abs(weights).argmax(1)] > 0).all()


def test_one_seed_gives_one_result(way):
    np.testing.assert_array_equal(pca(way, 4).scores_Nc, pca(way, 4).scores_Nc)


def test_signs_do_not_hang_on_the_order_of_points(way):
    order = np.random.default_rng(1).permutation(len(way))
    shuffled = pca(way[order], 4)
    np.testing.assert_allclose(shuffled.scores_Nc, pca(way, 4).scores_Nc[order], atol=1e-4)


def test_points_on_a_line_have_one_component():
    line = np.outer(np.arange(10), [1, 2, 3]).astype(np.float32)
    result = pca(line, 3)
    assert result.scores_Nc.shape == (10, 1)
    assert result.explained[0] == pytest.approx(1)


def test_identical_points_are_refused():
    with pytest.raises(CnnvizError, match="all 7 points are the same"):
        pca(np.full((7, 5), 0.1, np.float32), 2)


@pytest.mark.parametrize("offset", [0, 1e3])
def test_a_small_variance_far_from_zero_is_no_reason_to_refuse(offset, tmp_path):
    noise = np.random.default_rng(0).normal(size=(60, 5)) * [3, 1, 0.3, 0.1, 0.03]
    points = (offset + noise * 0.1).astype(np.float32)
    exact = np.linalg.svd(points - points.mean(0, dtype=np.float64), compute_uv=False) ** 2
    file = np.memmap(tmp_path / "points", np.float32, "w+", shape=points.shape)
    file[:] = points
    for given in (points, file):
        np.testing.assert_allclose(pca(given, 5).explained, exact / exact.sum(), rtol=1e-6)


def test_a_component_of_rounding_alone_is_left_out_and_a_tiny_true_one_is_kept():
    first, second = np.random.default_rng(1).normal(size=(2, 100))
    points = np.stack([first, second * 1e-5, first], 1).astype(np.float32)
    assert pca(points, 3).explained.shape == (2,)
