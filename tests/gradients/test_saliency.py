"""Saliency maps against Captum, finite differences and planted evidence."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, LayerGradCam, Saliency
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.maps import rank_correlation
from cnnviz.core.models.load import Model, load_model
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.gradients.options import Method, SaliencySpec

SIZE = (12, 14)


def network(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(8, 8, 1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def model_of(module: nn.Module, size: tuple[int, int] = SIZE) -> Model:
    labels = ("ant", "bee", "cat", "dog", "elk")
    return networks.model_of(module, size, labels, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def picture(size: tuple[int, int] = SIZE) -> WorkingImage:
    return networks.noise(size)


def normalised(model: Model, image: WorkingImage) -> Tensor:
    return model.preprocess.normalise(image.pixels)[None]


def test_a_grad_cam_without_positive_values_has_no_peak() -> None:
    layers = [nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(5, 5, bias=False))
    with torch.no_grad():
        module[-1].weight.fill_(-1)
        module[0].weight.fill_(0)
        module[0].bias.fill_(1)
    spec = SaliencySpec(method=Method.GRAD_CAM, targets=("0",))
    (found,) = saliency(model_of(module), picture(), spec).maps
    assert found.highest == 0
    assert (found.peak, found.peak_original) == (None, None)


@pytest.mark.parametrize("inplace", [False, True])
def test_gradient_equals_captum(inplace: bool) -> None:
    model, image = model_of(network(inplace)), picture()
    result = saliency(model, image, SaliencySpec(Method.GRADIENT, targets=("top5",)))
    peer = Saliency(model_of(network(False)).module)
    for found in result.maps:
        pixels = normalised(model, image).requires_grad_(True)
        expected = peer.attribute(pixels, target=found.target, abs=False)[0]
        assert torch.allclose(found.raw, expected, atol=1e-5, rtol=1e-5)
        assert torch.allclose(found.map_HW, expected.abs().amax(0), atol=1e-5)


def test_gradient_x_input_equals_captum() -> None:
    model, image = model_of(network()), picture()
    result = saliency(model, image, SaliencySpec(method=Method.GRADIENT_X_INPUT, targets=("top5",)))
    peer = InputXGradient(network(False))
    for found in result.maps:
        pixels = normalised(model, image).requires_grad_(True)
        expected = peer.attribute(pixels, target=found.target)[0].detach()
        assert torch.allclose(found.raw, expected, atol=1e-5, rtol=1e-5)
        assert torch.allclose(found.map_HW, expected.sum(0), atol=1e-5)


@pytest.mark.parametrize("layer", ["0", "1", "3", "4", "5"])
def test_grad_cam_equals_captum_at_every_kind_of_layer(layer: str) -> None:
    image = picture()
    result = saliency(
        model_of(network(True)),
        image,
        SaliencySpec(method=Method.GRAD_CAM, targets=("top5",), layer=layer),
    )
    plain = network(False)
    peer = LayerGradCam(plain, plain.get_submodule(layer))
    for found in result.maps:
        expected = peer.attribute(normalised(model_of(plain), image), target=found.target)
        assert torch.allclose(found.raw, expected[0, 0], atol=1e-5, rtol=1e-5)
        shown = functional.interpolate(expected.relu(), SIZE, mode="bilinear")[0, 0]
        assert torch.allclose(found.map_HW, shown, atol=1e-5)


def test_gradient_equals_finite_differences() -> None:
    module = network(False).double()
    model = dataclasses.replace(model_of(module))
    image = picture()
    pixels = normalised(model, image).double()
    with torch.no_grad():
        moved = pixels.repeat(3, 1, 1, 1)
        moved[1, 2, 5, 6] += 1e-5
        moved[2, 2, 5, 6] -= 1e-5
        logits = module(moved)
    slope = (logits[1, 3] - logits[2, 3]) / 2e-5
    found = saliency(
        model_of(network()), image, SaliencySpec(Method.GRADIENT, targets=("dog",))
    ).maps[0]
    assert found.raw[2, 5, 6] == pytest.approx(float(slope), rel=1e-3, abs=1e-5)


def test_gradient_x_input_of_a_linear_network_adds_up_to_its_logit() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 5, bias=False)).eval()
    result = saliency(
        model_of(module), picture(), SaliencySpec(method=Method.GRADIENT_X_INPUT, targets=("top5",))
    )
    for found in result.maps:
        assert float(found.map_HW.sum()) == pytest.approx(
            float(result.logits_K[found.target]), abs=1e-4
        )


class BrightSpot(nn.Module):
    """The logit of class 1 is what lies in one corner; nothing else matters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        spot = maps[:, :, 2:4, 3:6].sum((2, 3))
        return torch.cat([spot * 0, spot.sum(1, keepdim=True), spot], dim=1)


def test_planted_evidence_is_where_the_gradient_is() -> None:
    spec = SaliencySpec(Method.GRADIENT, targets=("2",))
    found = saliency(model_of(BrightSpot().eval()), picture(), spec).maps[0]
    rows, columns = found.map_HW.nonzero().T
    assert rows.min() >= 2
    assert rows.max() <= 3
    assert columns.min() >= 3
    assert columns.max() <= 5


def test_the_last_convolution_is_the_last_to_run_with_a_map() -> None:
    assert default_layer(model_of(network())) == "3"

    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Conv2d(4, 5, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x)).mean((2, 3))
            return out

    assert default_layer(model_of(Reversed().eval())) == "second"


