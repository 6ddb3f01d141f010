"""The whole experiment on networks whose evidence is known by construction."""

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from networks import model_of
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model, load_model
from cnnviz.core.output.record import to_json
from cnnviz.filters.ablation import evaluation
from cnnviz.filters.ablation import figures as ablation_figures
from cnnviz.filters.ablation.ablation import ablate, make_plan
from cnnviz.filters.ablation.options import AblationSpec, Mode, RemovalOrder
from cnnviz.filters.ablation.sweep import (
    cumulative_ablations,
    curves,
    ranked,
    removal_orders,
    steps,
)
from cnnviz.filters.channels import LayerChannels, channel_sums

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


class OneChannelPerClass(nn.Module):
    """Class k is the mean of colour k and nothing else; channel 3 is not connected."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            # Classes stand in alphabetical order: blue, green, red.
            order = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]])
            self.conv.weight.copy_(order.view(4, 3, 1, 1))
            self.linear.weight.copy_(torch.eye(4)[:3] * 4)
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(self.pool(self.relu(self.conv(x)))))


def as_model(module: nn.Module, labels: tuple[str, ...] = ("blue", "green", "red")) -> Model:
    return model_of(module, (8, 8), labels, name="planted")


@pytest.fixture
def model() -> Model:
    return as_model(OneChannelPerClass())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of each colour with a little noise, one folder per class."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(5):
            noise = generator.integers(-15, 16, (8, 8, 3))
            pixels = (np.array(colour) + noise).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def data(folder: Path) -> ImageData:
    return open_data([str(folder)])


def test_sweep_names_the_class_that_each_planted_channel_stands_for(
    model: Model, data: ImageData
) -> None:
    result = ablate(model, data, AblationSpec(sweep=("conv", "relu")))
    assert result.engine.name == "replay"
    by_filter = {(effect.layer, effect.filter): effect for effect in result.effects}
    assert len(by_filter) == 8
    for layer in ("conv", "relu"):
        for channel in range(3):
            effect = by_filter[layer, channel]
            # Without its channel the class's logit is 0, the others' are small but positive.
            assert effect.hurts == model.labels[channel]
            assert effect.hurts_change == -1.0
            assert effect.change == pytest.approx(-1 / 3)
            assert (effect.lost, effect.gained) == (5, 0)
            assert effect.p_value == pytest.approx(2 * 0.5**5)
        unused = by_filter[layer, 3]
        assert unused.hurts is None
        assert (unused.change, unused.lost) == (0, 0)
        assert unused.probability_change == 0
    assert {effect.filter for effect in ranked(result.effects)[-2:]} == {3}


def test_together_it_says_which_images_flipped_and_where_to(model: Model, data: ImageData) -> None:
    result = ablate(model, data, AblationSpec(filters=("conv:0", "relu:3")))
    before, after = result.counts.predictions
    labels = result.counts.labels
    assert evaluation.accuracy(before, labels, 3).correct == 15
    assert evaluation.accuracy(after, labels, 3).correct == 10
    assert np.flatnonzero(before.predicted != after.predicted).tolist() == [0, 1, 2, 3, 4]
    assert result.indices.tolist() == list(range(15))
    content = to_json(result)
    assert content["flips"] == {
        "count": 5, "right_to_wrong": 5, "wrong_to_right": 0, "wrong_to_wrong": 0,
    }  # fmt: skip
    assert [entry["change"] for entry in content["classes"]] == [-1.0, 0.0, 0.0]
    assert {pair["label"] for pair in content["confusions"]} == {"blue"}
    assert sum(pair["after"] for pair in content["confusions"]) == 5


def test_counts_equal_a_loop_over_images_with_a_copy_edited_by_hand(
    model: Model, data: ImageData
) -> None:
    result = ablate(model, data, AblationSpec(filters=("conv:1",), batch_size=4))
    edited = OneChannelPerClass().eval()
    with torch.no_grad():
        edited.conv.weight[1] = 0
    for row in range(15):
        pixels = np.asarray(data.open(row), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        for own, module in zip(result.counts.predictions, (model.module, edited), strict=True):
            with torch.inference_mode():
                probabilities = module(image).double().softmax(1)[0]
            label = result.counts.labels[row]
            assert own.predicted[row] == probabilities.argmax()
            assert own.probability[row] == pytest.approx(float(probabilities.max()), abs=1e-6)
            assert own.true_probability[row] == pytest.approx(float(probabilities[label]), abs=1e-6)
            assert own.rank[row] == (probabilities > probabilities[label]).sum()


def test_mean_mode_uses_the_mean_over_all_images_and_positions(
    model: Model, data: ImageData
) -> None:
    pixels = np.stack([np.asarray(data.open(row), dtype=np.float64) for row in range(15)]) / 255
    mean = pixels[..., 2].mean()  # channel 0 of the network is blue
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    strength = channel_sums(model, images.split(4), {"conv": 1}, {"conv": 4}).strengths()["conv"]
    assert float(strength.mean[0]) == pytest.approx(mean, rel=1e-6)
    assert float(strength.magnitude[0]) == pytest.approx(mean, rel=1e-6)
    result = ablate(model, data, AblationSpec(filters=("conv:0",), mode=Mode.MEAN))
    with torch.inference_mode():
        logits = model.module(images)
        logits[:, 0] = 4 * mean
    expected = logits.double().softmax(1)[torch.arange(15), torch.arange(15) // 5]
    np.testing.assert_allclose(result.counts.predictions[1].true_probability, expected, atol=1e-6)


def test_the_sheet_of_flips_shows_all_parts_of_a_sorted_data_set(
    model: Model, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation_figures, "MAX_FLIPS", 4)
    result = ablate(model, data, AblationSpec(filters=("conv:all",)))
    images = [data.examples[row].path for row in range(5, 15)]
    assert [flip.image for flip in result.flipped()] == images  # green and red, now blue
    figure = ablation_figures.draw(result, model, data)["flips.png"]
    texts = [text.get_text() for text in figure.findobj(Text)]
    labels = [text.split(": ")[-1] for text in texts if ": is " in text or text.startswith("is ")]
    assert labels == ["is green"] * 2 + ["is red"] * 2
    assert "(4 of 10, spread evenly)" in " ".join(texts)


def test_everything_off_is_allowed_and_said(model: Model, data: ImageData) -> None:
    result = ablate(model, data, AblationSpec(filters=("conv:all",)))
    assert "all 4 filters of 'conv' are off" in result.notes
    _, after = result.counts.predictions
    assert set(after.predicted) == {0}  # all logits are 0, the first class wins
    np.testing.assert_allclose(after.probability, 1 / 3, rtol=1e-6)


def test_classes_without_images_are_left_out_of_the_mean_and_said(folder: Path) -> None:
    module = OneChannelPerClass()
    module.linear = nn.Linear(4, 5)
    model = as_model(module, ("blue", "green", "red", "violet", "white"))
    data = open_data([str(folder)])
    content = to_json(ablate(model, data, AblationSpec(filters=("conv:0",))))
    assert content["classes_without_images"] == ["violet", "white"]
    assert [entry["class"] for entry in content["classes"]] == ["blue", "green", "red"]
    assert any("no images of violet, white" in note for note in content["notes"])
    before = content["accuracy"]["before"]
    assert before["mean_over_classes"] == pytest.approx(before["top1"])  # equal class sizes


def test_an_image_that_cannot_be_read_counts_nowhere(model: Model, folder: Path) -> None:
    (folder / "green" / "2.png").write_bytes(b"no image")
    data = open_data([str(folder)])
    steps_done: list[int] = []
    result = ablate(model, data, AblationSpec(filters=("conv:0",)), steps_done.append)
    assert [Path(path).name for path, _ in result.errors] == ["2.png"]
    assert result.counts.images.tolist() == [5, 4, 5]
    assert 7 not in result.indices
    assert sum(steps_done) == 15


def test_no_readable_image_at_all_is_an_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").write_bytes(b"no image")
    with pytest.raises(CnnvizError, match=r"none of the 1 images of .* could be used: .*a\.png"):
        ablate(model, open_data([str(tmp_path)]), AblationSpec(filters=("conv:0",)))


def test_answers_that_are_not_numbers_are_an_error(data: ImageData) -> None:
    module = OneChannelPerClass()
    with torch.no_grad():
        module.linear.bias[0] = torch.nan
    with pytest.raises(CnnvizError, match="gives answers that are not numbers"):
        ablate(as_model(module), data, AblationSpec(filters=("conv:0",)))


def test_cumulative_curves_equal_whole_evaluations(model: Model, data: ImageData) -> None:
    result = ablate(model, data, AblationSpec(sweep=("conv",), cumulative=True, seed=1))
    assert {curve.order for curve in result.cumulative} == set(RemovalOrder)
    by_order = {curve.order: curve for curve in result.cumulative}
    most = by_order[RemovalOrder.MOST_HARM]
    order = [effect.filter for effect in ranked(result.effects)]
    assert most.removed == (0, 1, 2, 3, 4) == steps(4)
    for removed, accuracy in zip(most.removed, most.accuracy, strict=True):
        off = ",".join(map(str, order[:removed]))
        spec = AblationSpec(filters=(f"conv:{off}",) if off else (), sweep=("relu",))
        predictions = ablate(model, data, spec).counts.predictions[-1]
        assert accuracy == evaluation.accuracy(predictions, result.counts.labels, 3).top1
    assert by_order[RemovalOrder.LEAST_HARM].accuracy[1] == 1.0
    spread = by_order[RemovalOrder.RANDOM]
    for low, middle, high in zip(spread.lowest, spread.accuracy, spread.highest, strict=True):
        assert low <= middle <= high


def test_orders_are_permutations_by_what_their_names_say(model: Model, data: ImageData) -> None:
    sweep = ablate(model, data, AblationSpec(sweep=("conv",))).effects
    norms, magnitudes = np.array([3.0, 1, 2, 0]), np.array([0.1, 0.4, 0.3, 0.2])
    orders = removal_orders(4, sweep, norms, magnitudes, seed=0)
    assert orders[RemovalOrder.SMALLEST_NORM] == [[3, 1, 2, 0]]
    assert orders[RemovalOrder.WEAKEST] == [[0, 3, 2, 1]]
    assert orders[RemovalOrder.LEAST_HARM][0] == orders[RemovalOrder.MOST_HARM][0][::-1]
    for permutations in orders.values():
        for permutation in permutations:
            assert sorted(permutation) == [0, 1, 2, 3]
    assert RemovalOrder.SMALLEST_NORM not in removal_orders(4, sweep, None, magnitudes, seed=0)
    ablations = cumulative_ablations("conv", 4, orders)
    lengths = [len(own.get("conv", ())) for own in ablations]
    found = curves("conv", 4, orders, np.array([100 - n for n in lengths]) / 100)
    for curve in found:
        assert curve.accuracy == pytest.approx([1.0, 0.99, 0.98, 0.97, 0.96])


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.wide = nn.Linear(4, 6)
        self.gelu = nn.GELU()
        self.tokens = nn.Linear(6, 6)
        self.unused = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gelu(self.wide(self.conv(x).permute(0, 2, 3, 1)))
        return self.head(self.tokens(y.flatten(1, 2)).mean(1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("unused", "layer 'unused' does not run in a forward pass"),
        ("convv", "no layer 'convv' in planted; the nearest are conv"),
    ],
)
def test_layers_that_do_not_run_are_refused(layer: str, message: str) -> None:
    channels = LayerChannels(as_model(ChannelsLast()))
    with pytest.raises(UsageError, match=message):
        channels.counts([layer])
    assert channels.counts(["conv"]) == {"conv": 4}
    assert channels.convolutions() == ["conv"]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("layer", ["wide", "gelu", "tokens", "head"])
def test_channels_on_the_last_axis_as_in_a_plain_loop(
    layer: str, mode: Mode, data: ImageData
) -> None:
    torch.manual_seed(0)
    model = as_model(ChannelsLast().eval())
    spec = AblationSpec(filters=(f"{layer}:0,2",), sweep=(layer,), mode=mode)
    result = ablate(model, data, spec)
    assert result.engine.name == "replay", result.engine
    pixels = np.stack([np.asarray(data.open(row), dtype=np.float32) for row in range(15)]) / 255
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    seen: list[Tensor] = []
    module = dict(model.module.named_modules())[layer]
    hook = module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with hook, torch.inference_mode():
        model.module(images)
    values = seen[0].flatten(0, -2).mean(0) if mode is Mode.MEAN else torch.zeros(6)

    def probability(numbers: list[int]) -> Tensor:
        def silence(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[..., numbers] = values[numbers]
            return output

        with module.register_forward_hook(silence), torch.inference_mode():
            logits = torch.cat([model.module(image[None]) for image in images])
        return logits.double().softmax(1)[torch.arange(15), torch.arange(15) // 5]

    together = result.counts.predictions[1].true_probability
    np.testing.assert_allclose(together, probability([0, 2]), atol=1e-6)
    for channel, sums_K in enumerate(result.counts.probability[2:]):
        expected = probability([channel]).view(3, 5).sum(1)
        np.testing.assert_allclose(sums_K, expected, atol=1e-5)


def test_archives_are_refused_with_the_remedy(model: Model) -> None:
    example = torch.zeros(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit says that it is out of fashion
        scripted = torch.jit.trace(model.module, example)
    exported = torch.export.export(model.module, (example,)).module()
    for module in (scripted, exported):
        archive = dataclasses.replace(model, module=module)
        with pytest.raises(UsageError, match=r"planted is an archive, .* --model NAME"):
            make_plan(archive, AblationSpec(filters=("conv:0",)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AblationSpec(), "nothing to ablate; give --filters"),
        (AblationSpec(filters=("conv:0",), cumulative=True), "--cumulative needs --sweep"),
        (AblationSpec(filters=("conv:4",)), "channel 4 .* 0 to 3"),
        (AblationSpec(sweep=("nothing*",)), r"no layer matches 'nothing\*'"),
    ],
)
def test_plans_that_cannot_be_are_refused(model: Model, spec: AblationSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(model, spec)


def flat(folder: Path) -> str:
    return str(folder / "red")


def other(folder: Path) -> str:
    (folder / "red").rename(folder / "crimson")
    return str(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (flat, "5 of the 5 images of .* have no label, .* one folder per class"),
        (other, re.escape("crimson") + ".* the model's are blue, green, red"),
    ],
)
def test_data_without_fitting_labels_is_refused_with_the_remedy(
    model: Model, folder: Path, source: Callable[[Path], str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ablate(model, open_data([source(folder)]), AblationSpec(filters=("conv:0",)))


def test_ten_random_filters_of_four_layers_on_cifar10_equal_a_network_edited_by_hand(
    assets: Path, tmp_path: Path
) -> None:
    with np.load(assets / "cifar10" / "cifar10_lossless_4000train_1000test.npz") as arrays:
        pixels, labels = arrays["x_test"][:120], arrays["y_test"][:120]
    model = load_model("bundled", device="cpu")
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = tmp_path / model.labels[int(label)]
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
    layers = ("stem.conv", "features.widen1.conv", "features.widen2.conv", "features.block3.conv1")
    spec = AblationSpec(filters=("+".join(layers) + ":random:10",), seed=0)
    result = ablate(model, open_data([str(tmp_path)]), spec)
    assert result.engine.name == "replay"
    assert sum(len(off.channels) for off in result.filters) == 10
    edited = copy.deepcopy(model.module)
    for off in result.filters:
        with torch.no_grad():
            edited.get_submodule(off.layer).weight[list(off.channels)] = 0
    ready = model.preprocess.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    with torch.inference_mode():
        expected = [module(ready).argmax(1).numpy() for module in (model.module, edited)]
    found = [own.predicted for own in result.counts.predictions]
    order = np.argsort(np.array([model.labels[int(label)] for label in labels]), kind="stable")
    for own, known in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, known[order])
    assert (found[0] == labels[order]).mean() > 0.85
    assert (found[0] != found[1]).any()
