"""Replay against whole passes, and both against networks whose weights are zeroed by hand."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torchvision
from networks import model_of, randomised
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.layers import conv_layers, named_layers
from cnnviz.core.models.load import Model
from cnnviz.filters.ablation.replay import Replay, WholePasses, ablated_logits, ablation_passes
from cnnviz.filters.ablation.suffix import Suffix


class Branches(nn.Module):
    """What a suffix can meet: residuals, concatenation, groups, shared and in-place layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 3, dilation=2, padding=2)
        self.last = nn.Conv2d(10, 12, (3, 1), padding=(1, 0))
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.stem(x))))
        y = self.relu(self.branch(x))
        y += x
        y = self.relu(self.grouped(y)) * torch.sigmoid(x)
        y = self.depthwise(y)
        y = torch.cat([self.left(y), self.right(y)], 1)
        y = nn.functional.avg_pool2d(self.last(y), 2)
        return self.head(y.view(y.size(0), -1))


def as_model(module: nn.Module, size: int = 16, classes: int = 5) -> Model:
    return model_of(module, (size, size), list(map(str, range(classes))))


@pytest.fixture
def model() -> Model:
    return as_model(randomised(Branches()))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 16, 16)


def collected(passes: Replay | WholePasses, images: Tensor, count: int, classes: int = 5) -> Tensor:
    """(N, V, K) logits; fails where a part is handed out twice or never."""
    seen = torch.zeros(len(images), count)
    found = torch.zeros(len(images), count, classes)

    def consume(part: slice, ablations: slice, logits: Tensor) -> None:
        seen[part, ablations] += 1
        found[part, ablations] = logits

    passes.run(images, consume)
    assert bool((seen == 1).all())
    return found


def every_channel(model: Model, images: Tensor) -> list[dict[str, tuple[int, ...]]]:
    counts = {"stem": 8, "bn": 8, "branch": 8, "grouped": 8, "depthwise": 8, "left": 4}
    counts |= {"right": 6, "last": 12, "pool": 8}
    return [{}] + [{layer: (c,)} for layer, count in counts.items() for c in range(count)]


def zeroed(module: nn.Module, layer: str, channels: Sequence[int]) -> nn.Module:
    """A copy in which the layer's filters are gone: weights and biases zero by hand."""
    edited = copy.deepcopy(module)
    with torch.no_grad():
        target = named_layers(edited)[layer]
        target.weight[list(channels)] = 0
        if target.bias is not None:
            target.bias[list(channels)] = 0
    return edited


@pytest.mark.parametrize("layer", ["stem", "bn", "branch", "grouped", "depthwise", "left", "right"])
@pytest.mark.parametrize("channels", [(2,), (0, 1, 3)])
def test_zero_equals_a_copy_with_weights_zeroed_by_hand(
    model: Model, images: Tensor, layer: str, channels: tuple[int, ...]
) -> None:
    with torch.inference_mode():
        expected = zeroed(model.module, layer, channels)(images)
        untouched = model.module(images)
    ablations = [{}, {layer: channels}]
    assert (expected - untouched).abs().max() > 1e-3
    for passes in (
        Replay(model, ablations, {}, first=images),
        WholePasses(model, ablations, {}),
    ):
        found = collected(passes, images, 2)
        torch.testing.assert_close(found[:, 0], untouched, rtol=0, atol=1e-6)
        torch.testing.assert_close(found[:, 1], expected, rtol=0, atol=1e-6)


def test_mean_puts_a_constant_in_the_channels_place(model: Model, images: Tensor) -> None:
    means = torch.linspace(-1, 1, 8)
    ablations = [{"branch": (3,)}, {"branch": (1, 5)}, {"branch": (3,), "stem": (0,)}]
    found = collected(Replay(model, ablations, {"branch": means}, first=images), images, 3)
    for place, ablation in enumerate(ablations):
        edited = copy.deepcopy(model.module)
        with torch.no_grad():
            for channel in ablation["branch"]:
                edited.branch.weight[channel] = 0
                edited.branch.bias[channel] = means[channel]
            if "stem" in ablation:
                edited.stem.weight[0] = 0
                edited.stem.bias[0] = 0
            expected = edited(images)
        torch.testing.assert_close(found[:, place], expected, rtol=0, atol=1e-6)


def test_every_channel_of_every_layer_alone_equals_whole_passes(
    model: Model, images: Tensor
) -> None:
    ablations = every_channel(model, images)
    replay = Replay(model, ablations, {}, first=images)
    found = collected(replay, images, len(ablations))
    expected = collected(WholePasses(model, ablations, {}), images, len(ablations))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_small_memory_and_small_batches_change_nothing(model: Model, images: Tensor) -> None:
    ablations = every_channel(model, images)
    large = collected(Replay(model, ablations, {}, first=images), images, len(ablations))
    tight = Replay(model, ablations, {}, first=images, memory=2000)
    assert tight.images == 1
    few = Replay(model, ablations, {}, first=images[:1], memory=60_000, images=3)
    for passes in (tight, few):
        found = collected(passes, images, len(ablations))
        torch.testing.assert_close(found, large, rtol=0, atol=1e-6)


