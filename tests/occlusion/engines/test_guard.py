"""The incremental engine is never believed unchecked: each of these faults is planted in it."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from networks import image_of
from torch import Tensor, nn

from cnnviz.core.models.load import load_model
from cnnviz.core.output.record import to_json
from cnnviz.occlusion.engines.choose import choose
from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import Scores, prepare
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.options import EngineChoice, OcclusionSpec

SIZE = (24, 24)
BOXES = torch.tensor([[y, x, y + 6, x + 6] for y in range(0, 24, 6) for x in range(0, 24, 6)])
Run = Callable[..., Scores]


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, *SIZE, generator=generator), torch.zeros(3, *SIZE)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 24 * 24, 3)
    ).eval()


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Scores], Scores]) -> None:
    run: Run = IncrementalEngine.run
    monkeypatch.setattr(IncrementalEngine, "run", lambda *a, **k: change(run(*a, **k)))


def off_by(size: float) -> Callable[[Scores], Scores]:
    return lambda s: replace(s, logits_PK=s.logits_PK + size)


@pytest.mark.parametrize("choice", [EngineChoice.INCREMENTAL, EngineChoice.AUTO])
@pytest.mark.parametrize(
    "change",
    [
        off_by(1.0),
        lambda s: replace(s, logits_PK=s.logits_PK * float("nan")),
        lambda s: replace(s, logits_PK=s.logits_PK.roll(1, 1)),
    ],
)
def test_a_wrong_number_never_leaves(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    choice: EngineChoice,
    change: Callable[[Scores], Scores],
) -> None:
    spoil(monkeypatch, change)
    prepared = prepare(net(), SIZE, device=torch.device("cpu"))
    monkeypatch.setattr(IncrementalEngine, "predict", lambda *_: 0.0)
    engine = choose(prepared, choice, BOXES, name="planted")
    image, fill = pictures()
    assert engine.name == "incremental"
    scores = engine.run(image, fill, BOXES)
    expected = FullEngine(prepared).run(image, fill, BOXES)
    assert torch.equal(scores.logits_PK, expected.logits_PK)
    assert scores.given_up is not None
    assert engine.name == "full"
    assert re.search("planted: the incremental engine (is off by|gives NaN)", caplog.text)
    caplog.clear()
    again = engine.run(fill, image, BOXES)
    assert torch.equal(again.logits_PK, FullEngine(prepared).run(fill, image, BOXES).logits_PK)
    assert again.given_up == scores.given_up
    assert not caplog.text


def test_rounding_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, off_by(1e-5))
    prepared = prepare(net(), SIZE, device=torch.device("cpu"))
    engine = choose(prepared, EngineChoice.INCREMENTAL, BOXES)
    assert engine.run(*pictures(), BOXES).given_up is None
    assert engine.name == "incremental"


def test_a_watched_layer_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(scores: Scores) -> Scores:
        assert scores.activation_P is not None
        return replace(scores, activation_P=scores.activation_P * 2 + 1)

    spoil(monkeypatch, change)
    prepared = prepare(net(), SIZE, device=torch.device("cpu"), layer="1")
    engine = choose(prepared, EngineChoice.INCREMENTAL, BOXES)
    scores = engine.run(*pictures(), BOXES)
    expected = FullEngine(prepared).run(*pictures(), BOXES)
    assert scores.activation_P is not None
    assert expected.activation_P is not None
    assert torch.equal(scores.activation_P, expected.activation_P)


def test_every_group_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in one group of positions is met after so many images at the latest."""
    prepared = prepare(net(), SIZE, device=torch.device("cpu"))
    small = [[y, x, y + 2, x + 2] for y in range(22) for x in range(22)]
    boxes = torch.tensor(small + [[0, y, 22, 24] for y in range(20)])
    groups = IncrementalEngine(prepared).plan(boxes.numpy()).groups
    assert len(groups) > 1
    for group in groups:
        places = torch.from_numpy(group.positions_N)

        def change(scores: Scores, places: Tensor = places) -> Scores:
            logits_PK = scores.logits_PK.clone()
            logits_PK[places] += 1
            return replace(scores, logits_PK=logits_PK)

        with monkeypatch.context() as patch:
            spoil(patch, change)
            engine = choose(prepared, EngineChoice.INCREMENTAL, boxes)
            runs = [engine.run(*pictures(), boxes).given_up for _ in groups]
        assert runs[-1] is not None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told_as_such(
    wrong: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, off_by(wrong))
    model = load_model()
    pixels = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
    spec = OcclusionSpec(masks=((8, 8),), stride=8, engine=EngineChoice.INCREMENTAL, verify=True)
    entry = to_json(Occluder(model, spec).run(image_of(pixels)))
    assert "gives NaN or infinite numbers, unlike the full one" in caplog.text
    assert entry["engine"] == "full"
    assert entry["incremental_given_up"] is None
    assert entry["verified_largest_difference"] is None


def test_the_summary_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, off_by(0.5))
    model = load_model()
    pixels = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
    image = image_of(pixels)
    spec = OcclusionSpec(masks=((8, 8),), stride=8, engine=EngineChoice.INCREMENTAL, verify=True)
    entry = to_json(Occluder(model, spec).run(image))
    assert entry["engine"] == "full"
    assert entry["incremental_given_up"] == pytest.approx(0.5, abs=0.01)
    assert entry["verified_largest_difference"] == pytest.approx(0.5, abs=0.01)
