import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models as torchvision_models

from cnnviz.core.data.images import Preprocess, prepare, read_image
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models import bundled
from cnnviz.core.models.bundled import CifarNet
from cnnviz.core.models.files import checkpoints
from cnnviz.core.models.files.kinds import Kind
from cnnviz.core.models.load import Model, load_model
from cnnviz.core.models.zoo import find_architecture
from cnnviz.core.output.record import to_json
from cnnviz.core.output.summary import ModelRecord

RESNETS = Path(__file__).with_name("cifar_resnet.py")


def predict(model: Model, path: Path) -> torch.Tensor:
    pixels = read_image(path, model.preprocess).pixels
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
    found = checkpoints.read_state_dicts(bundled.WEIGHTS, Kind.SAFETENSORS)
    state = found[0].tensors
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
    ours = model.preprocess.normalise(read_image(path, model.preprocess).pixels)
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


def test_a_file_given_as_weights_is_told_its_option(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="a file goes to --checkpoint"):
        load_model("resnet50", weights=str(file))


def test_unknown_weights_precision_and_device_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="no weights 'V9' for resnet50; there are DEFAULT, IMAGEN"):
        load_model("resnet50", weights="V9")
    with pytest.raises(UsageError, match="invalid precision 'int8'; --precision takes fp32, bf16"):
        load_model(precision="int8")
    with pytest.raises(UsageError, match="no device 'tpu'"):
        load_model(device="tpu")


def test_torchvision_checkpoint_with_auxiliary_heads_is_taken_without_them(tmp_path: Path) -> None:
    network = torchvision_models.googlenet(weights=None, init_weights=False, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "g.pth")
    model = load_model("googlenet", checkpoint=tmp_path / "g.pth", size=64, device="cpu")
    assert model.classes == 7


@pytest.mark.parametrize("inside", [True, False])
def test_whether_a_network_transforms_its_input_is_a_matter_of_mean_and_std(
    inside: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options = {"weights": None, "init_weights": False, "aux_logits": False}
    network = torchvision_models.googlenet(**options, transform_input=inside).eval()
    torch.save(network.state_dict(), tmp_path / "g.pth")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = {} if inside else {"mean": mean, "std": std}
    model = load_model("googlenet", checkpoint=tmp_path / "g.pth", size=64, **given)  # type: ignore[arg-type]
    pixels = torch.rand(1, 3, 64, 64)
    right = network((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(model.logits(model.preprocess.normalise(pixels)), right)
    published = tmp_path / "googlenet-1378be20.pth"  # torchvision's name
    published.write_bytes((tmp_path / "g.pth").read_bytes())
    model = load_model("googlenet", checkpoint=published, size=64)
    assert (model.notes, model.module.transform_input) == ((), True)
    assert model.preprocess.mean == mean
    model = load_model("googlenet", checkpoint=tmp_path / "g.pth", size=64, **given)  # type: ignore[arg-type]
    assert inside == ("mean 0.5,0.5,0.5, std 0.5,0.5,0.5 (--mean, --std" in " ".join(model.notes))


def test_class_count_of_a_checkpoint_sets_the_head(tmp_path: Path) -> None:
    network = torchvision_models.squeezenet1_1(weights=None, num_classes=6).eval()
    torch.save({"model": network.state_dict()}, tmp_path / "six.pth")
    model = load_model("squeezenet1_1", checkpoint=tmp_path / "six.pth", size=64, device="cpu")
    assert model.labels == tuple("012345")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.logits(x), network(x))


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


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "regnet_x_400mf"])
def test_checkpoint_alone_is_recognised_by_names_and_shapes(tmp_path: Path, name: str) -> None:
    network = torchvision_models.get_model(name, weights=None, num_classes=6).eval()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "mine.pth")
    for model in (
        load_model(str(tmp_path / "mine.pth"), size=64, device="cpu"),
        load_model(checkpoint=tmp_path / "mine.pth", size=64, device="cpu"),
    ):
        assert (model.name, model.classes) == (name, 6)
        assert f"loaded as --model {name}" in model.notes[0]
        x = torch.randn(2, 3, 64, 64)
        assert torch.allclose(model.logits(x), network(x), atol=1e-5)


def test_checkpoint_of_a_changed_network_is_not_taken_for_the_usual_one(tmp_path: Path) -> None:
    network = torchvision_models.squeezenet1_1(weights=None)
    network.features[0] = nn.Conv2d(3, 64, 5)
    torch.save(network.state_dict(), tmp_path / "squeezenet1_1.pth")
    with pytest.raises(CnnvizError, match=r"does not fit the model bundled \(name its archi"):
        load_model(str(tmp_path / "squeezenet1_1.pth"))


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
    with warnings.catch_warnings(action="ignore"):  # newer torch announces TorchScript's end
        torch.jit.save(torch.jit.trace(network, x), str(tmp_path / "a.pt"))
    torch.export.save(torch.export.export(network, (x,), strict=False), tmp_path / "b.pt2")
    for name, size in (("a.pt", 32), ("b.pt2", None)):
        model = load_model(checkpoint=tmp_path / name, size=size, device="cpu")
        assert (model.name, model.classes, model.input_size) == (name, 4, (32, 32))
        assert model.weights_sha256 == checkpoints.file_sha256(tmp_path / name)
        assert torch.allclose(model.logits(x), network(x), atol=1e-5)
        named = load_model("bundled", checkpoint=tmp_path / name, size=size, device="cpu")
        assert named.name == name
    with pytest.raises(UsageError, match="contains its own weights"):
        load_model(checkpoint=tmp_path / "a.pt", weights="DEFAULT")


def test_archive_beside_a_name_gives_only_its_weights(tmp_path: Path) -> None:
    network = torchvision_models.squeezenet1_1(weights=None, num_classes=5).eval()
    torch.export.save(
        torch.export.export(network, (torch.zeros(1, 3, 64, 64),), strict=False), tmp_path / "b.pt2"
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
    assert to_json(ModelRecord.of(model)) == {
        "name": "bundled",
        "weights_sha256": model.weights_sha256,
        "classes": 10,
        "input_size": [32, 32],
        "head": "softmax",
    }
