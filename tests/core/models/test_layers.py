"""Inventories and spreads against counts by hand, plain histograms and torch's autograd."""

from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from cnnviz.core import load_model
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.behaviour import run_first
from cnnviz.core.models.layers import (
    check_open,
    find_layer,
    named_layers,
    note_repeats,
    replace_outputs,
    watch_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.filters.kernels.weights import choose_layers
from cnnviz.filters.layers.inventory import take_inventory
from cnnviz.filters.layers.spread import LOWEST_EXPONENT, OCTAVES, Spread, spread_of
from cnnviz.filters.layers.statistics import measure

SIZE = (16, 20)


class Block(nn.Module):
    """One ReLU run twice, a shortcut, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.unused = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.scale * self.conv2(self.relu(self.conv1(x))))
        return out


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=2),
        nn.BatchNorm2d(4),
        Block(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()


def model_of(module: nn.Module, size: tuple[int, int] = SIZE) -> Model:
    return networks.model_of(module, size, ("ant", "bee", "cat"), mean=0.4, std=0.2)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    rng = np.random.default_rng(0)
    for name in ("bee", "cat"):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return open_data([str(tmp_path)])


def test_tapped_values_are_those_before_an_inplace_relu() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.inference_mode(), watch_outputs(module, ["0", "1"]) as outputs:
        module(image)
    with torch.inference_mode():
        assert torch.equal(outputs["0"], module[0](image))
        assert torch.equal(outputs["1"], module[0](image).relu())


def test_rows_are_what_runs_in_order_with_shapes_and_calls() -> None:
    rows = take_inventory(model_of(network())).layers
    assert [(row.name, row.type_, row.calls) for row in rows] == [
        ("0", "Conv2d", 1),
        ("1", "BatchNorm2d", 1),
        ("2.conv1", "Conv2d", 1),
        ("2.conv2", "Conv2d", 1),
        ("2.relu", "ReLU", 2),
        ("2", "Block", 1),
        ("3", "AdaptiveAvgPool2d", 1),
        ("4", "Flatten", 1),
        ("5", "Linear", 1),
    ]
    assert rows[0].output_shape == (4, 7, 8)
    assert rows[-1].output_shape == (3,)


def test_parameters_and_macs_are_those_counted_by_hand() -> None:
    module = network()
    found = take_inventory(model_of(module))
    by_name = {row.name: row for row in found.layers}
    assert by_name["0"].parameters == 4 * 3 * 15 + 4
    assert by_name["0"].macs == 4 * 3 * 15 * 7 * 8
    assert by_name["2.conv1"].macs == 4 * 2 * 9 * 7 * 8
    assert by_name["2.conv2"].macs == 4 * 4 * 9 * 7 * 8
    assert by_name["5"].macs == 4 * 3
    assert by_name["2"].macs == by_name["1"].macs == 0
    assert by_name["2"].parameters == 4  # the scale
    assert found.parameters_unused == 8  # a layer that never runs
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert sum(row.parameters for row in found.layers) == found.parameters - 8
    assert sum(row.macs for row in found.layers) == found.macs


def test_a_head_that_does_not_run_is_counted_apart() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(3))
            self.extra = nn.Sequential(nn.Linear(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    module = WithHead().eval()
    module(torch.zeros(1, 3, *SIZE))
    found = take_inventory(model_of(module))
    assert found.parameters_unused == 5 * 5 + 5
    assert found.parameters_unused + sum(row.parameters for row in found.layers) == found.parameters


class Branches(nn.Module):
    """Shared, idle, hand-used and attention's parameters: (read, not read) are known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)  # 84 and 3 more
        self.second.weight = self.first.weight
        self.by_hand = nn.Conv2d(3, 8, 1, bias=False)  # 24
        self.attention = nn.MultiheadAttention(8, 2)  # 4 * 64 + 4 * 8
        self.normed = parametrizations.weight_norm(nn.Linear(8, 3))  # 24 + 3 + 3
        self.mask, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(1))  # 72 idle, 1

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(self.second(self.first(x)), self.by_hand.weight)
        tokens = x.flatten(2).permute(2, 0, 1)
        out: Tensor = self.normed(self.attention(tokens, tokens, tokens)[0].mean(0)) * self.scale
        return out if not self.training else self.mask(out)


def test_parameters_count_once_where_they_are_read_and_the_rest_is_unused() -> None:
    found = take_inventory(model_of(Branches().eval()))
    by_name = {row.name: row.parameters for row in found.layers}
    assert (by_name["first"], by_name["second"]) == (84, 3)
    assert by_name["attention"] == 4 * 64 + 4 * 8
    assert sum(by_name[name] for name in by_name if name.startswith("normed")) == 30
    assert by_name[""] == 24 + 1
    assert found.parameters_unused == 72
    assert found.parameters_unused + sum(by_name.values()) == found.parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [("resnet50", 25557032, 4.089), ("vit_b_32", 88224232, 4.41), ("mobilenet_v2", 3504872, 0.301)],
)
def test_torchvision_counts_are_the_published_ones(
    name: str, parameters: int, giga_macs: float
) -> None:
    module = torchvision.models.get_model(name, weights=None).eval()
    found = take_inventory(model_of(module, (224, 224)))
    assert found.parameters == parameters
    assert found.macs / 1e9 == pytest.approx(giga_macs, rel=0.005)
    assert sum(row.macs for row in found.layers) == found.macs


