"""Features: what goes into the head is found, streamed, kept and known again."""

import dataclasses

import numpy as np
import pytest
import torch
import torchvision
from networks import model_of
from PIL import Image
from torch import nn
from torch.nn import functional

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import open_data
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.output import journal
from cnnviz.embeddings import features
from cnnviz.embeddings.features import extract, features_key, load_features, save_features
from cnnviz.embeddings.options import Pool
from cnnviz.embeddings.penultimate import FeatureExtractor


class Small(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, classes)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class FunctionalHead(Small):
    def forward(self, x):
        inner = torch.relu(self.conv(x)).mean((2, 3))
        return functional.linear(inner, self.head.weight, self.head.bias)


class TwoHeads(Small):
    def forward(self, x):
        inner = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(inner) + self.head(inner * 2)


class ManySamples(Small):
    """Multi-sample dropout: one head asked several times, and another of the same features."""

    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList([nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.2)])
        self.other = nn.Linear(4, 3)

    def forward(self, x):
        inner = torch.relu(self.conv(x)).mean((2, 3))
        return sum(self.head(drop(inner)) for drop in self.drops) / 3 + self.other(inner)


class Prototypes(Small):
    def forward(self, x):
        return -torch.cdist(torch.relu(self.conv(x)).mean((2, 3)), self.head.weight)


class Branching(Small):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else self.head(x.mean((2, 3))[:, [0, 0, 0, 0]])


def wrap(module, **changes):
    torch.manual_seed(0)
    model = model_of(module, (8, 8), "abc", mean=0.5, std=0.25, name="small")
    return dataclasses.replace(model, **changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return wrap(Small())


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path / "data"


def images(count=2, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [Small, FunctionalHead, ManySamples, Prototypes])
def test_penultimate_is_what_goes_into_the_head(kind):
    torch.manual_seed(0)
    net = kind()
    got, logits = FeatureExtractor(wrap(net))(images())
    with torch.inference_mode():
        torch.testing.assert_close(got, torch.relu(net.conv(images())).mean((2, 3)))
        torch.testing.assert_close(logits, net(images()))


HEADS = {"squeezenet1_1": "classifier.1", "mobilenet_v3_small": "classifier.3"}


@pytest.mark.parametrize("name", HEADS)
def test_penultimate_of_torchvisions_networks(name):
    size = 64
    net = torchvision.models.get_model(name, weights=None).eval()
    head = net.get_submodule(HEADS[name])
    fed = []
    head.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0]))
    with torch.inference_mode():
        net(images(2, size))
    expected = fed[0] if fed[0].ndim == 2 else fed[0].mean((2, 3))
    got, _ = FeatureExtractor(wrap(net))(images(2, size))
    torch.testing.assert_close(got, expected)


def test_a_named_map_is_averaged_or_flattened(model):
    with torch.inference_mode():
        maps = model.module.conv(images())
    mean, _ = FeatureExtractor(model, "conv")(images())
    flat, _ = FeatureExtractor(model, "conv", Pool.FLATTEN)(images())
    torch.testing.assert_close(mean, maps.mean((2, 3)))
    torch.testing.assert_close(flat, maps.flatten(1))


def test_tokens_are_averaged_over_tokens():
    class Tokens(Small):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Identity()

        def forward(self, x):
            return self.head(self.tokens(self.conv(x).flatten(2).mT).mean(1))

    torch.manual_seed(0)
    net = wrap(Tokens())
    got, _ = FeatureExtractor(net, "tokens")(images())
    expected, _ = FeatureExtractor(net)(images())
    torch.testing.assert_close(got, expected)


def test_two_heads_ask_for_a_layer():
    with pytest.raises(UsageError, match=r"the classifier head was not found .* with --layer"):
        FeatureExtractor(wrap(TwoHeads()))


def test_an_untraceable_network_is_asked_for_the_linear_layer_that_ends_it():
    net = wrap(Branching())
    extractor = FeatureExtractor(net)
    assert extractor.layer == "penultimate (before head)"
    got, logits = extractor(images())
    with torch.inference_mode():
        torch.testing.assert_close(net.module.head(got), logits)


