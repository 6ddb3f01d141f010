"""occlude against Captum's Occlusion, planted evidence, and real photographs."""

import math
from pathlib import Path

import networks
import pytest
import torch
from captum.attr import Occlusion
from networks import image_of
from torch import nn

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.models.load import Model
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.engines.choose import SAMPLE
from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.options import Border, EngineChoice, Preset, Score

PHOTOS = ("dog.jpg", "elephant.jpg", "snake.png", "spider.png", "swan-3299528_1280.jpg")


def model_of(module: nn.Module, size: int, classes: int) -> Model:
    labels = [f"class {index}" for index in range(classes)]
    return networks.model_of(module, (size, size), labels, resize=size)


def captum_map(model: Model, image: WorkingImage, target: int, mask: int, stride: int):
    """Captum's coverage-normalised map of one class's probability, (H, W)."""
    with torch.inference_mode():
        attribution = Occlusion(lambda x: model.logits(x).softmax(1)).attribute(
            model.preprocess.normalise(image.pixels)[None],
            strides=(3, stride, stride),
            sliding_window_shapes=(3, mask, mask),
            target=target,
            baselines=0,
            perturbations_per_eval=8,
        )
    return attribution[0, 0].float()


def tiny_network() -> nn.Sequential:
    """Scores far enough apart that a map is far above the rounding of its own arithmetic."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with torch.no_grad():
        network[-1].weight *= 100
    return network.requires_grad_(False)


@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
@pytest.mark.parametrize(("mask", "stride"), [(5, 3), (8, 8), (7, 2), (16, 5)])
def test_maps_equal_captums_on_a_small_network(engine, mask, stride):
    model, image = model_of(tiny_network(), 29, 5), image_of(torch.rand(3, 29, 29))
    spec = OcclusionSpec(
        ((mask, mask),), stride, targets=("2",), engine=engine, preset=Preset.CLASSIC
    )
    (panel,) = occlude(model, image, spec).panels
    expected = captum_map(model, image, 2, mask, stride)
    tolerance = 1e-4 * float(expected.max() - expected.min())
    torch.testing.assert_close(panel.map_HW, expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("photo", "mask", "stride"),
    [(PHOTOS[0], 15, 10), *((photo, 40, 13) for photo in PHOTOS[1:4])],
)
def test_maps_equal_captums_on_squeezenet_and_photographs(assets: Path, photo, mask, stride):
    model = squeezenet(assets)
    image = read_image(assets / "photos" / "scenes" / photo, model.preprocess)
    spec = OcclusionSpec(((mask, mask),), stride, preset=Preset.CLASSIC)
    (panel,) = occlude(model, image, spec).panels
    expected = captum_map(model, image, panel.target, mask, stride)
    tolerance = 1e-4 * float(expected.max() - expected.min())
    torch.testing.assert_close(panel.map_HW, expected, atol=tolerance, rtol=0)


def squeezenet(assets: Path) -> Model:
    return load_model("squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth")


class _Spot(nn.Module):
    """Class 1's logit is the brightness of a 4 x 4 spot, class 0's is nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spot = x[:, :, 9:13, 17:21].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(spot), 4 * spot], 1)


@pytest.mark.parametrize("score", list(Score))
@pytest.mark.parametrize("border", list(Border))
def test_planted_evidence_is_where_the_map_peaks(score, border):
    spec = OcclusionSpec(((4, 4),), 1, border, "black", targets=("1",), score=score)
    (panel,) = occlude(model_of(_Spot(), 32, 2), image_of(torch.ones(3, 32, 32)), spec).panels
    y, x = divmod(int(panel.map_HW.argmax()), 32)
    assert 9 <= y < 13
    assert 17 <= x < 21
    assert panel.max_drop_box == (9, 17, 13, 21)
    far = panel.map_HW.clone()
    far[5:17, 13:25] = 0
    assert far.abs().max() < 1e-6