def test_layers_that_run_twice_are_silenced_both_times(model: Model, images: Tensor) -> None:
    ablations = [{"relu": (1,)}, {"relu": (1, 2)}]
    found = collected(Replay(model, ablations, {}, first=images), images, 2)
    for place, ablation in enumerate(ablations):
        expected = ablated_logits(model, images, ablation, {})
        torch.testing.assert_close(found[:, place], expected, rtol=0, atol=1e-6)


def test_what_is_in_front_of_the_ablated_layer_runs_once(model: Model, images: Tensor) -> None:
    ablations = [{"last": (channel,)} for channel in range(12)]
    replay = Replay(model, ablations, {}, first=images)
    calls = {"stem": 0, "right": 0, "head": 0}
    hooks = [
        named_layers(model.module)[name].register_forward_hook(
            lambda *_args, name=name: calls.__setitem__(name, calls[name] + 1)
        )
        for name in calls
    ]
    collected(replay, images, 12)
    for hook in hooks:
        hook.remove()
    assert calls == {"stem": 1, "right": 1, "head": calls["head"]}


def test_out_of_memory_makes_groups_smaller_and_counts_nothing_twice(
    model: Model, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablations = every_channel(model, images)
    expected = collected(Replay(model, ablations, {}, first=images), images, len(ablations))
    replay = Replay(model, ablations, {}, first=images)
    whole = Suffix.run

    def limited(self: Suffix, base: object, changes: object, count: int) -> object:
        if base.images * count > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, base, changes, count)

    monkeypatch.setattr(Suffix, "run", limited)
    found = collected(replay, images, len(ablations))
    assert replay.images <= 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_memory_that_is_too_small_for_anything_is_said(
    model: Model, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(model, [{"stem": (0,)}], {}, first=images)

    def never(*_args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Suffix, "run", never)
    with pytest.raises(CnnvizError, match="out of memory with one image and one ablation"):
        collected(replay, images, 1)


def state(module: nn.Module) -> Mapping[str, object]:
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "training": [layer.training for layer in module.modules()],
        "inplace": [getattr(layer, "inplace", None) for layer in module.modules()],
        "hooks": [len(layer._forward_hooks) for layer in module.modules()],
    }


@pytest.mark.parametrize("make", [Replay, WholePasses])
def test_the_module_is_left_as_it_was_even_by_an_error(
    model: Model, images: Tensor, make: Callable[..., Replay | WholePasses]
) -> None:
    before = state(model.module)
    extra = {"first": images} if make is Replay else {}
    passes = make(model, [{"stem": (0,)}, {"relu": (1, 2)}], {}, **extra)

    def fail(*_args: object) -> None:
        raise KeyError("from outside")

    with pytest.raises(KeyError, match="from outside"):
        passes.run(images, fail)
    after = state(model.module)
    assert before["weights"].keys() == after["weights"].keys()
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name])
    for part in ("training", "inplace", "hooks"):
        assert before[part] == after[part]


class DependsOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.sum() > 0:
            x = x * 2
        return self.head(x.mean((2, 3)))


class MixesTheBatch(nn.Module):
    """Centres each batch: rows of several ablations must not go through it together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x - x.mean(0, keepdim=True)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "reason"),
    [(DependsOnValues(), "cannot be traced"), (MixesTheBatch(), "differs from a whole pass")],
)
def test_networks_that_cannot_be_replayed_get_whole_passes_and_the_reason(
    module: nn.Module, reason: str
) -> None:
    model = as_model(module.eval())
    images = torch.randn(4, 3, 16, 16)
    ablations = [{}, {"conv": (0,)}, {"conv": (2,)}]
    passes = ablation_passes(model, ablations, {}, first=images)
    assert passes.engine == "full"
    assert reason in (passes.reason or "")
    found = collected(passes, images, 3)
    for place, ablation in enumerate(ablations):
        assert torch.equal(found[:, place], ablated_logits(model, images, ablation, {}))


FAMILIES = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 64, "resnext50_32x4d": 64, "densenet121": 32,
    "googlenet": 64, "inception_v3": 96, "mobilenet_v2": 64, "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "efficientnet_b0": 64, "regnet_y_400mf": 64,
    "mnasnet0_5": 64, "convnext_tiny": 32, "efficientnet_v2_s": 32,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_replay_equals_whole_passes_on_torchvisions_families(name: str) -> None:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = randomised(torchvision.models.get_model(name, weights=None, **extra))
    size = FAMILIES[name]
    model = as_model(module, size, 1000)
    images = torch.randn(2, 3, size, size)
    convolutions = [layer for layer in conv_layers(module) if not layer.startswith(("aux", "Aux"))]
    places = sorted({round(i * (len(convolutions) - 1) / 6) for i in range(7)})
    ablations: list[dict[str, tuple[int, ...]]] = []
    for place in places:
        last = named_layers(module)[convolutions[place]].out_channels - 1
        ablations += [{convolutions[place]: (0,)}, {convolutions[place]: (last,)}]
    ablations += [{convolutions[0]: (0, 1), convolutions[-1]: (2, 3)}]
    replay = Replay(model, ablations, {}, first=images)
    found = collected(replay, images, len(ablations), 1000)
    expected = collected(WholePasses(model, ablations, {}), images, len(ablations), 1000)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-5 * scale
    moved = (expected - ablated_logits(model, images, {}, {}).unsqueeze(1)).abs().amax((0, 2))
    assert float(moved.max()) > 1e-3 * scale