def test_an_untraceable_network_without_one_asks_for_a_layer():
    class Scaled(Branching):
        def forward(self, x):
            return 2 * super().forward(x)

    net = wrap(Scaled())
    with pytest.raises(
        UsageError, match=r"the penultimate layer of small was not found: .*--layer"
    ):
        FeatureExtractor(net)
    got, _ = FeatureExtractor(net, "conv")(images().abs())
    assert got.shape == (2, 4)


def test_maps_with_their_channels_last_are_averaged_over_their_places():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last, self.head = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.last(self.conv(x).movedim(1, 3)).mean((1, 2)))

    net = wrap(Last())
    got, _ = FeatureExtractor(net, "last")(images())
    with torch.no_grad():
        torch.testing.assert_close(got, net.module.conv(images()).mean((2, 3)))


def test_a_layer_that_does_not_run_gives_no_features(model):
    with pytest.raises(UsageError, match="layer 'spare' does not run in a forward pass"):
        FeatureExtractor(model, "spare")(images())


def test_an_unknown_layer_offers_near_names(model):
    with pytest.raises(UsageError, match="no layer 'hed' in small; the nearest are head"):
        FeatureExtractor(model, "hed")


def test_a_layer_without_a_vector_per_image_gives_no_features():
    class Odd(Small):
        def __init__(self):
            super().__init__()
            self.odd = nn.Flatten(0)

        def forward(self, x):
            self.odd(x)
            return super().forward(x)

    with pytest.raises(
        CnnvizError, match=r"layer 'odd' gives no features: its output is of shape \(384"
    ):
        FeatureExtractor(wrap(Odd()), "odd")(images())


def by_hand(model, data):
    rows = []
    for index in range(len(data)):
        pixels = torch.from_numpy(np.array(data.open(index))).permute(2, 0, 1) / 255
        rows.append(FeatureExtractor(model)(model.preprocess.normalise(pixels)[None])[0])
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_streamed_equals_one_by_one(model, folder, batch_size):
    data = open_data([str(folder)])
    got = extract(model, data, FeatureExtractor(model), batch_size=batch_size)
    np.testing.assert_allclose(got.values_ND, by_hand(model, data), atol=1e-6)
    assert got.indices_N.tolist() == list(range(8))
    assert got.errors == ()


def test_beyond_the_budget_features_are_on_disk(model, folder, tmp_path, monkeypatch):
    data = open_data([str(folder)])
    extractor = FeatureExtractor(model)
    expected = extract(model, data, extractor)
    monkeypatch.setattr(features, "MEMORY_BUDGET", 10)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    got = extract(model, data, extractor, scratch=scratch)
    assert isinstance(got.values_ND, np.memmap)
    assert not isinstance(expected.values_ND, np.memmap)
    np.testing.assert_array_equal(got.values_ND, expected.values_ND)
    assert not list(scratch.iterdir()), "the scratch file has a name"


def test_unreadable_images_are_named_and_left_out(model, folder):
    (folder / "a" / "1.png").write_bytes(b"no image")
    steps = []
    data = open_data([str(folder)])
    got = extract(model, data, FeatureExtractor(model), progress=steps.append)
    assert got.indices_N.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert [path for path, _ in got.errors] == [str(folder / "a" / "1.png")]
    assert sum(steps) == 8


