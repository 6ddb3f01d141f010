"""SmoothGrad, integrated gradients, rules for ReLUs and the relatives of Grad-CAM.

Each is held against the formula of its paper in a few lines, or against Captum called directly.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networks
import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.gradients.experiment import saliency
from cnnviz.gradients.options import CAMS, SIGNED, Baseline, Method, SaliencySpec
from cnnviz.gradients.rules import try_rule

SIZE, TOP = (12, 14), ("top3",)
RULES = {Method.GUIDED_BACKPROP: GuidedBackprop, Method.DECONVOLUTION: Deconvolution}


def network(
    act: Callable[[], nn.Module] = nn.ReLU, pool: Callable[[int], nn.Module] = nn.MaxPool2d
) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3, padding=1), act(), pool(2), nn.Conv2d(6, 8, 3)]
    layers += [nn.BatchNorm2d(8), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers).eval()


def model_of(module: nn.Module, **changes: Any) -> Model:
    labels = ("ant", "bee", "cat", "dog", "elk")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    return networks.model_of(module, SIZE, labels, mean=mean, std=std, **changes)


IMAGE, BLACK = networks.noise(SIZE), torch.zeros(3, *SIZE)


def maps(module: nn.Module | Model, method: Method, **fields: Any) -> dict[int, Any]:
    model = module if isinstance(module, Model) else model_of(module)
    spec = replace(SaliencySpec(method, targets=TOP), **fields)
    return {entry.index: entry for entry in saliency(model, IMAGE, spec).targets}


def normalised(model: Model, image: WorkingImage = IMAGE) -> Tensor:
    return model.preprocess.normalise(image.pixels)[None]


def slope(module: nn.Module, pixels_1CHW: Tensor, target: int) -> Tensor:
    leaf = pixels_1CHW.detach().clone().requires_grad_()
    return torch.autograd.grad(module(leaf)[0, target], leaf)[0][0]


def close(got: Tensor, expected: Tensor) -> bool:
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_smoothgrad_is_the_mean_gradient_over_noisy_images() -> None:
    module = network()
    pixels = normalised(model_of(module))
    entries = maps(module, Method.SMOOTHGRAD, samples=7, noise=0.2, seed=3)
    generator = torch.Generator().manual_seed(3)
    deviation = 0.2 * float(pixels.max() - pixels.min())
    noisy = [
        pixels + torch.normal(0.0, torch.full(pixels.shape, deviation), generator=generator)
        for _ in range(7)
    ]
    for target, entry in entries.items():
        expected = torch.stack([slope(module, each, target) for each in noisy]).mean(0)
        assert close(entry.raw, expected)
        assert close(entry.map_HW, expected.abs().amax(0))


def test_smoothgrad_without_noise_is_the_gradient_and_noise_has_a_seed() -> None:
    module, state = network(), torch.get_rng_state()
    plain = maps(module, Method.GRADIENT)
    for target, entry in maps(module, Method.SMOOTHGRAD, noise=0, samples=2).items():
        assert close(entry.raw, plain[target].raw)
    one, same, other = (maps(module, Method.SMOOTHGRAD, samples=2, seed=s) for s in (0, 0, 1))
    for target in one:
        assert torch.equal(one[target].raw, same[target].raw)
        assert not close(one[target].raw, other[target].raw)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("baseline", list(Baseline))
def test_integrated_gradients_are_the_integral_and_complete(baseline: Baseline) -> None:
    module = network(nn.SiLU, nn.AvgPool2d)
    model = model_of(module)
    pixels = normalised(model)
    value = {"black": torch.zeros(3), "white": torch.ones(3)}.get(
        baseline, torch.tensor([0.4, 0.5, 0.6])
    )
    start = normalised(model, networks.image_of(value[:, None, None].expand(3, *SIZE)))
    entries = maps(module, Method.INTEGRATED_GRADIENTS, steps=50, baseline=baseline)
    for target, entry in entries.items():
        points = (torch.arange(2000) + 0.5) / 2000  # the midpoint rule
        line = start + points[:, None, None, None] * (pixels - start)
        leaf = line.requires_grad_()
        slopes = torch.autograd.grad(module(leaf)[:, target].sum(), leaf)[0]
        expected = (slopes.mean(0) * (pixels - start)[0]).detach()
        assert torch.allclose(entry.raw, expected, atol=1e-4 * float(expected.abs().max()))
        assert torch.allclose(entry.map_HW, entry.raw.sum(0), atol=1e-6)
        rise = float((module(pixels) - module(start))[0, target].detach())
        assert float(entry.map_HW.sum()) == pytest.approx(rise, rel=0.01)


def test_integrated_gradients_of_relus_and_maxima_are_complete() -> None:
    module = network()
    pixels, start = (normalised(model_of(module), i) for i in (IMAGE, networks.image_of(BLACK)))
    for target, entry in maps(module, Method.INTEGRATED_GRADIENTS, steps=300).items():
        rise = float((module(pixels) - module(start))[0, target].detach())
        assert float(entry.map_HW.sum()) == pytest.approx(rise, rel=0.01)


def test_integrated_gradients_that_do_not_add_up_say_so(caplog: pytest.LogCaptureFixture) -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            far = (40 * (x.mean((1, 2, 3)) - 0.03)).sigmoid()
            return torch.stack([far, -far], 1)

    model = networks.model_of(Steep(), SIZE, ("a", "b"))
    image = networks.image_of(torch.full((3, *SIZE), 1.0))
    spec = SaliencySpec(Method.INTEGRATED_GRADIENTS, steps=2)
    saliency(model, image, spec)
    assert "a larger --steps than 2 is more exact" in caplog.text
    caplog.clear()
    saliency(model, image, replace(spec, steps=200))
    assert not caplog.text


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("inplace", [False, True])
def test_rules_for_relus_equal_captum(method: Method, inplace: bool) -> None:
    entries = maps(network(lambda: nn.ReLU(inplace)), method)
    plain = network()
    with warnings.catch_warnings(action="ignore"):
        for target, entry in entries.items():
            pixels = normalised(model_of(plain)).requires_grad_()
            expected = RULES[method](plain).attribute(pixels, target=target)[0]
            assert close(entry.raw, expected)
            assert close(entry.map_HW, expected.abs().amax(0))
    assert not close(entry.raw, maps(plain, Method.GRADIENT)[target].raw)


class Reused(nn.Module):
    """One ReLU for two branches, and functions, in place and not; `apart`: a module for each."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last, self.head = nn.Conv2d(4, 6, 3), nn.Linear(6, 5)
        self.relus = nn.ModuleList([nn.ReLU() for _ in range(4 if apart else 1)])
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        if self.apart:
            first, second = self.relus[0], self.relus[1]
            third, fourth = self.relus[2], self.relus[3]
        else:
            first = second = self.relus[0]
            third, fourth = functional.relu_, functional.relu
        a, b = self.one(x), self.two(x)
        a, b = first(a), second(b)
        x = third(self.last(a - b))
        return self.head(fourth(x.mean((2, 3)) - 0.1))


