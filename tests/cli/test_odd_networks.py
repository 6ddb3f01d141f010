"""Networks whose answer to one picture is another than to the rest: a line, and no false result."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, odd):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.odd = odd

    def forward(self, x):
        out = self.head(self.first(x).relu().mean((2, 3)))
        if bool((x.amin((1, 2, 3)) > 0.9).any()):
            return self.odd(x, out)
        return out


def make(odd):
    torch.manual_seed(0)
    return lambda: Net(odd).eval()


def fail(x, out):
    raise StopIteration


def leave(x, out):
    raise SystemExit(0)


def nan_rows(x, out):
    return torch.where(x.amin((1, 2, 3))[:, None] > 0.9, float("nan"), out)


ints = make(lambda x, out: out.mul(100).int())
bools = make(lambda x, out: out > 0)
complexes = make(lambda x, out: out.to(torch.complex64))
more = make(lambda x, out: torch.cat([out, out], 1))
fewer = make(lambda x, out: out[:, :2])
rows = make(lambda x, out: torch.cat([out, out]))
one = make(lambda x, out: out.mean())
maps = make(lambda x, out: out[..., None, None].expand(-1, -1, 4, 4))
nothing = make(lambda x, out: None)
listed = make(lambda x, out: [out])
text = make(lambda x, out: "cat")
failing = make(fail)
leaving = make(leave)
nans = make(nan_rows)
infinite = make(lambda x, out: nan_rows(x, out).nan_to_num(float("inf")))
"""
ODD = [line.split(" = ")[0] for line in NET.splitlines() if " = make(" in line]
COMMANDS = {
    "occlude": ["data/cat/grey.png", "data/dog/white.png", "--mask", "4", "--stride", "4"],
    "saliency": ["data/cat/grey.png", "data/dog/white.png", "--method", "gradient"],
    "activations": ["data/cat/grey.png", "data/dog/white.png", "--layer", "first"],
    "ablate": ["data", "--filters", "first:0,1", "--sweep", "first"],
    "max-patches": ["data", "--layer", "first", "--crop", "effective"],
    "tsne": ["data", "--perplexity", "1"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    noise = np.random.default_rng(0)
    for name in ("cat/grey", "cat/other", "cat/third", "dog/fourth"):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 200, (8, 8, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "data" / "dog" / "white.png")
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\n")
    return tmp_path


def test_there_are_many() -> None:
    assert len(ODD) == 15


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.usefixtures("place")
def test_an_odd_answer_is_no_result(
    capsys: pytest.CaptureFixture[str], command: str, odd: str
) -> None:
    line = [command, *COMMANDS[command], "--model", f"net.py:{odd}", "--size", "8"]
    status = run([*line, "--labels", "names.txt", "--out", "out", "--quiet"])
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("cnnviz: ")]
    if command in ("activations", "max-patches") and odd in ("nans", "infinite"):
        assert said == []
        assert status == 0  # they show layers; its scores are none of their business
        return
    assert status == 1
    assert len(said) == 1, said
