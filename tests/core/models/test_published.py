import socket
import sys
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
    for name in (n for n in torchvision_names() if not n.startswith("regnet")):
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
        UsageError, match=rf"needs the package {package}: pip install 'cnnviz\[{extra}\]'"
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