@pytest.mark.parametrize("method", RULES)
def test_functions_and_modules_that_run_twice_are_relus_too(method: Method) -> None:
    """Captum's hooks see neither."""
    entries, same = maps(Reused(False), method), maps(Reused(True), method)
    with warnings.catch_warnings(action="ignore"):
        for target, entry in entries.items():
            apart = Reused(True)
            pixels = normalised(model_of(apart)).requires_grad_()
            expected = RULES[method](apart).attribute(pixels, target=target)[0]
            assert close(same[target].raw, expected)
            assert torch.equal(entry.raw, same[target].raw)


@pytest.mark.parametrize("method", RULES)
def test_networks_without_relus_are_refused_in_a_sentence(method: Method) -> None:
    said = rf"--method {method} changes the gradient of ReLUs, and net runs none \(it has GELU\)"
    for call in (lambda m: maps(m, method), lambda m: try_rule(m, method)):
        with pytest.raises(UsageError, match=said):
            call(model_of(network(nn.GELU)))
    assert try_rule(model_of(network()), method) == ""
    assert try_rule(model_of(network(nn.ReLU6)), method) == ""
    mixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.SiLU(), nn.Flatten(), nn.LazyLinear(5))
    mixed(torch.zeros(1, 3, *SIZE))
    assert "changes the ReLUs of net only; SiLU keep" in try_rule(model_of(mixed), method)


def test_a_rule_holds_inside_its_own_pass_only() -> None:
    module = network()
    before = maps(module, Method.GRADIENT)
    maps(module, Method.GUIDED_BACKPROP)
    for target, entry in maps(module, Method.GRADIENT).items():
        assert torch.equal(entry.raw, before[target].raw)


def layer_and_slope(module: nn.Sequential, layer: int, target: int) -> tuple[Any, Any]:
    """A layer's maps (C, h, w) and the logit's gradient by them, float64."""
    pixels = normalised(model_of(module))
    kept = module[: layer + 1](pixels).detach().requires_grad_()
    slopes = torch.autograd.grad(module[layer + 1 :](kept)[0, target], kept)[0]
    return kept.detach()[0].double().numpy(), slopes[0].double().numpy()


def grad_cam_pp(maps_Chw: Any, slope_Chw: Any) -> Any:
    """Equation 19 of the paper as it stands, with Y = exp(S), and equations 7 and 5."""
    alpha = np.zeros_like(slope_Chw)
    for c, i, j in np.ndindex(slope_Chw.shape):
        if second := slope_Chw[c, i, j] ** 2:
            third = slope_Chw[c, i, j] ** 3
            alpha[c, i, j] = second / (2 * second + maps_Chw[c].sum() * third)
    weights_C = (alpha * np.maximum(slope_Chw, 0)).sum((1, 2))
    return (weights_C[:, None, None] * maps_Chw).sum(0)


