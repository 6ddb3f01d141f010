"""Refusals that no other test meets, each with the words it should have."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import device, files
from cnnviz.core.data.images import prepare, read_rgb
from cnnviz.core.data.shards import Block
from cnnviz.core.device import in_batches, pick_device
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import read_text, regular
from cnnviz.core.models.preprocess import plain
from cnnviz.core.output import journal
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.embeddings import features
from cnnviz.embeddings.experiment import check_spec
from cnnviz.embeddings.options import EmbeddingSpec

NETWORKS = """
import torch
from torch import nn


class Tuples(nn.Module):
    def __init__(self, decides):
        super().__init__()
        self.rnn = nn.GRU(8, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.decides = decides

    def forward(self, x):
        if self.decides and float(x.sum()) == 0.5:
            return None
        return self.head(self.rnn(x.mean(1))[0].mean(1))


class Aside(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.aside = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        self.aside(x)
        return self.head(self.first(x).mean((2, 3)))


class Own(Aside):
    def __init__(self):
        super().__init__()
        self.own = torch.ones(1, 3, requires_grad=True)

    def forward(self, x):
        return super().forward(x.detach()) * self.own


def tuples():
    return Tuples(False)


def odd():
    return Tuples(True)


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORKS)
    for name in ("data/0/a.png", "data/1/b.png", "x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    return tmp_path


def net(name: str) -> list[str]:
    return ["--model", f"net.py:{name}", "--size", "8"]


LINES: dict[str, tuple[list[str], str]] = {
    "range": (["occlude", "x.png", "--range", "1"], "invalid range '1'; --range takes a low"),
    "show": (["occlude", "x.png", "--show", "1,2"], "invalid channels '1,2'; --show takes one"),
    "at": (
        ["occlude", "x.png", "--at", "1,2,3"],
        "invalid pixel '1,2,3'; --at takes its row",
    ),
    "folder": (
        ["render", "x", "--label", "folder"],
        "a run does not record the folder of its image",
    ),
    "sums": (
        ["occlude", "x.png", *net("tuples"), "--mask", "4", "--stride", "4", "--layer", "rnn"],
        "the output of layer 'rnn' is not a tensor",
    ),
    "hooked sums": (
        ["occlude", "x.png", *net("odd"), "--mask", "4", "--stride", "4", "--layer", "rnn"],
        "the output of layer 'rnn' is not a tensor",
    ),
    "watched": (["max-patches", "data", *net("flat")], "has no convolution that can be watched"),
    "swept": (["ablate", "data", *net("flat"), "--sweep", "all"], "has no convolution"),
    "gradient": (
        ["saliency", "x.png", *net("Own"), "--method", "gradient"],
        "does not reach the image",
    ),
    "grad-cam": (
        ["saliency", "x.png", *net("Aside"), "--method", "grad-cam", "--layer", "aside"],
        "layer 'aside' of net.py:Aside has no influence on the classes",
    ),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.usefixtures("place")
def test_command_lines(capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, words = LINES[name]
    assert run([*arguments, "--out", "out", "--quiet"]) in (1, 2)
    assert words in capsys.readouterr().err


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="no CUDA device is available"):
        pick_device("cuda")
    with pytest.raises(UsageError, match="no MPS device is available"):
        pick_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"no device 'cuda:3'; this machine has cuda:0 to cuda:1"):
        pick_device("cuda:3")


def test_one_image_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(_part: slice) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    with pytest.raises(CnnvizError, match="out of memory with one image at a time"):
        list(in_batches(4, 4, run_out))


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: object, **_options: object) -> Any:
        raise error

    return fail


def test_what_may_not_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError(13, "Permission denied")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", raising(denied))
        with pytest.raises(CnnvizError, match=r"'x\.png' may not be read: permission denied"):
            regular("x.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", raising(denied))
        with pytest.raises(CnnvizError, match=r"'x\.png' may not be read: permission denied"):
            read_rgb("x.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", raising(OSError(5, "Input/output error")))
        with pytest.raises(CnnvizError, match=r"'net\.py' cannot be read: Input/output error"):
            read_text("net.py")
    with monkeypatch.context() as patch:
        patch.setattr(journal, "open_arrays", raising(OSError(5, "Input/output error")))
        (place / "x.npz").touch()
        stored = journal.Journal(place / "x.npz", {}, Block(0, 1, 1), resume=True)
        with pytest.raises(CnnvizError, match=r"cannot read .*x\.npz: Input/output error"):
            stored.load({})
    assert files.exists(place / "x.png")


def test_a_picture_for_a_network_of_bands() -> None:
    wants = plain(8).with_channels(4)
    with pytest.raises(CnnvizError, match="'a' has 3 channels, and the network takes 4"):
        prepare(Image.new("RGB", (9, 9)), wants, "a")


def test_a_file_in_the_place_of_an_images_folder(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "out")
    (tmp_path / "out" / "a").write_text("mine")
    with pytest.raises(CnnvizError, match=r"cannot write to .*a: File exists"):
        folder.subfolder("a")


def test_a_finished_scan_is_not_resumed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out").mkdir()
    (place / "out" / "summary.json").write_text("{}")
    line = ["max-patches", "data", "--layer", "stem.conv", "--resume", "--out", "out", "--quiet"]
    assert run(line) == 2
    assert "holds a finished run: there is nothing to resume" in capsys.readouterr().err


def test_no_perplexity() -> None:
    with pytest.raises(UsageError, match="no perplexity; --perplexity takes a number from 1"):
        check_spec(EmbeddingSpec(perplexities=()), 100)


def test_no_room_for_features(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(np, "memmap", raising(OSError(28, "No space left on device")))
    store = features._Store(10, place)
    with pytest.raises(CnnvizError, match=r"no room for 0\.0 GB of features on disk: No space"):
        store.add(np.zeros((1, 4), np.float32))


@pytest.mark.needs("transformers")
def test_a_configuration_that_makes_no_network(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "hf").mkdir()
    content = {"model_type": "vit", "hidden_size": 10, "num_attention_heads": 2, "patch_size": 0}
    (place / "hf" / "config.json").write_text(json.dumps(content))
    line = ["layers", "--model", "hf:hf", "--weights", "none", "--out", "out", "--quiet"]
    assert run(line) == 1
    assert "cannot be built" in capsys.readouterr().err


ABSURD = """
import torch
from torch import nn

def zero():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Nothing())

class Nothing(nn.Module):
    def forward(self, x):
        return x[:, :0]

def expanded():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.register_buffer("huge", torch.zeros(1).expand(10**13))
    return network
"""


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--target", "top" + "9" * 5000], 2, "of 10 classes"),
        (["--target", "9" * 5000], 2, "no class 999"),
        (["--out", "loop"], 1, "cannot write to loop"),
        (["--scale", "inf"], 2, "invalid scale 'inf'; --scale takes"),
        (["--alpha", "nan"], 2, "--alpha nan is not a finite number"),
        (["--junit", "pipe"], 2, "pipe exists and is not a JUnit report"),
        (["--model", "nets.py:zero"], 1, "returns no scores: its output has shape (1, 0)"),
        (["--model", "nets.py:expanded"], 1, "the tensor 'huge' of shape (10000000000000,)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_absurd_values_are_one_line(
    more: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("nets.py").write_text(ABSURD)
    os.mkfifo("pipe")
    Image.new("RGB", (32, 32), (9, 99, 199)).save("x.png")
    assert run(["occlude", "x.png", "--mask", "16", *more]) == status
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not any("Traceback" in line for line in said)
    assert len(said[-1]) < 2_100