class Tasks(nn.Module):
    """Classes, of which two have a tower of their own, and a decoder that runs after all."""

    def __init__(self, opaque: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.shortcut, self.tower = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.head, self.decoder = nn.Linear(4, 3), nn.Conv2d(4, 1, 3)
        self.opaque = opaque

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = self.deep(x).tanh() + self.shortcut(x)
        logits = torch.cat([self.head(x.mean((2, 3))), self.tower(x).amax((2, 3))], 1)
        self.mask = self.decoder(x)
        return logits + 0 * float(self.mask.detach().sum()) if self.opaque else logits


@pytest.mark.parametrize("opaque", [False, True])
def test_the_default_layer_is_the_last_that_the_classes_asked_for_depend_on(opaque: bool) -> None:
    """Not the decoder of another task, not another class's tower, not a shortcut; traced or not."""
    torch.manual_seed(0)
    model, image = model_of(Tasks(opaque).eval()), picture()
    layers = {}
    for targets in (("1",), ("3",), ("1", "3")):
        spec = SaliencySpec(method=Method.GRAD_CAM, targets=targets)
        found = saliency(model, image, spec)
        assert found.layer is not None
        layers[targets] = found.layer
        same = saliency(model, image, replace(spec, layer=found.layer))
        assert torch.equal(found.targets[0].raw, same.targets[0].raw)
    assert layers == {("1",): "deep.1", ("3",): "tower", ("1", "3"): "deep.1"}


def test_a_map_of_zeros_is_never_drawn_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    module = network()
    model, image = model_of(module), picture()
    for method in Method:
        saliency(model, image, SaliencySpec(method=method))
    assert not caplog.text
    head = list(module.modules())[-1]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    for method in Method:
        caplog.clear()
        saliency(model, image, SaliencySpec(method=method, targets=("1",)))
        assert f"note: the {method.value} map of bee on 'random.png'" in caplog.text
        assert "is zero everywhere: the class does not change with it" in caplog.text
    caplog.clear()
    against = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    nn.init.constant_(against[0].bias, 100.0)
    nn.init.constant_(against[3].weight, -1.0)
    saliency(model_of(against.eval()), image, SaliencySpec(method=Method.GRAD_CAM, targets=("1",)))
    assert "is zero everywhere: no position speaks for the class" in caplog.text


def test_the_model_is_left_as_it_was_even_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    model = model_of(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    saliency(model, picture(), SaliencySpec(method=Method.GRAD_CAM))
    monkeypatch.setattr(module[9], "forward", lambda _x: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        saliency(model, picture(), SaliencySpec(method=Method.GRAD_CAM, layer="3"))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(layer._forward_hooks for layer in module.modules())
    assert not any(layer.training for layer in module.modules())


def test_it_works_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        result = saliency(model_of(network()), picture())
    assert result.maps[0].map_HW.abs().max() > 0


def test_bad_requests_are_refused() -> None:
    model, image = model_of(network()), picture()
    with pytest.raises(UsageError, match="no layer 'layer9' in net"):
        saliency(model, image, SaliencySpec(method=Method.GRAD_CAM, layer="layer9"))
    with pytest.raises(UsageError, match="layer '9' of net returns a vector, not channels"):
        saliency(model, image, SaliencySpec(method=Method.GRAD_CAM, layer="9"))
    with pytest.raises(UsageError, match="wolf"):
        saliency(model, image, SaliencySpec(targets=("wolf",)))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], 5)).eval()
    with pytest.raises(CnnvizError, match="no convolution with a map for Grad-CAM"):
        saliency(model_of(flat), image, SaliencySpec(method=Method.GRAD_CAM))


@pytest.mark.parametrize("method", [Method.GRADIENT, Method.GRAD_CAM])
@pytest.mark.parametrize("spoilt", ["weight", "bias"])
def test_scores_or_gradients_that_are_not_finite_are_refused(method: Method, spoilt: str) -> None:
    module = network()
    getattr(module[9], spoilt).data[:] = float("inf")
    said = r"net gives scores or gradients that are not finite on 'random\.png' in fp32"
    with pytest.raises(CnnvizError, match=said):
        saliency(model_of(module), picture(), SaliencySpec(method=method))


def test_rank_correlation_equals_the_correlation_of_ranks() -> None:
    torch.manual_seed(4)
    first, second = torch.rand(9, 9).round(decimals=1), torch.rand(9, 9)
    expected = np.corrcoef(rankdata(first.flatten()), rankdata(second.flatten()))[0, 1]
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation(first, first * 3 - 1) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, torch.ones(9, 9)) is None
    with pytest.raises(ValueError, match="maps of"):
        rank_correlation(first, torch.ones(9, 8))


@pytest.mark.slow
def test_real_squeezenet_equals_captum(assets: Path) -> None:
    model = load_model(
        "squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth", device="cpu"
    )
    image = picture(model.input_size)
    result = saliency(model, image, SaliencySpec(method=Method.GRAD_CAM))
    module = model.module
    peer = LayerGradCam(module, module.get_submodule("features.12"))
    pixels = normalised(model, image)
    expected = peer.attribute(pixels, target=result.maps[0].target)
    mine = saliency(model, image, SaliencySpec(method=Method.GRAD_CAM, layer="features.12")).maps[0]
    assert torch.allclose(mine.raw, expected[0, 0], atol=1e-5, rtol=1e-4)
