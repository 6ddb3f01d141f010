import socket
import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models as torchvision_models

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.files import checkpoints
from cnnviz.core.models.load import load_model
from cnnviz.core.models.zoo import find_architecture
from cnnviz.core.models.zoo.hubs import measured
from cnnviz.core.models.zoo.published import list_torchvision, torchvision_names


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def refuse(*_arguments: object, **_options: object) -> None:
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return tmp_path / "torch" / "hub" / "checkpoints"


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
    listed = {w.file for entry in list_torchvision() for w in entry.weights if w.on_disk}
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
    assert list(entry.file.parent.iterdir()) == []


def test_unreadable_cached_weights_are_named(empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(CnnvizError, match=r"squeezenet1_1-b8a52dc0\.pth' is truncated or damaged"):
        load_model("squeezenet1_1")


@pytest.mark.slow
def test_every_torchvision_network_has_the_published_number_of_parameters() -> None:
    # The published count of these includes the auxiliary head that inference leaves out.
    auxiliary = {
        "inception_v3": 3_326_696,
        "deeplabv3_mobilenet_v3_large": 3_851,
        **{f"{kind}_resnet{n}": 2_365_205 for kind in ("deeplabv3", "fcn") for n in (50, 101)},
    }
    # RegNets compute their widths with tensors, which a device without memory cannot.
    # Detectors are published with frozen norms in their backbones, which are not parameters.
    left_out = set(torchvision_models.list_models(module=torchvision_models.detection))
    for name in (n for n in torchvision_names() if not n.startswith("regnet")):
        if name in left_out:
            continue
        for entry in torchvision_models.get_model_weights(name):
            published = find_architecture(name).published[entry.name]
            classes = len(published.labels) or 1000
            with torch.device("meta"):
                module = find_architecture(name).make(classes, published.preprocess.crop)
            count = sum(parameter.numel() for parameter in module.parameters())
            assert count == entry.meta["num_params"] - auxiliary.get(name, 0), name


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("hf:somebody/something", "transformers", "transformers"),
        ("net.onnx", "onnxruntime", "onnx"),
    ],
)
def test_without_the_package_a_line_says_what_to_install(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"x")
    with pytest.raises(
        UsageError, match=rf"needs the package {package}: pip install '\.\[{extra}\]'"
    ):
        load_model(name)


def test_a_transform_that_cannot_be_followed_is_told() -> None:
    def mirrored(picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture.resize((32, 32)))).movedim(2, 0) / 255
        return pixels.flip(2)

    _, (note,) = measured(mirrored, (), "net")
    assert "net prepares images in a way that is only approximated here" in note


def test_pictures_of_any_proportions_become_their_central_square() -> None:
    def shorter(picture: Image.Image) -> Tensor:
        scale = 32 / min(picture.size)
        small = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        return torch.from_numpy(np.array(small)).movedim(2, 0) / 255 - 0.5

    found, (note,) = measured(shorter, (), "net")
    assert (found.crop, found.mean, found.std) == ((32, 32), (0.5,) * 3, (1.0,) * 3)
    assert "net takes images of any proportions" in note


ASSUMED = "does not define how to prepare images; assumed: as for"


def test_only_what_was_assumed_and_not_given_is_said(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.mean((2, 3))\n"
    )
    name = f"{tmp_path / 'net.py'}:Net"
    values = "mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    for options, ending in (
        ({}, f"ImageNet, resized to 256, centre 224x224, {values} (--size, --mean, --std)"),
        ({"size": 32}, f"ImageNet, {values} (--mean, --std)"),
        ({"size": 32, "mean": [0.5]}, "ImageNet, std 0.229,0.224,0.225 (--std)"),
    ):
        (note,) = load_model(name, **options).notes  # type: ignore[arg-type]
        assert note == f"net.py:Net {ASSUMED} {ending}"
    assert load_model(name, size=32, mean=[0.5], std=[0.5]).notes == ()


def test_a_checkpoint_of_ones_own_gets_a_publishers_preprocessing_with_a_note(
    tmp_path: Path,
) -> None:
    network = torchvision_models.regnet_y_400mf(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    own = {"checkpoint": tmp_path / "own.pth", "device": "cpu"}
    model = load_model("regnet_y_400mf", **own)  # type: ignore[arg-type]
    assert model.preprocess.resize == 256
    assert model.notes == (
        f"'{tmp_path / 'own.pth'}' {ASSUMED} IMAGENET1K_V1 of regnet_y_400mf, resized to 256, "
        "centre 224x224, mean 0.485,0.456,0.406, std 0.229,0.224,0.225 (--size, --mean, --std, "
        "--weights)",
    )
    named = load_model("regnet_y_400mf", weights="IMAGENET1K_V2", **own)  # type: ignore[arg-type]
    assert (named.preprocess.resize, named.notes) == (232, ())
    assert load_model("regnet_y_400mf", weights="none", device="cpu").notes == ()


def test_a_published_file_is_known_by_its_name_or_hash(tmp_path: Path) -> None:
    torch.save(
        torchvision_models.squeezenet1_1(weights=None).state_dict(), tmp_path / "renamed.pth"
    )
    digest = checkpoints.file_sha256(tmp_path / "renamed.pth")
    file = tmp_path / f"net-{digest[:8]}.pth"
    entry = replace(find_architecture("squeezenet1_1").published["IMAGENET1K_V1"], file=file)
    assert entry.holds(tmp_path / "renamed.pth")
    assert entry.holds(tmp_path / "elsewhere" / file.name)
    assert not replace(entry, file=tmp_path / "net-00000000.pth").holds(tmp_path / "renamed.pth")
