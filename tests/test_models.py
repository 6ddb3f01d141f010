import socket
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import models as torchvision_models

from cnnviz.core import bundled, checkpoints
from cnnviz.core.architectures import find_architecture, torchvision_names
from cnnviz.core.bundled.network import CifarNet
from cnnviz.core.catalogue import list_torchvision
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.images import Preprocess, prepare, read
from cnnviz.core.labels import class_index, read_labels
from cnnviz.core.models import Model, load_model
from cnnviz.core.probing import GreyInput

RESNETS = Path(__file__).with_name("cifar_resnet.py")
FACTORIES = """
import torch
from torch import nn

HELPER = "neighbour"

def small(num_classes=3):
    from {neighbour} import channels
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, num_classes))

def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def number():
    return 7

def broken():
    return undefined_name

def fails_inside():
    class Net(nn.Module):
        def forward(self, x):
            return {{"logits": x.mean((2, 3))}}
    return Net()

def one_logit():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))

def maps():
    return nn.Conv2d(3, 4, 3)
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    """A file of factories, with a neighbour that it imports from."""
    name = f"neighbour_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("channels = 5\n")
    (tmp_path / "nets.py").write_text(FACTORIES.format(neighbour=name))
    return str(tmp_path / "nets.py")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_arguments: object, **_options: object) -> None:
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return tmp_path / "torch" / "hub" / "checkpoints"


def predict(model: Model, path: Path) -> torch.Tensor:
    pixels = read(path, model.preprocess).pixels
    with torch.inference_mode():
        return model.logits(model.preprocess.normalise(pixels)[None]).softmax(1)[0]


def top1(model: Model, images: np.ndarray, labels: np.ndarray) -> float:
    pixels = [prepare(Image.fromarray(i), model.preprocess, "npz").pixels for i in images]
    batches = model.preprocess.normalise(torch.stack(pixels)).split(200)
    with torch.inference_mode():
        predicted = torch.cat([model.logits(batch).argmax(1) for batch in batches])
    return float((predicted.numpy() == labels.ravel()).mean())


def lossless(assets: Path) -> tuple[np.ndarray, np.ndarray]:
    file = assets / "cifar10" / "cifar10_lossless_4000train_1000test.npz"
    with np.load(file, allow_pickle=False) as content:
        return content["x_test"], content["y_test"]


def test_bundled_model_is_the_default_and_knows_its_card() -> None:
    model, card = load_model(device="cpu"), bundled.read_card()
    assert (model.name, model.labels, model.input_size) == ("bundled", card.labels, (32, 32))
    assert model.preprocess == Preprocess(32, (32, 32), card.mean, card.std)
    assert not model.module.training
    assert bundled.WEIGHTS.stat().st_size <= 2_000_000


def test_bundled_weights_are_the_files() -> None:
    state = checkpoints.read_state_dict(bundled.WEIGHTS, checkpoints.Kind.SAFETENSORS)
    loaded = load_model(device="cpu").module.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in state.items())


def test_bundled_model_reaches_what_its_card_says(assets: Path) -> None:
    accuracy = 100 * top1(load_model(device="cpu"), *lossless(assets))
    assert accuracy == pytest.approx(bundled.read_card().text["accuracy"]["top1_percent"], abs=0.2)
    assert accuracy >= 88


def test_missing_bundled_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "CARD", Path("gone") / "card.json")
    with pytest.raises(CnnvizError, match="the bundled model is missing from this installation"):
        load_model()


def test_squeezenet_says_samoyed_with_torchvisions_own_transform(assets: Path) -> None:
    model = load_model(
        "squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth", device="cpu"
    )
    path = assets / "photos" / "scenes" / "dog.jpg"
    probabilities = predict(model, path)
    assert model.labels[int(probabilities.argmax())] == "Samoyed"
    assert float(probabilities.max()) == pytest.approx(0.93, abs=0.01)
    weights = torchvision_models.SqueezeNet1_1_Weights.IMAGENET1K_V1
    with Image.open(path) as image:
        theirs = weights.transforms()(image.convert("RGB"))
    ours = model.preprocess.normalise(read(path, model.preprocess).pixels)
    assert (ours - theirs).abs().max() <= 1e-6


def test_resnet20_checkpoint_reaches_its_accuracy(assets: Path) -> None:
    checkpoint = assets / "weights" / "resnet20-12fca82f.th"
    model = load_model(f"{RESNETS}:resnet20", checkpoint=checkpoint, size=32, device="cpu")
    assert (model.name, model.classes) == ("cifar_resnet.py:resnet20", 10)
    assert 100 * top1(model, *lossless(assets)) == pytest.approx(91.5, abs=0.2)


@pytest.mark.slow
def test_resnet56_checkpoint_reaches_its_accuracy(assets: Path) -> None:
    checkpoint = assets / "weights" / "resnet56-4bfd9763.th"
    model = load_model(f"{RESNETS}:resnet56", checkpoint=checkpoint, size=32, device="cpu")
    assert 100 * top1(model, *lossless(assets)) == pytest.approx(92.6, abs=0.2)


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    digests = [
        load_model("squeezenet1_1", weights="none", size=64, seed=seed, device="cpu").weights_sha256
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] != digests[2]


def test_random_network_has_no_class_names() -> None:
    model = load_model("bundled", weights="none", device="cpu")
    assert model.labels == tuple(map(str, range(10)))
    assert model.weights_sha256 != load_model(device="cpu").weights_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"no model 'resnet19'; the nearest are resnet18, .*FILE\.py:FACTORY"),
        ("bundeld", "the nearest are bundled"),
        ("net.py", r"'net\.py' is a file; name the factory in it: --model net\.py:FACTORY"),
        ("gone.py:make", r"no file 'gone\.py'"),
        ("no.such.module:make", r"'no\.such\.module' cannot be imported: ModuleNotFoundError"),
        (
            "torchvision.models:resnet19",
            "no factory 'resnet19' in 'torchvision.models'; .*resnet18",
        ),
    ],
)
def test_unknown_model_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(name)


def test_unknown_weights_precision_and_device_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="no weights 'V9' for resnet50; there are DEFAULT, IMAGEN"):
        load_model("resnet50", weights="V9")
    with pytest.raises(UsageError, match="no precision 'int8'; --precision takes fp32, bf16, fp16"):
        load_model(precision="int8")
    with pytest.raises(UsageError, match="no device 'tpu'"):
        load_model(device="tpu")


def test_weights_not_cached_and_no_network_names_file_folder_and_remedy(empty_cache: Path) -> None:
    message = (
        r"weights IMAGENET1K_V1 of resnet18 are not on disk and could not be fetched: looked for "
        rf"resnet18-f37072fd\.pth in {empty_cache}; .*--checkpoint FILE .*Name or service"
    )
    with pytest.raises(CnnvizError, match=message):
        load_model("resnet18")
    assert socket.getdefaulttimeout() is None


def test_cached_weights_are_read_from_torchs_cache(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torchvision_models.squeezenet1_1(weights=None)
    empty_cache.mkdir(parents=True)
    torch.save(network.state_dict(), empty_cache / "squeezenet1_1-b8a52dc0.pth")
    model = load_model("squeezenet1_1", device="cpu")
    assert model.weights_sha256 == checkpoints.weights_sha256(network)
    assert model.labels[258] == "Samoyed"
    assert capsys.readouterr().out == ""
    listed = {entry.file for entry in list_torchvision() if entry.on_disk}
    assert listed == {"squeezenet1_1-b8a52dc0.pth"}


def test_download_of_another_content_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    entry = find_architecture("squeezenet1_1").published["IMAGENET1K_V1"]
    (tmp_path / "other.pth").write_bytes(b"not what its name promises")
    real = torch.hub.urlopen
    url = (tmp_path / "other.pth").as_uri()
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_a, **_o: real(url))
    with pytest.raises(CnnvizError, match=r"could not be fetched: .*invalid hash value"):
        load_model("squeezenet1_1")
    assert list(entry.folder.iterdir()) == []


def test_unreadable_cached_weights_are_named(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(CnnvizError, match=r"squeezenet1_1-b8a52dc0\.pth' is truncated or damaged"):
        load_model("squeezenet1_1")


@pytest.mark.slow
def test_every_torchvision_network_has_the_published_number_of_parameters() -> None:
    # The published count of inception_v3 includes the auxiliary head that inference leaves out.
    auxiliary = {"inception_v3": 3_326_696}
    # RegNets compute their widths with tensors, which a device without memory cannot.
    for name in (n for n in torchvision_names() if not n.startswith("regnet")):
        for entry in torchvision_models.get_model_weights(name):
            published = find_architecture(name).published[entry.name]
            with torch.device("meta"):
                module = find_architecture(name).make(1000, published.preprocess.crop)
            count = sum(parameter.numel() for parameter in module.parameters())
            assert count == entry.meta["num_params"] - auxiliary.get(name, 0), name


def test_torchvision_checkpoint_with_auxiliary_heads_is_taken_without_them(tmp_path: Path) -> None:
    network = torchvision_models.googlenet(weights=None, init_weights=False, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "g.pth")
    model = load_model("googlenet", checkpoint=tmp_path / "g.pth", size=64, device="cpu")
    assert model.classes == 7
    assert model.module.transform_input


def test_class_count_of_a_checkpoint_sets_the_head(tmp_path: Path) -> None:
    network = torchvision_models.squeezenet1_1(weights=None, num_classes=6).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "six.pth")
    model = load_model("squeezenet1_1", checkpoint=tmp_path / "six.pth", size=64, device="cpu")
    assert model.labels == tuple("012345")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.logits(x), network(x))


def test_factory_with_a_class_parameter_takes_the_checkpoints_count(
    nets: str, tmp_path: Path
) -> None:
    torch.save(load_model(f"{nets}:small", size=8).module.state_dict(), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    state["3.weight"], state["3.bias"] = torch.randn(8, 5), torch.randn(8)
    save_file(state, tmp_path / "b.safetensors")
    model = load_model(f"{nets}:small", checkpoint=tmp_path / "b.safetensors", size=8, device="cpu")
    assert (model.name, model.classes, model.input_size) == ("nets.py:small", 8, (8, 8))


def test_checkpoint_that_does_not_fit_names_what_is_wrong(tmp_path: Path) -> None:
    state = CifarNet().state_dict()
    state["head.weight"] = torch.zeros(10, 7)
    state["odd"] = state.pop("head.bias")
    torch.save(state, tmp_path / "a.pth")
    message = (
        r"a\.pth' does not fit the model bundled \(name its architecture with --model\); "
        r"missing: head\.bias; unexpected: odd; of another shape: head\.weight "
        r"\(file \(10, 7\), model \(10, 160\)\)"
    )
    with pytest.raises(CnnvizError, match=message):
        load_model(checkpoint=tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("number", "returned int, not an nn.Module"),
        ("broken", r"failed: NameError: name 'undefined_name' .*\(nets\.py, line \d+\)"),
        ("fails_inside", "puts out dict, not logits"),
        ("maps", r"puts out shape \(1, 4, 6, 6\), not logits"),
        ("one_logit", "puts out 1 logit for an image; there must be one for each class"),
    ],
)
def test_factory_that_makes_no_classifier_is_one_line(
    nets: str, factory: str, message: str
) -> None:
    with pytest.raises(CnnvizError, match=message) as error:
        load_model(f"{nets}:{factory}", size=8)
    assert "\n" not in str(error.value)


def test_wrong_input_size_points_to_the_option(nets: str) -> None:
    assert load_model(f"{nets}:flat", size=8, device="cpu").classes == 4
    with pytest.raises(CnnvizError, match=r"nets\.py:flat cannot run on an image of 3x9x9.*--size"):
        load_model(f"{nets}:flat", size=9)
    with pytest.raises(UsageError, match="vit_b_16 cannot be built for --size 100x100"):
        load_model("vit_b_16", weights="none", size=100)


def test_factory_file_with_a_mistake_in_it_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(UsageError, match=r"bad\.py' cannot be imported: SyntaxError"):
        load_model(f"{tmp_path / 'bad.py'}:make")


def test_factory_by_module_name_and_search_path_is_left_as_it_was() -> None:
    before = list(sys.path)
    model = load_model("torchvision.models:squeezenet1_1", size=64, device="cpu")
    assert (model.name, model.classes) == ("torchvision.models:squeezenet1_1", 1000)
    assert sys.path == before


def test_grey_network_sees_the_luminance(nets: str) -> None:
    model = load_model(f"{nets}:grey", size=8, mean=[0.1], std=[0.3], device="cpu")
    assert isinstance(model.module, GreyInput)
    pixels = torch.rand(2, 3, 8, 8)
    red, green, blue = pixels.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue - 0.1) / 0.3
    expected = model.module.network(grey[:, None])
    assert torch.allclose(model.logits(model.preprocess.normalise(pixels)), expected, atol=1e-5)


def test_size_keeps_the_published_proportion_and_takes_all_of_the_image_elsewhere(
    nets: str,
) -> None:
    published = load_model("squeezenet1_1", weights="none", size=112, device="cpu").preprocess
    assert (published.resize, published.crop) == (128, (112, 112))
    own = load_model(f"{nets}:small", size=20, device="cpu").preprocess
    assert (own.resize, own.crop) == (20, (20, 20))
    plain = load_model(f"{nets}:small", device="cpu").preprocess
    assert plain == Preprocess(256, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mean_and_std_are_the_users_when_given(nets: str) -> None:
    chosen = load_model(f"{nets}:small", size=8, mean=[0.5], std=[1, 2, 3], device="cpu").preprocess
    assert (chosen.mean, chosen.std) == ((0.5, 0.5, 0.5), (1, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size 0x0: it takes whole numbers from 1"),
        ({"mean": [0.1, 0.2]}, r"--mean 0\.1,0\.2: it takes one number, or three"),
        ({"mean": [float("nan")]}, "--mean nan: it takes one number"),
        ({"std": [0.0]}, "--std 0: .*all above 0"),
        ({"std": [1, -1, 1]}, "--std 1,-1,1: .*all above 0"),
    ],
)
def test_preprocessing_out_of_range_is_refused(
    nets: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(f"{nets}:small", **options)  # type: ignore[arg-type]


def test_checkpoint_beside_a_name_takes_that_weights_transform(tmp_path: Path) -> None:
    network = torchvision_models.efficientnet_b0(weights=None)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    options = {"checkpoint": tmp_path / "mine.pth", "size": 64, "device": "cpu"}
    model = load_model("efficientnet_b0", **options)  # type: ignore[arg-type]
    assert model.preprocess.interpolation == "bicubic"
    resnet = find_architecture("resnet50").published
    assert (
        resnet["IMAGENET1K_V1"].preprocess.resize,
        resnet["IMAGENET1K_V2"].preprocess.resize,
    ) == (256, 232)


def test_archives_need_no_name_and_give_their_networks_answers(tmp_path: Path) -> None:
    network = CifarNet(4).eval()
    x = torch.randn(3, 3, 32, 32)
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.trace(network, x), str(tmp_path / "a.pt"))
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "b.pt2")
    for name, size in (("a.pt", 32), ("b.pt2", None)):
        model = load_model(checkpoint=tmp_path / name, size=size, device="cpu")
        assert (model.name, model.classes, model.input_size) == (name, 4, (32, 32))
        assert model.weights_sha256 == checkpoints.file_sha256(tmp_path / name)
        assert torch.allclose(model.logits(x), network(x), atol=1e-5)
        named = load_model("bundled", checkpoint=tmp_path / name, size=size, device="cpu")
        assert named.name == name
    with pytest.raises(UsageError, match="brings its own weights"):
        load_model(checkpoint=tmp_path / "a.pt", weights="DEFAULT")


def test_archive_beside_a_name_gives_only_its_weights(tmp_path: Path) -> None:
    network = torchvision_models.squeezenet1_1(weights=None, num_classes=5).eval()
    torch.export.save(
        torch.export.export(network, (torch.zeros(1, 3, 64, 64),)), tmp_path / "b.pt2"
    )
    model = load_model("squeezenet1_1", checkpoint=tmp_path / "b.pt2", size=64, device="cpu")
    assert isinstance(model.module, torchvision_models.SqueezeNet)
    assert model.weights_sha256 == checkpoints.weights_sha256(network)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_answers_in_float32_close_to_single(
    precision: str, tolerance: float
) -> None:
    single = load_model(device="cpu")
    half = load_model(device="cpu", precision=precision)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        logits = half.logits(x)
        assert next(half.module.parameters()).dtype == half.precision.dtype
        assert logits.dtype == torch.float32
        assert torch.allclose(logits.softmax(1), single.logits(x).softmax(1), atol=tolerance)
    assert half.weights_sha256 == single.weights_sha256


def test_same_weights_have_one_fingerprint_whatever_the_file(tmp_path: Path) -> None:
    state = load_model(device="cpu").module.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.ckpt")
    save_file(dict(state), tmp_path / "b.safetensors")
    digests = {
        load_model(checkpoint=tmp_path / n).weights_sha256 for n in ("a.ckpt", "b.safetensors")
    }
    assert digests == {load_model().weights_sha256}


def test_summary_names_the_model() -> None:
    model = load_model(device="cpu")
    assert model.summary() == {
        "name": "bundled",
        "weights_sha256": model.weights_sha256,
        "classes": 10,
        "input_size": [32, 32],
    }


NAMES = ("tench, Tinca tinca", "golden retriever", "tabby", "tiger cat", "crane", "crane", "7")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("tench", 0),
        ("Tinca_Tinca", 0),
        ("TIGER_cat", 3),
        ("golden", 1),
        ("  tabby ", 2),
        ("4", 4),
        ("7", 6),
    ],
)
def test_class_is_found_by_name_part_or_index(text: str, index: int) -> None:
    assert class_index(text, NAMES) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tabbi", "no class 'tabbi'; the nearest are 'tabby'"),
        ("9", "no class 9; the model's classes are 0 to 6"),
        ("-1", "no class -1; the model's classes are 0 to 6"),
        ("crane", r"'crane' is the name of several classes: 4 \(crane\), 5 \(crane\); use the ind"),
        ("tig", "no class 'tig'"),
        ("", "no class ''"),
    ],
)
def test_unknown_class_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        class_index(text, NAMES)


def test_class_is_found_by_wnid() -> None:
    assert class_index("n02123159", ("tabby", "tiger cat"), ("n02123045", "n02123159")) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "\ufeffcat\ndog\r\nlaborer ant\n\n"),
        ("l.json", '["cat", "dog", "laborer ant"]'),
        ("l.json", '{"1": "dog", "0": "cat", "2": "laborer ant"}'),
    ],
)
def test_labels_are_read_from_text_and_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read_labels(tmp_path / name).names == ("cat", "dog", "laborer ant")


def test_imagenets_customary_json_gives_wnids_too(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"0": ["n01", "tench"], "1": ["n02", "shark"]}')
    labels = read_labels(tmp_path / "l.json")
    assert (labels.names, labels.wnids) == (("tench", "shark"), ("n01", "n02"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"\xff\xfe", "is not UTF-8 text"),
        ("l.json", b"{", "is not JSON"),
        ("l.json", b"3", "holds neither a list nor a map"),
        ("l.json", b'{"a": "cat"}', "has the key 'a'; keys are class indices"),
        ("l.json", b'{"0": "cat", "2": "dog"}', "has no entry for class 1"),
        ("l.json", b'["cat", 3]', "neither names nor pairs"),
    ],
)
def test_malformed_labels_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_labels(tmp_path / name)


def test_labels_are_the_users_when_given_and_must_be_as_many_as_classes(
    nets: str, tmp_path: Path
) -> None:
    (tmp_path / "l.txt").write_text("a\nb\nc\n")
    model = load_model(f"{nets}:small", size=8, labels=tmp_path / "l.txt")
    assert model.labels == ("a", "b", "c")
    with pytest.raises(UsageError, match=r"l\.txt' has 3 labels; bundled has 10 classes"):
        load_model(labels=tmp_path / "l.txt")
    with pytest.raises(UsageError, match=r"cannot read the labels file '.*gone': No such file"):
        load_model(labels=tmp_path / "gone")