def test_another_image_size_changes_shapes_and_macs() -> None:
    small, large = (take_inventory(model_of(network()), (side, side)) for side in (17, 33))
    assert small.layers[0].output_shape == (4, 8, 7)
    assert large.layers[0].output_shape == (4, 16, 15)
    assert large.macs > small.macs
    with pytest.raises(UsageError, match="net does not run on images of 2x2"):
        take_inventory(model_of(network()), (2, 2))


def test_a_network_that_cannot_be_traced_is_still_listed() -> None:
    class Moody(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out if out.sum() > 0 else -out

    found = take_inventory(model_of(Moody(*network()).eval()))
    assert found.untraceable is not None
    assert len(found.layers) == 9
    assert all(row.receptive_field is None for row in found.layers)


def test_a_layer_that_takes_a_parameter_is_listed() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.LayerNorm(4)
            self.token = nn.Parameter(torch.ones(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.token) + self.conv(x).mean((2, 3))

    model = model_of(Token())
    rows = take_inventory(model).layers
    assert [row.name for row in rows] == ["norm", "conv", ""]
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_the_inventory_leaves_the_model_alone() -> None:
    module = network()
    fused = torch.backends.mha.get_fastpath_enabled()
    take_inventory(model_of(module))
    with pytest.raises(UsageError, match="does not run"):
        take_inventory(model_of(module), (1, 1))
    assert not any(layer._forward_hooks for layer in module.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_octaves_equal_a_plain_histogram() -> None:
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) ** 5
    values[0, 0] = 0
    values[1, 1, 1, 1] = 2.0**-80
    values[2, 1, 1, 1] = 2.0**100
    spread = spread_of(values, 1)
    expected = [0] * OCTAVES
    for value in values.flatten().tolist():
        if value:
            octave = int(np.floor(np.log2(abs(value)))) + 1 - LOWEST_EXPONENT
            expected[min(max(octave, 0), OCTAVES - 1)] += 1
    assert spread.octaves_B.tolist() == expected
    assert spread.zeros == 25
    assert spread.count == 300
    assert spread.negative == int((values < 0).sum())


def test_values_that_are_not_finite_are_counted_apart() -> None:
    spread = spread_of(torch.tensor([[1.0, float("nan")], [float("inf"), -3.0]]))
    assert spread.not_finite == 2
    assert (spread.mean, spread.lowest, spread.highest) == (-1, -3, 1)
    assert int(spread.octaves_B.sum()) == 2


def test_parts_add_up_to_the_whole() -> None:
    values = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1)).relu()
    values[:, 2] = 0.25
    whole, parts = spread_of(values, 1), Spread()
    for part in values.split([1, 3, 2]):
        parts.add(spread_of(part, 1))
    assert parts.octaves_B.tolist() == whole.octaves_B.tolist()
    assert (parts.count, parts.zeros, parts.dead) == (whole.count, whole.zeros, [2])
    assert parts.mean == pytest.approx(float(values.mean()))
    assert parts.deviation == pytest.approx(float(values.std(correction=0)), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_activations_and_gradients_equal_a_plain_loop(
    data: ImageData, batch_size: int | None
) -> None:
    module = network()
    model = model_of(module)
    found = measure(model, data, ["0", "2.relu", "5"], gradients=True, batch_size=batch_size)
    assert found.images == found.labelled == 6
    outputs: dict[str, list[Tensor]] = {"0": [], "5": []}
    slopes: dict[str, list[Tensor]] = {"0": [], "5": []}
    for index, example in enumerate(data.examples):
        pixels = np.asarray(data.open(index)).transpose(2, 0, 1) / 255
        image = model.preprocess.normalise(torch.tensor(pixels).float())[None]
        first = module[0](image).detach().requires_grad_(True)
        last = module[1:](first)
        last.retain_grad()
        target = {"bee": 1, "cat": 2}[data.classes[example.label]]  # type: ignore[index]
        functional.cross_entropy(last, torch.tensor([target])).backward()
        for name, value in (("0", first), ("5", last)):
            outputs[name].append(value.detach())
            slopes[name].append(value.grad)  # type: ignore[arg-type]
    for name in ("0", "5"):
        for spread, values in (
            (found.activations[name], torch.cat(outputs[name])),
            (found.gradients[name], torch.cat(slopes[name])),
        ):
            assert spread.count == values.numel()
            assert spread.mean == pytest.approx(float(values.double().mean()), abs=1e-6)
            assert spread.highest == pytest.approx(float(values.max()), rel=1e-4)
            expected = spread_of(values).octaves_B
            assert int((spread.octaves_B - expected).abs().sum()) <= 0.01 * values.numel() + 1
    assert found.activations["2.relu"].count == 6 * 2 * 4 * 7 * 8  # it runs twice


def test_a_dead_channel_is_found_and_a_living_one_is_not(data: ImageData) -> None:
    module = network()
    with torch.no_grad():
        module[2].conv2.weight[3] = 0
    found = measure(model_of(module), data, ["2.conv2", "0"])
    assert found.activations["2.conv2"].dead == [3]
    assert found.activations["0"].dead == []
    assert not found.gradients


def test_channels_behind_the_places_are_told_apart(data: ImageData) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
            self.act = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.act(self.mix(self.conv(x).permute(0, 2, 3, 1)))
            return out.mean((1, 2))[:, :3]

    module = Last().eval()
    with torch.no_grad():
        module.mix.weight[4] = 0
    found = measure(model_of(module), data, ["mix", "act"])
    for name in ("mix", "act"):
        assert found.activations[name].dead == [4]


def test_unlabelled_images_take_the_loss_at_the_predicted_class(data: ImageData) -> None:
    flat = open_data([example.path for example in data.examples])
    found = measure(model_of(network()), flat, ["5"], gradients=True)
    assert (found.images, found.labelled) == (6, 0)
    assert found.gradients["5"].count == 18


def test_running_out_of_memory_halves_the_batch_and_counts_nothing_twice(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = network()
    whole = measure(model_of(module), data, ["0"], batch_size=6).activations["0"]
    plain = module[5].forward

    def tight(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return plain(x)

    monkeypatch.setattr(module[5], "forward", tight)
    halved = measure(model_of(module), data, ["0"], batch_size=6).activations["0"]
    assert halved.count == whole.count
    assert int((halved.octaves_B - whole.octaves_B).abs().sum()) <= 0.01 * whole.count


def test_unreadable_images_are_listed_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    only_bad = open_data([str(tmp_path / "bad.png")])
    with pytest.raises(CnnvizError, match="none of the 1 images"):
        measure(model_of(network()), only_bad, ["0"])
    Image.new("RGB", SIZE[::-1], "red").save(tmp_path / "good.png")
    found = measure(model_of(network()), open_data([str(tmp_path)]), ["0"])
    assert found.images == 1
    assert [Path(path).name for path, _ in found.errors] == ["bad.png"]


def test_compiled_networks_are_refused_with_the_remedy() -> None:
    class Compiled(torch.jit.ScriptModule):
        """Stands for an archive; torch.jit.script itself is deprecated."""

    with pytest.raises(CnnvizError, match=r"is an archive.*--model NAME --checkpoint net"):
        take_inventory(model_of(Compiled()))
    with pytest.raises(CnnvizError, match=r"is an archive.*--model NAME --checkpoint net"):
        choose_layers(Compiled(), "first", "net")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_layers_are_refused_with_the_remedy():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    compiled = torch.jit.trace(module, torch.zeros(1, 3, 8, 8))
    for watch in (
        watch_outputs(compiled, ["0"]),
        replace_outputs(compiled, {"0": lambda value: value}),
    ):
        with pytest.raises(UsageError, match="--model NAME --checkpoint FILE"), watch:
            pass
    with pytest.raises(UsageError, match=r"net is an archive.*--checkpoint net"):
        find_layer(compiled, "0", "net")


class Pyramid(nn.Module):
    """One convolution at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        small = self.shared(nn.functional.max_pool2d(x, 2))
        out: Tensor = self.fc(torch.cat([self.shared(x).mean((2, 3)), small.mean((2, 3))], 1))
        return out


def test_a_layer_that_runs_twice_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = replace(load_model("bundled", device="cpu"), module=Pyramid().eval())
    note_repeats(model, ["stem", "shared"])
    (line,) = caplog.messages
    assert line == "note: layer 'shared' runs 2 times in a forward pass; its last run is used"


class Scripted(nn.Module):
    """One part of it is compiled by TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.rest, self.fc = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.rest(self.stem(x)).mean((2, 3)))
        return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_layers_beside_a_compiled_part_are_reached_and_those_inside_are_named() -> None:
    module, plain = Scripted().eval(), Scripted().eval()
    module.stem = torch.jit.trace(module.stem, torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    ran = run_first(module, "net", 3, (8, 8), torch.float32, torch.device("cpu"))
    assert ran.notes == ("net: stem is TorchScript, whose layers cannot be reached",)
    assert list(named_layers(module)) == ["rest", "fc"]
    rows = {row.name: row for row in take_inventory(networks.model_of(module, (8, 8), "ab")).layers}
    assert {"rest", "fc"} <= rows.keys()
    assert rows["rest"].parameters == 4 * 4 * 9 + 4
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), replace_outputs(module, {"rest": lambda maps: maps * 2}):
        doubled = module(image)
    expected = plain.fc(2 * plain.rest(plain.stem(image)).mean((2, 3)))
    torch.testing.assert_close(doubled, expected)
    for name in ("stem", "stem.0"):
        with pytest.raises(UsageError, match=rf"'{name}' of net cannot be .*'stem' is TorchScript"):
            find_layer(module, name, "net")
    script = torch.jit.trace(plain, image)  # type: ignore[no-untyped-call]
    with pytest.raises(UsageError, match=r"net\.py:make returns a TorchScript network, .* before"):
        check_open(script, "net.py:make")
