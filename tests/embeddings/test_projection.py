"""t-SNE: the map keeps neighbors, and its divergence is that of the paper."""

import numpy as np
import pytest
from openTSNE import kl_divergence

from cnnviz.core.errors import UsageError
from cnnviz.embeddings import neighbors
from cnnviz.embeddings import tsne as projection
from cnnviz.embeddings.experiment import fitting
from cnnviz.embeddings.neighbors import nearest
from cnnviz.embeddings.options import EmbeddingSpec
from cnnviz.embeddings.pca import pca
from cnnviz.embeddings.quality import preservation
from cnnviz.embeddings.tsne import affinities, check_perplexity, divergence, tsne


def blobs(count, dimensions=20, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dimensions)) * 3
    points = centres[rng.integers(5, size=count)] + rng.normal(size=(count, dimensions))
    return points.astype(np.float32)


@pytest.fixture(scope="module")
def data():
    points = blobs(300)
    return points, pca(points, 50).scores_Nc, nearest(points, 45)


@pytest.fixture(scope="module")
def result(data):
    """The map and its divergence."""
    return tsne(data[2], data[1], 15)


def loop_divergence(p_NN, y_N2):
    """Pair by pair, in float64, as the paper writes it."""
    count = len(y_N2)
    q = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                q[i, j] = 1 / (1 + np.sum((y_N2[i] - y_N2[j]) ** 2))
    positive = p_NN > 0
    return (p_NN[positive] * np.log(p_NN[positive] / (q / q.sum())[positive])).sum()


@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_divergence_is_that_of_the_paper(spread, monkeypatch):
    monkeypatch.setattr(neighbors, "TILE_ROWS", 7)
    monkeypatch.setattr(neighbors, "TILE_COLUMNS", 16)
    p = affinities(nearest(blobs(40), 15), 5).P
    places = np.random.default_rng(1).normal(size=(40, 2)) * spread
    places = places.astype(np.float32)
    expected = loop_divergence(p.toarray(), places.astype(np.float64))
    assert divergence(p, places, "cpu") == pytest.approx(expected, rel=1e-9)


def test_the_map_keeps_neighbors(data, result):
    reference = nearest(data[0], 10).indices
    assert preservation(reference, nearest(result[0], 10).indices) > 0.3


def test_one_seed_gives_one_map(data, result):
    again, _ = tsne(data[2], data[1], 15)
    np.testing.assert_array_equal(again, result[0])


def test_divergence_agrees_with_openTSNEs_own(data, result):
    p = affinities(data[2], 15).P
    theirs = kl_divergence.kl_divergence_exact(p.toarray(), result[0].astype(np.float64))
    assert result[1] == pytest.approx(theirs, rel=1e-4)


def test_identical_points_do_not_break_the_map():
    points = blobs(60)
    points[:40] = points[0]
    places, error = tsne(nearest(points, 15), pca(points, 50).scores_Nc, 5)
    assert np.isfinite(places).all()
    assert np.isfinite(error)


def test_points_on_a_line_spread_over_the_plane():
    line = np.linspace(0, 1, 40, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    places, _ = tsne(nearest(line, 15), pca(line, 50).scores_Nc, 5)
    assert (places.std(0) > 0.1).all()


def test_the_divergence_is_reported_as_it_falls(data, result):
    reported = []
    tsne(data[2], data[1], 15, watch=lambda *at: reported.append(at))
    assert [iteration for iteration, _ in reported] == [250, 500, 750]
    divergences = [error for _, error in reported]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] == pytest.approx(result[1], rel=0.05)


def test_progress_counts_every_iteration(data):
    steps = []
    tsne(data[2], data[1], 15, progress=steps.append)
    assert sum(steps) == projection.TOTAL_ITERATIONS


@pytest.mark.parametrize(("count", "reduced"), [(91, 30), (90, 29), (59, 19), (4, 1), (3, 30)])
def test_the_default_perplexity_is_reduced_to_fit(count, reduced):
    assert fitting(EmbeddingSpec(), count).perplexities == (reduced,)
    assert fitting(EmbeddingSpec(perplexities=(35.0,)), count).perplexities == (35,)


def test_too_large_a_perplexity_names_the_largest_that_works():
    with pytest.raises(
        UsageError,
        match="--perplexity 30 needs over 90 images, and there are 76; "
        "the largest that works is 25",
    ):
        check_perplexity(30, 76)
    check_perplexity(25, 76)


@pytest.mark.parametrize("value", ["0.5", "-3", "nan"])
def test_perplexity_below_one_is_refused(value):
    with pytest.raises(UsageError, match=f"--perplexity {value} is too small; it takes 1 to 33"):
        check_perplexity(float(value), 100)


def test_three_images_are_too_few():
    with pytest.raises(UsageError, match=r"3 images are too few for t-SNE, .* use --method pca"):
        check_perplexity(1, 3)
