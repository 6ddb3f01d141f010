"""Quality measures: the same as scikit-learn's, and right where the answer is known."""

import numpy as np
import pytest
from sklearn import manifold, metrics
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from cnnviz.embeddings import neighbors, quality
from cnnviz.embeddings.neighbors import nearest


@pytest.fixture
def space(monkeypatch):
    monkeypatch.setattr(neighbors, "TILE_ROWS", 32)
    monkeypatch.setattr(neighbors, "TILE_COLUMNS", 50)
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=130)
    centres = rng.normal(size=(4, 20))
    points = (centres[labels] + rng.normal(size=(130, 20))).astype(np.float32)
    places = (points[:, :2] + 0.5 * rng.normal(size=(130, 2))).astype(np.float32)
    return points, places, labels


def test_trustworthiness_is_scikit_learns(space):
    points, places, _ = space
    found = nearest(places, 10).indices
    expected = manifold.trustworthiness(points.astype(float), places.astype(float), n_neighbors=10)
    assert quality.trustworthiness(points, found) == pytest.approx(expected, abs=1e-12)
    assert expected < 0.95


def test_trustworthiness_is_left_out_where_it_is_not_defined(space):
    points, places, _ = space
    assert quality.trustworthiness(points[:20], nearest(places[:20], 10).indices) is None


def test_silhouette_is_scikit_learns(space):
    points, _, labels = space
    expected = metrics.silhouette_score(points.astype(float), labels)
    assert quality.silhouette(points, labels) == pytest.approx(expected, abs=1e-9)


def test_silhouette_counts_a_class_of_one_as_zero(space):
    points, _, labels = space
    labels = labels.copy()
    labels[7] = 4
    expected = metrics.silhouette_score(points.astype(float), labels)
    assert quality.silhouette(points, labels) == pytest.approx(expected, abs=1e-9)


def test_silhouette_ignores_points_without_a_label(space):
    points, _, labels = space
    partly = labels.copy()
    partly[::3] = -1
    kept = partly != -1
    expected = metrics.silhouette_score(points[kept].astype(float), labels[kept])
    assert quality.silhouette(points, partly) == pytest.approx(expected, abs=1e-9)


def test_silhouette_of_identical_points_is_zero():
    assert quality.silhouette(np.ones((6, 3), np.float32), np.array([0, 0, 0, 1, 1, 1])) == 0


def test_knn_accuracy_is_leave_one_out(space):
    points, _, labels = space
    voter = KNeighborsClassifier(10, algorithm="brute")
    expected = cross_val_score(voter, points.astype(float), labels, cv=LeaveOneOut()).mean()
    found = nearest(points, 10).indices
    assert quality.knn_accuracy(found, labels) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 1


def test_neighbours_without_a_label_have_no_vote():
    labels = np.array([0, 0, -1, 1])
    found = np.array([[2, 1], [2, 3], [0, 1], [2, 2]])
    assert quality.knn_accuracy(found, labels) == pytest.approx(1 / 3)


def test_without_labels_the_label_measures_are_left_out(space):
    points, places, _ = space
    unknown = np.full(130, -1)
    judged = quality.map_quality(points, nearest(points, 50).indices, places, unknown)
    assert judged.knn_accuracy is judged.silhouette is None


def test_one_class_has_no_silhouette(space):
    points, _, _ = space
    assert quality.silhouette(points, np.zeros(130, np.int64)) is None


def test_preservation_is_the_mean_overlap(space):
    points, places, _ = space
    reference, found = nearest(points, 10).indices, nearest(places, 10).indices
    overlaps = [len(set(a) & set(b)) / 10 for a, b in zip(reference, found, strict=True)]
    assert quality.preservation(reference, found) == pytest.approx(np.mean(overlaps))


def test_a_faithful_map_is_perfect(space):
    _, places, labels = space
    turned = places @ np.array([[0, -3], [3, 0]], np.float32)
    judged = quality.map_quality(places, nearest(places, 50).indices, turned, labels)
    assert judged.preservation_10 == judged.preservation_50 == 1
    assert judged.trustworthiness == 1
    assert judged.spearman == pytest.approx(1, abs=1e-5)


def test_a_shuffled_map_is_no_better_than_chance(space):
    points, places, labels = space
    shuffled = places[np.random.default_rng(1).permutation(130)]
    judged = quality.map_quality(points, nearest(points, 50).indices, shuffled, labels)
    assert judged.preservation_10 == pytest.approx(10 / 129, abs=0.05)
    assert judged.trustworthiness == pytest.approx(0.5, abs=0.06)
    assert judged.spearman == pytest.approx(0, abs=0.15)
    assert judged.knn_accuracy == pytest.approx(0.25, abs=0.12)


def test_few_points_have_no_fifty_neighbours(space):
    points, places, labels = space
    few = slice(0, 30)
    reference = nearest(points[few], 29).indices
    judged = quality.map_quality(points[few], reference, places[few], labels[few])
    assert judged.preservation_50 is None
    assert judged.preservation_10 is not None
    assert judged.knn_accuracy is not None


def test_points_that_are_all_neighbours_of_each_other_tell_nothing(space):
    points, places, labels = space
    for count, known in ((11, False), (12, True)):
        few = slice(0, count)
        reference = nearest(points[few], count - 1).indices
        judged = quality.map_quality(points[few], reference, places[few], labels[few])
        assert (judged.preservation_10 is not None) is known
        assert (judged.knn_accuracy is not None) is known


def test_distances_that_do_not_vary_correlate_with_nothing():
    places = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    assert quality.distance_correlation(places, places, seed=0) == 0


def test_a_part_of_the_points_is_judged_against_all(space):
    points, places, labels = space
    rows = np.array([3, 4, 17, 40, 90])
    found = nearest(places, 10).indices
    part = quality.trustworthiness(points, found[rows], rows)
    alone = [quality.trustworthiness(points, found[[row]], np.array([row])) for row in rows]
    assert part == pytest.approx(np.mean(alone), abs=1e-12)
    everything = [quality.trustworthiness(points, found[[r]], np.array([r])) for r in range(130)]
    whole = quality.trustworthiness(points, found)
    assert np.mean(everything) == pytest.approx(whole, abs=1e-12)
    right = quality.knn_accuracy(found[rows], labels, rows)
    each = [quality.knn_accuracy(found[[row]], labels, np.array([row])) for row in rows]
    assert right == pytest.approx(np.mean(each))
    assert (nearest(points, 7, rows=rows).indices == nearest(points, 7).indices[rows]).all()


def test_of_very_many_points_a_seeded_part_is_judged():
    assert (quality.judged_points(25_000, 0) == np.arange(25_000)).all()
    many = quality.judged_points(25_001, 0)
    assert len(many) == len(set(many.tolist())) == quality.JUDGED
    assert (many == quality.judged_points(25_001, 0)).all()
    assert (many != quality.judged_points(25_001, 1)).any()
