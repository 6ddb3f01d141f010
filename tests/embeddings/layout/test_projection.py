"""t-SNE: torch's exact gradient against openTSNE's, and the maps of both against each other."""

import numpy as np
import pytest
import torch
from openTSNE import TSNE, kl_divergence

from cnnviz.core.errors import UsageError
from cnnviz.embeddings.choices import Backend
from cnnviz.embeddings.layout import tsne as projection
from cnnviz.embeddings.layout import tsne_torch
from cnnviz.embeddings.layout.neighbors import nearest
from cnnviz.embeddings.layout.pca import pca
from cnnviz.embeddings.layout.tsne import check_perplexity, choose_backend, tsne
from cnnviz.embeddings.quality import preservation


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
def maps(data):
    _, components, near = data
    return {b: tsne(near, components, 15, backend=b) for b in (Backend.OPENTSNE, Backend.TORCH)}


@pytest.fixture
def affinities(data):
    return projection._affinities(data[2], 15, 1)


def loop_gradient(p_NN, y_N2):
    """Pair by pair, in float64, as the paper writes it (without its factor of four)."""
    count = len(y_N2)
    q = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                q[i, j] = 1 / (1 + np.sum((y_N2[i] - y_N2[j]) ** 2))
    weights = (p_NN - q / q.sum()) * q
    gradient = np.array([(weights[i, :, None] * (y_N2[i] - y_N2)).sum(0) for i in range(count)])
    positive = p_NN > 0
    return gradient, (p_NN[positive] * np.log(p_NN[positive] / (q / q.sum())[positive])).sum()


@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_gradient_and_divergence_are_those_of_the_paper(spread, monkeypatch):
    monkeypatch.setitem(tsne_torch.TILE_PAIRS, "cpu", 7 * 40)
    p = projection._affinities(nearest(blobs(40), 15), 5, 1).P
    places = np.random.default_rng(1).normal(size=(40, 2)) * spread
    places = places.astype(np.float32)
    gradient, divergence = loop_gradient(p.toarray(), places.astype(np.float64))
    forces = tsne_torch.PairForces(p, "cpu")
    ours = forces.gradient(torch.from_numpy(places)).numpy()
    np.testing.assert_allclose(ours, gradient, atol=2e-5 * np.abs(gradient).max())
    assert forces.divergence(torch.from_numpy(places)) == pytest.approx(divergence, rel=1e-5)


def test_exaggeration_multiplies_the_affinities(affinities):
    places = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    once = tsne_torch.PairForces(affinities.P, "cpu").gradient(places, 12)
    times = tsne_torch.PairForces(affinities.P * 12, "cpu").gradient(places)
    torch.testing.assert_close(once, times)


def test_descent_takes_openTSNEs_steps(affinities, data):
    start = projection.starting_places(data[1], seed=0) * 1e4
    theirs = TSNE(learning_rate=25, theta=0, n_iter=0, early_exaggeration_iter=10)
    expected = theirs.fit(affinities=affinities, initialization=start.copy())
    forces = tsne_torch.PairForces(affinities.P, "cpu")
    ours = tsne_torch.optimise(forces, start, (tsne_torch.Phase(10, 12, 25),))
    np.testing.assert_allclose(ours, np.asarray(expected), atol=1e-3 * np.abs(ours).max())


def test_torch_map_is_as_good_as_openTSNEs(maps, data):
    ours, theirs = maps[Backend.TORCH], maps[Backend.OPENTSNE]
    assert ours.divergence == pytest.approx(theirs.divergence, rel=0.02)
    reference = nearest(data[0], 10).indices
    kept = {b: preservation(reference, nearest(m.places_N2, 10).indices) for b, m in maps.items()}
    assert kept[Backend.TORCH] == pytest.approx(kept[Backend.OPENTSNE], abs=0.01)
    assert kept[Backend.TORCH] > 0.3


@pytest.mark.parametrize("backend", [Backend.OPENTSNE, Backend.TORCH])
def test_one_seed_gives_one_map(backend, maps, data):
    again = tsne(data[2], data[1], 15, backend=backend)
    np.testing.assert_array_equal(again.places_N2, maps[backend].places_N2)


def test_divergence_agrees_with_openTSNEs_own(maps, affinities):
    places = maps[Backend.OPENTSNE].places_N2.astype(np.float64)
    p = affinities.P
    theirs = kl_divergence.kl_divergence_exact(p.toarray(), places)
    assert maps[Backend.OPENTSNE].divergence == pytest.approx(theirs, rel=1e-4)


def test_identical_points_do_not_break_the_map():
    points = blobs(60)
    points[:40] = points[0]
    near = nearest(points, 15)
    for backend in (Backend.OPENTSNE, Backend.TORCH):
        result = tsne(near, pca(points, 50).scores_Nc, 5, backend=backend)
        assert np.isfinite(result.places_N2).all()
        assert np.isfinite(result.divergence)


def test_points_on_a_line_spread_over_the_plane():
    line = np.linspace(0, 1, 40, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    result = tsne(nearest(line, 15), pca(line, 50).scores_Nc, 5)
    assert (result.places_N2.std(0) > 0.1).all()


@pytest.mark.parametrize("backend", [Backend.OPENTSNE, Backend.TORCH])
def test_the_divergence_is_told_as_it_falls(backend, data, maps):
    told = []
    tsne(data[2], data[1], 15, backend=backend, watch=lambda *at: told.append(at))
    assert [iteration for iteration, _ in told] == [250, 500, 750]
    divergences = [divergence for _, divergence in told]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] == pytest.approx(maps[backend].divergence, rel=0.05)


@pytest.mark.parametrize("backend", [Backend.OPENTSNE, Backend.TORCH])
def test_progress_counts_every_iteration(backend, data):
    steps = []
    tsne(data[2], data[1], 15, backend=backend, progress=steps.append)
    assert sum(steps) == projection.total_iterations()


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


def test_auto_takes_torch_on_cuda_while_n_is_not_too_large():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    limit = projection.LARGEST_EXACT
    assert choose_backend(Backend.AUTO, limit, cuda) == Backend.TORCH
    assert choose_backend(Backend.AUTO, limit + 1, cuda) == Backend.OPENTSNE
    assert choose_backend(Backend.AUTO, 100, cpu) == Backend.OPENTSNE
    assert choose_backend(Backend.TORCH, limit + 1, cpu) == Backend.TORCH