FORMULAS = {
    Method.GRAD_CAM: lambda a, g: (g.mean((1, 2))[:, None, None] * a).sum(0),
    Method.GRAD_CAM_PP: grad_cam_pp,
    Method.LAYERCAM: lambda a, g: (np.maximum(g, 0) * a).sum(0),
}


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("layer", [1, 5])
def test_cams_are_the_formulas_of_their_papers(method: Method, layer: int) -> None:
    module = network()
    for target, entry in maps(module, method, layer=str(layer)).items():
        expected = torch.from_numpy(FORMULAS[method](*layer_and_slope(module, layer, target)))
        assert close(entry.raw.double(), expected)
        shown = functional.interpolate(expected.clamp_min(0)[None, None], SIZE, mode="bilinear")
        assert close(entry.map_HW.double(), shown[0, 0])


def test_grad_cam_pp_holds_for_small_gradients_and_in_front_of_a_relu() -> None:
    """Where pytorch-grad-cam's constant in the denominator decides, and where sums are negative."""
    module = network()
    with torch.no_grad():
        module[8].weight *= 1e-4
    for target, entry in maps(module, Method.GRAD_CAM_PP, layer="5").items():
        expected = torch.from_numpy(grad_cam_pp(*layer_and_slope(module, 5, target)))
        assert close(entry.raw.double(), expected)
    for entry in maps(network(), Method.GRAD_CAM_PP, layer="3").values():
        assert entry.raw.isfinite().all()


def test_score_cam_weights_maps_by_the_logits_that_remain() -> None:
    module = network()
    pixels = normalised(model_of(module))
    maps_Chw = module[:6](pixels)[0].detach()
    logits = []
    for map_hw in maps_Chw:
        mask = functional.interpolate(map_hw[None, None], SIZE, mode="bilinear")
        spread = mask.max() - mask.min()
        mask = (mask - mask.min()) / spread if spread else mask * 0
        logits.append(module(pixels * mask)[0].detach())
    weights_CK = torch.stack(logits).softmax(0)
    for batch_size in (None, 1, 3):
        fields = {"layer": "5", "batch_size": batch_size}
        for target, entry in maps(module, Method.SCORE_CAM, **fields).items():
            expected = (weights_CK[:, target, None, None] * maps_Chw).sum(0)
            assert close(entry.raw, expected)


def test_score_cam_needs_no_gradient() -> None:
    class Cut(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    cut = Cut(*network())
    expected = maps(network(), Method.SCORE_CAM, layer="3")
    for target, entry in maps(cut, Method.SCORE_CAM, layer="3").items():
        assert close(entry.raw, expected[target].raw)
    others = [method for method in Method if method is not Method.SCORE_CAM]
    for method in others:
        with pytest.raises(CnnvizError, match="net cuts its gradient"):
            maps(cut, method, **({"layer": "3"} if method.of_layer else {}))


@pytest.mark.parametrize("method", list(Method))
def test_every_method_takes_every_head_and_several_targets(method: Method) -> None:
    module = network()
    probabilities = nn.Sequential(*module, nn.Softmax(1))
    heads = {
        Kind.SIGMOID: model_of(module, head=Head(Kind.SIGMOID)),
        Kind.NONE: model_of(module, head=Head(Kind.NONE)),
        "probabilities": model_of(probabilities, head=Head(probabilities_given=True)),
    }
    for model in heads.values():
        entries = maps(model, method, targets=("0", "4"), samples=2)
        assert list(entries) == [0, 4]
        assert not torch.equal(entries[0].map_HW, entries[4].map_HW)
        for entry in entries.values():
            assert entry.map_HW.shape == SIZE
            assert method in SIGNED or entry.lowest >= 0


@pytest.mark.parametrize("method", list(Method))
def test_a_failure_leaves_nothing_on_the_model(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network()
    fields = {"samples": 2, "layer": "3"} if method in CAMS else {"samples": 2}
    before = maps(module, method, **fields)
    with monkeypatch.context() as patch:
        # It fails on the way back, after all hooks are in place.
        patch.setattr(module[8], "forward", lambda x: Failing.apply(x) @ torch.ones(8, 5))
        if method is Method.SCORE_CAM:
            patch.setattr(module[8], "forward", lambda _x: 1 / 0)
        with pytest.raises(
            (CnnvizError, ZeroDivisionError), match=r"backward pass of net|division"
        ):
            maps(module, method, **fields)
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in module.modules())
    assert not any(x._backward_hooks for x in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    for target, entry in maps(module, method, **fields).items():
        assert torch.equal(entry.raw, before[target].raw)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_context: Any, _slope: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("planted")