class _Sure(nn.Module):
    """Class 1's logit is 60 and more, class 0's 0: p is 1 in every floating-point format."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strong = 60 + 4 * x[:, :, 9:13, 17:21].mean((1, 2, 3))
        weak = 1e-3 * x[:, :, 25:29, 1:5].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(strong), strong + weak], 1)


def test_the_default_score_does_not_saturate_where_the_network_is_certain():
    model, image = model_of(_Sure(), 32, 2), image_of(torch.ones(3, 32, 32))
    found = {}
    for score in (None, Score.LOSS):
        spec = OcclusionSpec(((4, 4),), 4, fill="black", targets=("1",), score=score)
        found[score] = occlude(model, image, spec).panels[0].max_drop
    assert found[None] == pytest.approx(4 * 9 / 16, rel=1e-3)  # 9 of the spot's 16 pixels
    assert found[Score.LOSS] < 1e-25


def test_every_engine_leaves_the_users_module_as_it_was():
    module = tiny_network().requires_grad_(True)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = model_of(module, 29, 5)
    formats = [p.is_contiguous() for p in module.parameters()]
    gradients = [p.requires_grad for p in module.parameters()]
    occlude(model, image_of(torch.rand(3, 29, 29)), OcclusionSpec(layer="3", verify=True))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [p.is_contiguous() for p in module.parameters()] == formats
    assert not any(layer._forward_hooks for layer in module.modules())
    assert [p.requires_grad for p in module.parameters()] == gradients


def test_the_watched_map_is_the_strongest_one_and_summed_at_each_position():
    model, image = model_of(tiny_network(), 29, 5), image_of(torch.rand(3, 29, 29))
    spec = OcclusionSpec(((8, 8),), 8, layer="4")
    measured = occlude(model, image, spec).measured
    activation = measured.activation
    prefix = model.module[:5]
    maps = prefix(image.pixels[None])[0].sum((1, 2))
    assert activation.channel == int(maps.argmax())
    assert activation.sum == pytest.approx(float(maps.max()), rel=1e-4)
    for box, found in zip(measured.grids[0].boxes_P4.tolist(), activation.sums_P, strict=True):
        covered = image.pixels.clone()
        covered[:, box[0] : box[2], box[1] : box[3]] = 0
        expected = prefix(covered[None])[0, activation.channel].sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


def test_the_samoyeds_face_is_what_its_class_hangs_on(assets: Path):
    model = squeezenet(assets)
    spec = OcclusionSpec(((45, 45),), 22, fill="gray")
    result = occlude(model, assets / "photos" / "scenes" / "dog.jpg", spec)
    (panel,) = result.panels
    assert result.measured.labels[panel.target] == "Samoyed"
    assert panel.probability == pytest.approx(0.93, abs=0.01)
    y, x = divmod(int(panel.map_HW.argmax()), 224)
    y0, x0, y1, x1 = result.measured.image.to_original((y, x, y + 1, x + 1))
    assert 150 < x0 < x1 < 1000  # the dog's head and body; it sits in the left half
    assert 30 < y0 < y1 < 1150


@pytest.mark.parametrize(
    ("target", "box"),
    [("bull mastiff", (75, 10, 170, 150)), ("tiger cat", (40, 115, 205, 224))],
)
@pytest.mark.parametrize("photo", ["both.png", "cat_dog.png"])
def test_dog_and_cat_in_one_photograph_are_told_apart(assets: Path, photo, target, box):
    model = squeezenet(assets)
    spec = OcclusionSpec(((45, 45),), 11, targets=(target,))
    result = occlude(model, assets / "photos" / "scenes" / photo, spec)
    y, x = divmod(int(result.panels[0].map_HW.argmax()), 224)
    y0, x0, y1, x1 = result.measured.image.to_original((y, x, y + 1, x + 1))
    assert box[0] <= x0 < x1 <= box[2]
    assert box[1] <= y0 < y1 <= box[3]


class _Decides(nn.Module):
    """Its forward depends on values, so that no graph of it can be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([level, -level if x.mean() > 0 else 2 * level], 1)


def test_verify_compares_the_engines_and_says_where_there_is_but_one():
    spec = OcclusionSpec(((4, 4),), 4, verify=True)
    two = occlude(model_of(tiny_network(), 29, 5), image_of(torch.rand(3, 29, 29)), spec)
    assert 0 <= two.verified_largest_difference <= 1e-4
    one = occlude(model_of(_Decides(), 29, 2), image_of(torch.rand(3, 29, 29)), spec)
    assert math.isnan(one.verified_largest_difference)


@pytest.mark.parametrize("engine", [FullEngine, IncrementalEngine])
def test_verify_looks_at_the_run_itself(engine, monkeypatch):
    """Scores that went wrong in the run must show, whichever engine made them."""
    run = engine.run

    def spoilt_run(*given):
        scores = run(*given)
        monkeypatch.undo()  # only the run, not what repeats it
        with torch.inference_mode():
            scores.logits_PK[-1] += 7
        return scores

    monkeypatch.setattr(engine, "run", spoilt_run)
    spec = OcclusionSpec(((8, 8),), 7, engine=EngineChoice(engine.name), verify=True)
    spoilt = occlude(model_of(tiny_network(), 29, 5), image_of(torch.rand(3, 29, 29)), spec)
    assert len(spoilt.measured.logits_PK) < SAMPLE
    assert spoilt.verified_largest_difference == pytest.approx(7, abs=1e-3)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(14), nn.AdaptiveMaxPool2d(14)])
def test_incremental_equals_full_through_an_adaptive_pool_that_keeps_the_size(pool):
    """As in VGG and AlexNet at their own input size: it must not stretch a window to a map."""
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)),
        *(nn.MaxPool2d(2), pool, nn.Flatten(), nn.Linear(8 * 14 * 14, 10)),
    )
    model, image = model_of(module, 56, 10), image_of(torch.rand(3, 56, 56))
    logits = []
    for engine in (EngineChoice.FULL, EngineChoice.INCREMENTAL):
        result = occlude(model, image, OcclusionSpec(((7, 7),), 5, engine=engine))
        assert result.engine == engine
        logits.append(result.measured.logits_PK)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=0)