@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_images_with_nan_or_huge_features_are_named_and_left_out(model, folder, value):
    dark = folder / "b" / "2.png"
    Image.new("RGB", (8, 8)).save(dark)
    with torch.no_grad():
        model.module.conv.weight.fill_(1)
        model.module.conv.bias.fill_(27 * 2)

    class NanWhenDark(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(torch.where((x <= -2).all(3, keepdim=True), value, x))

    broken = wrap(NanWhenDark(model.module))
    got = extract(broken, open_data([str(folder)]), FeatureExtractor(broken))
    text = "its features are not finite or too large; try --precision fp32"
    assert got.errors == ((str(dark), text),)
    assert 6 not in got.indices_N.tolist()
    assert np.isfinite(got.values_ND).all()


def test_no_usable_image_is_an_error(model, folder):
    with torch.no_grad():
        model.module.head.bias.fill_(torch.nan)
    with pytest.raises(CnnvizError, match=r"none of the 8 images of .* and 5 more"):
        extract(model, open_data([str(folder)]), FeatureExtractor(model))


def saved(path, got, data):
    save_features(path, got, data)
    return path


def test_saved_features_come_back(model, folder, tmp_path):
    data, extractor = open_data([str(folder)]), FeatureExtractor(model)
    got = extract(model, data, extractor)
    path = saved(tmp_path / "features.npz", got, data)
    again = load_features(path, features_key(model, data, extractor), data, extractor.layer)
    assert again.reused
    np.testing.assert_array_equal(again.values_ND, got.values_ND)
    np.testing.assert_array_equal(again.predicted_N, got.predicted_N)
    with np.load(path) as stored:
        assert stored["images"].tolist() == [e.path for e in data.examples]
        assert stored["labels"].tolist() == [0] * 4 + [1] * 4


def test_large_saved_features_are_mapped(model, folder, tmp_path, monkeypatch):
    data, extractor = open_data([str(folder)]), FeatureExtractor(model)
    got = extract(model, data, extractor)
    path = saved(tmp_path / "features.npz", got, data)
    monkeypatch.setattr(journal, "IN_MEMORY", 10)
    again = load_features(path, got.key, data, extractor.layer)
    assert isinstance(again.values_ND, np.memmap)
    np.testing.assert_array_equal(again.values_ND, got.values_ND)


def test_the_key_hangs_on_all_that_changes_features(model, folder):
    data = open_data([str(folder)])
    keys = {features_key(model, data, FeatureExtractor(model))}
    others = [
        dataclasses.replace(model, weights_sha256="1" * 64),
        dataclasses.replace(model, preprocess=dataclasses.replace(model.preprocess, resize=9)),
        dataclasses.replace(model, precision=Precision.BF16),
        dataclasses.replace(model, choices="sigmoid"),
        dataclasses.replace(model, module=FunctionalHead().eval()),
    ]
    keys |= {features_key(other, data, FeatureExtractor(other)) for other in others}
    keys.add(features_key(model, data, FeatureExtractor(model, "conv")))
    keys.add(features_key(model, data, FeatureExtractor(model, "conv", Pool.FLATTEN)))
    keys.add(features_key(model, open_data([str(folder)], limit=5), FeatureExtractor(model)))
    Image.new("RGB", (9, 9)).save(folder / "a" / "0.png")
    keys.add(features_key(model, open_data([str(folder)]), FeatureExtractor(model)))
    assert len(keys) == 10
    named = dataclasses.replace(model, name="another")
    assert features_key(named, data, FeatureExtractor(named)) in keys


def test_other_features_and_damaged_files_are_not_used(model, folder, tmp_path):
    data, extractor = open_data([str(folder)]), FeatureExtractor(model)
    got = extract(model, data, extractor)
    path = saved(tmp_path / "features.npz", got, data)
    assert load_features(path, "another key", data, "layer") is None
    assert load_features(tmp_path / "absent.npz", got.key, data, "layer") is None
    path.write_bytes(path.read_bytes()[:-200])
    assert load_features(path, got.key, data, "layer") is None


def test_features_that_are_used_again_tell_what_was_left_out(model, folder, tmp_path):
    (folder / "a" / "1.png").write_bytes(b"no image")
    data, extractor = open_data([str(folder)]), FeatureExtractor(model)
    got = extract(model, data, extractor)
    path = saved(tmp_path / "features.npz", got, data)
    again = load_features(path, got.key, data, extractor.layer)
    assert again.errors == got.errors
    assert len(got.errors) == 1
