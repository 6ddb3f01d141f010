"""The fast network against the one it stands for: answers, watched layers, changed layers."""

import copy
import warnings
from dataclasses import replace

import networks
import pytest
import torch
import torchvision
import zoo
from parts import slow_but
from torch import Tensor, fx, nn

from cnnviz.core.choices import Precision
from cnnviz.core.graph.fold import rescaling
from cnnviz.core.models.layers import conv_layers, named_layers, replace_outputs, watch_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import cached_batch, fast

FAMILIES = ("resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0", "swin_t")
TOLERANCE = 1e-5  # of the range of a layer
SIZE = (64, 64)


def trained(name: str) -> Model:
    """A network whose norms are as after training, so that folding them changes something."""
    module = networks.randomised(torchvision.models.get_model(name, weights=None))
    return networks.model_of(module, SIZE, list(map(str, range(1000))))


def batch() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def assert_near(found: Tensor, expected: Tensor) -> None:
    room = TOLERANCE * float(expected.abs().max()) + 1e-12
    torch.testing.assert_close(found, expected, rtol=0, atol=room)


@torch.inference_mode()
def assert_same(model: Model, quick: Model, names: list[str], images: Tensor) -> None:
    with watch_outputs(model.module, names) as expected:  # apart: the two may share layers
        answers = model.outputs(images)
    with watch_outputs(quick.module, names) as got:
        assert_near(quick.outputs(images), answers)
    assert list(got) == list(expected)
    for name in expected:
        assert_near(got[name], expected[name])


