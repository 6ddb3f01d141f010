"""Networks whose evidence is known by construction: what the scorecard says of maps of them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import image_of
from torch import Tensor

from cnnviz.core import WorkingImage, load_model
from cnnviz.core.maps import rank_correlation
from cnnviz.trust import Scorecard, Verdict
from cnnviz.trust.judge import Judge
from cnnviz.trust.options import TrustSpec

A, B = (slice(6, 14), slice(4, 12)), (slice(23, 31), slice(22, 30))
C = (slice(4, 12), slice(20, 28))
NET = """
import torch
from torch import nn


class Planted(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.red = kind, nn.Conv2d(3, 1, 1, bias=False)
        self.red.weight.data = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)

    def forward(self, x):
        red = self.red(x)[:, 0]
        a, b, c = (
            red[:, rows, columns].mean((1, 2))
            for rows, columns in (
                (slice(6, 14), slice(4, 12)),
                (slice(23, 31), slice(22, 30)),
                (slice(4, 12), slice(20, 28)),
            )
        )
        seen = {"one": a, "either": torch.maximum(a, b), "against": a - c / 2}[self.kind]
        margin = 8 * seen - 2
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def one():
    return Planted("one")


def either():
    return Planted("either")


def against():
    return Planted("against")
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "planted.py"
    path.write_text(NET)
    return path


def picture(*bright: tuple[slice, slice]) -> WorkingImage:
    pixels = torch.zeros(3, 32, 32)
    for rows, columns in bright:
        pixels[:, rows, columns] = 1
    return image_of(pixels)


def cards(
    source: Path, kind: str, image: WorkingImage, **maps: Tensor
) -> tuple[Tensor, Scorecard, dict[str, Scorecard]]:
    """Occlusion's map of class 0 and its card, and those of other maps of it."""
    model = load_model(f"{source}:{kind}", size=32, mean=[0.0], std=[1.0])
    judge = Judge.of(model, TrustSpec(targets=("0",)))
    result = judge.occluder.run(image)
    (own,) = judge.of_occlusion(result)
    others = {name: judge.of_maps(result, {0: map_HW})[0] for name, map_HW in maps.items()}
    return result.panels[0].map_HW, own, others


def marked(*places: tuple[slice, slice]) -> Tensor:
    """A hill over each place."""
    hills = torch.zeros(32, 32)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    for rows, columns in places:
        middle = (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
        hills += torch.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / 30)
    return hills


def test_of_one_place_the_right_map_is_better_than_the_wrong_one(source: Path) -> None:
    image = picture(A, B)
    map_HW, own, others = cards(source, "one", image, right=marked(A), wrong=marked(B))
    assert map_HW[A].mean() > 4 * map_HW.mean()
    assert own.gain > 0.3
    assert own.verdict is not Verdict.CHANCE
    assert own.effect > 4
    right, wrong = others["right"], others["wrong"]
    assert right.trust > wrong.trust + 0.2
    assert right.agreement > wrong.agreement
    assert wrong.verdict is Verdict.CHANCE
    assert wrong.gain < right.gain


def test_of_two_places_either_of_which_would_do_occlusion_says_that_it_knows_nothing(
    source: Path,
) -> None:
    image = picture(A, B)
    map_HW, own, others = cards(source, "either", image, both=marked(A, B))
    assert map_HW.abs().max() == 0
    assert own.verdict is Verdict.WEAK
    assert others["both"].gain > own.gain + 0.1


def test_what_speaks_against_is_negative_and_its_removal_raises_the_class(source: Path) -> None:
    map_HW, own, _others = cards(source, "against", picture(A, C))
    assert map_HW[A].mean() > 0 > map_HW[C].mean()
    assert own.gain > 0
    least = next(c for c in own.curves if c.fill == "mean" and "least" in c.order)
    assert max(least.scores) > least.scores[0] + 0.5


def test_a_blank_answer_of_a_map_is_chance(source: Path) -> None:
    _map, _own, others = cards(source, "one", picture(A), nothing=torch.zeros(32, 32))
    assert set(others["nothing"].witnesses.values()) == {0}
    assert others["nothing"].line == "too weak to judge: the map has no positive evidence"


@pytest.mark.needs("quantus")
def test_correlations_are_those_of_quantus() -> None:
    with warnings.catch_warnings(action="ignore"):
        similarity = pytest.importorskip("quantus.functions.similarity_func")
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 400))
    found = rank_correlation(
        torch.from_numpy(first).view(20, 20), torch.from_numpy(second).view(20, 20)
    )
    assert found == pytest.approx(similarity.correlation_spearman(first, second), abs=1e-9)
