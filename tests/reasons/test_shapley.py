"""Shapley values: axioms, an independent formula, Captum and shapiq, and how parts are cut."""

import math
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import image_of, model_of
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.data.images import read_image
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.reasons import ReasonsSpec, reasons
from cnnviz.reasons.segments import check_segments, parts_of
from cnnviz.reasons.shapley import exact_values, sampled_values

PARTS = 6


def game(parts: int = PARTS, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Random scores of subsets; the last part adds nothing, the first two are alike."""
    table: dict[tuple[int, int], float] = {}

    def score(kept_NP: Tensor) -> Tensor:
        found = []
        for row in kept_NP.tolist():
            alike, others = row[0] + row[1], int("".join(map(str, map(int, row[2:-1]))) or "0", 2)
            if (alike, others) not in table:
                drawn = torch.Generator().manual_seed(seed + 97 * alike + 1000 * others)
                table[alike, others] = float(torch.randn(1, generator=drawn))
            found.append(table[alike, others])
        return torch.tensor(found, dtype=torch.float64)

    return score


def by_orders(score: Callable[[Tensor], Tensor], parts: int) -> Tensor:
    """The definition: the mean gain over all orders."""
    total = torch.zeros(parts, dtype=torch.float64)
    for order in permutations(range(parts)):
        kept = torch.zeros(parts + 1, parts, dtype=torch.bool)
        for place, part in enumerate(order):
            kept[place + 1 :, part] = True
        total[list(order)] += score(kept).diff()
    return total / math.factorial(parts)


def test_exact_values_are_the_mean_over_all_orders() -> None:
    values_P, scores_N = exact_values(game(), PARTS)
    assert torch.allclose(values_P, by_orders(game(), PARTS), atol=1e-12)
    assert float(values_P.sum()) == pytest.approx(float(scores_N[-1] - scores_N[0]), abs=1e-12)
    assert float(values_P[-1]) == pytest.approx(0, abs=1e-12)  # adds nothing
    assert float(values_P[0]) == pytest.approx(float(values_P[1]), abs=1e-12)  # alike


def test_exact_values_are_shapiqs() -> None:
    shapiq = pytest.importorskip("shapiq")

    def value(kept: np.ndarray) -> np.ndarray:
        return game()(torch.from_numpy(np.asarray(kept, bool))).numpy()

    computer = shapiq.ExactComputer(n_players=PARTS, game=value)
    found = computer("SV", order=1)
    expected = [found[(part,)] for part in range(PARTS)]
    assert exact_values(game(), PARTS)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_sampled_values_sum_to_the_score_and_their_errors_cover_the_truth() -> None:
    truth_P, scores_N = exact_values(game(), PARTS)
    within = []
    for seed in range(40):
        values_P, errors_P, ends_2 = sampled_values(game(), PARTS, 60, seed)
        assert float(values_P.sum()) == pytest.approx(float(scores_N[-1] - scores_N[0]), abs=1e-9)
        assert ends_2.tolist() == scores_N[[0, -1]].tolist()
        within += ((values_P - truth_P).abs() <= 2 * errors_P + 1e-9).tolist()
    assert 0.9 < np.mean(within) <= 1  # about 95 %, of which parts without error are more


def test_a_reversed_order_removes_what_pairs_of_parts_add() -> None:
    # A sum of pairs is antisymmetric in the order: two passes through it give the exact values.
    weight_PP = torch.randn(PARTS, PARTS, generator=torch.Generator().manual_seed(1)).double()

    def score(kept_NP: Tensor) -> Tensor:
        kept = kept_NP.double()
        return ((kept @ weight_PP) * kept).sum(1)

    values_P, errors_P, _ends = sampled_values(score, PARTS, 4)
    assert torch.allclose(values_P, exact_values(score, PARTS)[0], atol=1e-9)
    assert errors_P.max() < 1e-9


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return model_of(net.eval(), (20, 20), ("a", "b", "c"))


PICTURE = image_of(torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(2)))
ALONE = {"targets": ("1",), "fill": "black", "skip": ("pairs", "filters"), "segments": "grid"}


def test_the_values_of_an_image_are_captums(model: Model) -> None:
    attr = pytest.importorskip("captum.attr")
    (target,) = reasons(model, PICTURE, ReasonsSpec(**ALONE, parts=4)).targets
    shapley = target.shapley
    assert shapley is not None
    assert shapley.permutations == 0
    assert shapley.passes == 16
    normalise = model.preprocess.normalise
    pixels, black = normalise(PICTURE.pixels)[None], normalise(torch.zeros(3, 20, 20))[None]

    def log_odds(images: Tensor) -> Tensor:
        return model.head.log_odds(model.logits(images))[:, 1]

    sampling = attr.ShapleyValues(log_odds)
    found = sampling.attribute(pixels, black, feature_mask=shapley.labels_HW[None, None])
    expected = [float(found[0, 0][shapley.labels_HW == part][0]) for part in range(4)]
    assert [part.value for part in shapley.parts] == pytest.approx(expected, abs=1e-4)
    assert sum(expected) == pytest.approx(shapley.all - shapley.none, abs=1e-4)


@pytest.mark.parametrize(("parts", "pairs", "tolerance"), [(16, 10, 1e-4), (4, 60, 0.1)])
def test_sampled_values_are_captums_of_the_same_orders_and_near_those_of_all(
    model: Model, parts: int, pairs: int, tolerance: float
) -> None:
    attr = pytest.importorskip("captum.attr")
    labels_HW = parts_of(PICTURE, "grid", parts).labels_HW
    normalise = model.preprocess.normalise
    pixels, black = normalise(PICTURE.pixels)[None], normalise(torch.zeros(3, 20, 20))[None]

    def log_odds(images: Tensor) -> Tensor:
        return model.head.log_odds(model.logits(images))[:, 1]

    def score(kept_NP: Tensor) -> Tensor:
        return log_odds(torch.where(kept_NP[:, None, labels_HW], pixels, black)).double()

    values_P, errors_P, _ends = sampled_values(score, parts, 2 * pairs, seed=3)
    sampling = attr.ShapleyValueSampling(log_odds)
    if parts == 16:  # the same orders, each with its reverse
        drawn = torch.Generator().manual_seed(3)
        orders = [torch.randperm(parts, generator=drawn) for _ in range(pairs)]
        both = [each.tolist() for order in orders for each in (order, order.flip(0))]
        sampling.permutation_generator = lambda _features, _samples: iter(both)
    else:  # Captum's own orders: all values are near the exact ones
        torch.manual_seed(0)
        assert torch.allclose(values_P, exact_values(score, parts)[0], atol=tolerance)
        assert (errors_P < tolerance).all()
    mask = labels_HW[None, None]
    found = sampling.attribute(pixels, black, feature_mask=mask, n_samples=2 * pairs)
    captums = [float(found[0, 0][labels_HW == part][0]) for part in range(parts)]
    assert values_P.tolist() == pytest.approx(captums, abs=tolerance)


def test_more_than_twelve_parts_are_sampled_and_say_so(model: Model) -> None:
    spec = ReasonsSpec(**ALONE, parts=16, permutations=20)
    (target,) = reasons(model, PICTURE, spec).targets
    shapley = target.shapley
    assert shapley is not None
    assert (len(shapley.parts), shapley.permutations, shapley.passes) == (16, 20, 302)
    assert all(part.error is not None and part.error > 0 for part in shapley.parts)
    total = sum(part.value for part in shapley.parts)
    assert total == pytest.approx(shapley.all - shapley.none, abs=1e-4)


def test_a_grid_has_at_most_so_many_parts_and_no_empty_one() -> None:
    for size, parts in (((20, 20), 12), ((8, 40), 12), ((40, 8), 5), ((3, 3), 9)):
        found = parts_of(image_of(torch.zeros(3, *size)), "grid", parts)
        assert 2 <= len(found.names) <= parts
        assert found.labels_HW.shape == size
        assert (found.labels_HW.flatten().bincount() > 0).all()


def test_superpixels_follow_the_image() -> None:
    pytest.importorskip("skimage")
    pixels = torch.zeros(3, 40, 40)
    pixels[0, :, 17:] = 1
    found = parts_of(image_of(pixels), "slic", 8)
    for part in range(len(found.names)):
        columns = (found.labels_HW == part).nonzero()[:, 1]
        assert (columns < 17).all() or (columns >= 17).all()


def test_a_label_image_of_the_file_is_cropped_with_it(tmp_path: Path, model: Model) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    labels = np.full((60, 90), 7, np.uint8)
    labels[:, 45:] = 200  # half of the file, and of its middle
    Image.fromarray(labels).save(tmp_path / "labels.png")
    image = read_image(tmp_path / "a.png", model.preprocess)
    found = parts_of(image, str(tmp_path / "labels.png"), 12)
    assert found.names == [7, 200]
    assert (found.labels_HW[:, :10] == 0).all()
    assert (found.labels_HW[:, 10:] == 1).all()
    np.save(tmp_path / "w.npy", found.labels_HW.numpy())
    assert parts_of(image, str(tmp_path / "w.npy"), 12).names == [0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 5), np.uint8), "5x5 pixels; a label image of"),
        (np.zeros((20, 20), np.uint8), "has 1 parts"),
        (np.arange(400).reshape(20, 20) * 2.5, "is float64 20x20; a label image has one whole"),
        (np.zeros((20, 20, 3), np.uint8), "is uint8 20x20x3; a label image has one whole"),
        (np.arange(441).reshape(21, 21), "21x21 pixels"),
    ],
)
def test_other_label_images_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.save(tmp_path / "l.npy", labels)
    with pytest.raises(CnnvizError, match=message):
        parts_of(PICTURE, str(tmp_path / "l.npy"), 12)


def test_what_is_no_file_is_refused_before_the_work() -> None:
    with pytest.raises(UsageError, match="no file 'squares'; --segments takes grid, slic or a"):
        check_segments("squares")