KEPT = [
    (name, kept) for name in FAMILIES for kept in ("nothing", "last", "convolutions", "everything")
]
ALWAYS = [
    ("resnet18", "nothing"), ("squeezenet1_1", "last"), ("mobilenet_v2", "convolutions"),
    ("resnet18", "everything"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kept"), slow_but(KEPT, *ALWAYS))
def test_answers_and_kept_layers_are_those_of_the_network(name: str, kept: str) -> None:
    model = trained(name)
    layers = [n for n, m in named_layers(model.module).items() if not isinstance(m, nn.ModuleList)]
    runs = list(watched(model, layers))
    names = {
        "nothing": [],
        "last": conv_layers(model.module)[-1:],
        "convolutions": conv_layers(model.module),
        "everything": runs,
    }[kept]
    quick = fast(model, names)
    assert isinstance(quick.module, fx.GraphModule)
    assert quick.layout is torch.channels_last
    assert_same(model, quick, names, batch())


def watched(model: Model, names: list[str]) -> dict[str, Tensor]:
    with torch.inference_mode(), watch_outputs(model.module, names) as outputs:
        model.outputs(batch()[:1])
    return outputs


@pytest.mark.parametrize("name", ["layer2", "layer2.0", "layer2.0.conv1", "layer2.0.bn1", "relu"])
def test_a_layer_is_changed_alike(name: str) -> None:
    model, images = trained("resnet18"), batch()

    def halved(output: Tensor) -> Tensor:
        return output * 0.5 + 1

    found = []
    for one in (model, fast(model, [name])):
        with torch.inference_mode(), replace_outputs(one.module, {name: halved}):
            found.append(one.outputs(images))
    with torch.inference_mode():
        assert not torch.allclose(found[0], model.outputs(images), rtol=1e-3)
    assert_near(found[1], found[0])


def test_batch_norms_are_folded_but_for_those_that_are_kept() -> None:
    model = trained("resnet18")

    def norms(names: list[str]) -> list[str]:
        module = fast(model, names).module
        steps = [str(node.target) for node in module.graph.find_nodes(op="call_module")]
        return [n for n in steps if isinstance(module.get_submodule(n), nn.BatchNorm2d)]

    assert norms([]) == []
    assert norms(["layer1.0.conv1"]) == ["layer1.0.bn1"]
    assert norms(["layer1.0.bn1"]) == ["layer1.0.bn1"]
    assert norms(["layer1"]) == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0"])
@torch.inference_mode()
def test_watched_convolutions_are_rescaled_with_their_batch_norms_folded_in(name: str) -> None:
    model, images = trained(name), batch()
    names = conv_layers(model.module)
    quick = fast(model, names, rescaled=True)
    with watch_outputs(model.module, names) as expected:
        answers = model.outputs(images)
    with watch_outputs(quick.module, names) as got:
        assert_near(quick.outputs(images), answers)
    layers, changed = named_layers(quick.module), 0
    for layer, found in got.items():
        output = found
        if rescaled := rescaling(layers[layer]):
            scale, shift = (values[:, None, None] for values in rescaled)
            output, changed = (output - shift) / scale, changed + 1
        assert_near(output, expected[layer])
    assert changed > (0 if name == "densenet121" else len(names) / 2)


@pytest.mark.parametrize(("gamma", "beta", "folded"), [
    (-0.5, 1, True), (0, 1, False), (1e-30, 1, False), (0.01, 0.6, True), (0.01, 0.7, False),
])  # fmt: skip
def test_a_batch_norm_that_hides_its_input_is_not_folded(
    gamma: float, beta: float, folded: bool
) -> None:
    norm = nn.BatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = gamma, beta
    net = nn.Sequential(nn.Conv2d(3, 2, 3), norm, nn.Flatten(), nn.Linear(2 * 36, 2)).eval()
    quick = fast(networks.model_of(net, (8, 8), "ab"), ["0"], rescaled=True)
    assert bool(rescaling(named_layers(quick.module)["0"])) is folded


def test_half_precision_is_not_rescaled() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    model = networks.model_of(net.eval().bfloat16(), (8, 8), "ab")
    quick = fast(replace(model, precision=Precision.BF16), ["0"], rescaled=True)
    assert rescaling(named_layers(quick.module)["0"]) is None


def test_the_network_is_left_as_it_was() -> None:
    model = trained("resnet18")
    state = copy.deepcopy(model.module.state_dict())
    before = {name: (id(layer), type(layer)) for name, layer in named_layers(model.module).items()}
    strides = [parameter.stride() for parameter in model.module.parameters()]
    quick = fast(model, ["layer1", "layer2.0.conv1"])
    assert quick is not model
    after = {name: (id(layer), type(layer)) for name, layer in named_layers(model.module).items()}
    assert after == before
    assert [parameter.stride() for parameter in model.module.parameters()] == strides
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(("channels", "images"), [(1, 8), (100, 2), (4000, 1)])
def test_few_images_at_a_time_have_maps_below_28_mib(channels: int, images: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = networks.model_of(module.eval(), (160, 160), "0123456789")
    assert cached_batch(model) == max(1, min(8, 28 * 2**20 // (4 * channels * 160 * 160))) == images


def test_a_network_without_convolutions_is_what_it_was() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    model = networks.model_of(flat, (8, 8), "ab")
    assert fast(model, ["1"]) is model


class Deciding(nn.Module):
    """Cannot be traced; with `views`, bears no other layout either."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.conv, self.views = nn.Conv2d(3, 4, 3), views

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y if y.sum() > 1e9 else y.relu()
        out: Tensor = y.view(len(y), -1)[:, :2] if self.views else y.mean((2, 3))
        return out


def test_what_cannot_be_traced_is_laid_out_and_what_bears_no_layout_is_left_alone() -> None:
    laid_out = networks.model_of(Deciding(views=False), (8, 8), "abcd")
    quick = fast(laid_out, ["conv"])
    assert isinstance(quick.module, Deciding)
    assert quick.layout is torch.channels_last
    assert_same(laid_out, quick, ["conv"], torch.randn(2, 3, 8, 8))
    viewed = networks.model_of(Deciding(views=True), (8, 8), "ab")
    assert fast(viewed, ["conv"]) is viewed


@pytest.mark.parametrize(
    "name", slow_but(sorted(zoo.ZOO), "BatchStatistics", "Branches", "ListOfChunks")
)
def test_every_network_of_the_zoo_answers_alike(name: str) -> None:
    make = zoo.ZOO[name]
    try:
        module = make()
        with warnings.catch_warnings(action="ignore"):
            rows = module.eval()(torch.zeros(1, 3, zoo.SIDE, zoo.SIDE))
    except (TypeError, RuntimeError, SystemExit) as error:
        pytest.skip(f"takes more than a picture: {error}")
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        pytest.skip("puts out no row of numbers")
    model = networks.model_of(module, (zoo.SIDE, zoo.SIDE), list(map(str, range(rows.shape[1]))))
    images = torch.randn(2, 3, zoo.SIDE, zoo.SIDE, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        quick = fast(model, ["a"])
        first, again, found = (
            torch.cat([one.outputs(image[None]) for image in images])
            for one in (model, model, quick)
        )
    if not torch.equal(again, first):
        pytest.skip("answers differ each time")
    assert_near(found, first)
