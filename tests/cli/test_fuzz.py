"""Random command lines, half of their values wrong: a result that is whole, or a line and a status.

The options are read off the commands themselves, so that new ones are tried too.
"""

import inspect
import json
import random
import signal
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
from PIL import Image
from typer.models import ArgumentInfo

from cnnviz.cli.main import COMMANDS, run

LINES = 9  # for each command
SECONDS = 60
SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"
NETWORKS = """
import torch
from torch import nn

torch.manual_seed(0)


def body(channels=3):
    return [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]


def pooled(outputs, channels=3):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs)]
    return nn.Sequential(*body(channels), *head)


def plain():
    return pooled(3)


def grey():
    return pooled(3, 1)


def bands():
    return pooled(3, 5)


def yes_no():
    return pooled(1)


def sigmoid():
    return nn.Sequential(pooled(4), nn.Sigmoid())


def dense():
    return nn.Sequential(*body(), nn.Conv2d(6, 3, 1), nn.Upsample(scale_factor=2))


def dropout():
    return nn.Sequential(nn.Dropout2d(0.5), pooled(3)).train()


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = pooled(3)

    def forward(self, x):
        return {"logits": self.inner(x), "other": x.mean((1, 2, 3))}


def several():
    return Several()


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 16, 16)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        if float(x.sum()) == 0.5:
            return None
        return self.head(self.block(self.cut(x).flatten(2).mT).mean(1))


def patches():
    return Patches()
"""
NAMES = [line[4:-3] for line in NETWORKS.splitlines() if line.startswith("def ") and "()" in line]
ODD = [
    "",
    " ",
    "-1",
    "0",
    "1e9",
    "nan",
    "x",
    "../x",
    "\u2028",
    "all",
    "9" * 40,
    "a" * 300,
    "0.5",
    "a,b",
]
GOOD: dict[str, list[str]] = {
    "--mask": ["8", "4x6", "16"],
    "--stride": ["8", "16"],
    "--size": ["16", "16x24"],
    "--image-size": ["16", "32x16"],
    "--model": ["bundled", *(f"net.py:{name}" for name in NAMES)],
    "--labels": ["names.txt"],
    "--layer": ["0", "stem.conv", "inner.0", "cut", "all", "first"],
    "--filters": ["0", "0-2", "0:1", "random:2"],
    "--sweep": ["0", "stem.conv"],
    "--target": ["0", "1", "predicted", "top2"],
    "--expect": ["2,2,20,20", "boxes.json"],
    "--label": ["0", "folder"],
    "--fill": ["mean", "blur", "noise", "black"],
    "--limit": ["3", "5"],
    "--perplexity": ["2", "1.5"],
    "--seed": ["0", "7"],
    "--batch-size": ["1", "3"],
    "--top": ["1", "3"],
    "--device": ["cpu"],
    "--at": ["3,3"],
    "--inside": ["boxes.json"],
    "--mean": ["0.5", "0.4,0.5,0.6"],
    "--std": ["0.5"],
    "--range": ["0,255"],
    "--show": ["1", "1,2,3"],
    "--weights": ["none"],
    "--repeat": ["1", "2"],
    "--threshold": ["0.4"],
    "--output": ["logits", "0"],
    "--shard": ["0/1", "1/2"],
    "--junit": ["report.xml"],
    "--scale": ["0.3"],
    "--columns": ["1", "2"],
    "--min-accuracy": ["0", "1"],
    "--min-agreement": ["0", "1"],
    "--max-flips": ["0", "1"],
}
SMALL = ["--model", "net.py:plain", "--labels", "names.txt", "--size", "16"]
USUAL = {
    "occlude": ["--mask", "16", "--stride", "16", "--pictures", "overlay"],
    "audit": ["--mask", "16", "--stride", "16", *SMALL],
    "trust": SMALL,
    "layers": SMALL,
    "activations": SMALL,
    "reasons": ["--cell", "16", "--grid", "2", *SMALL],
    "tsne": ["--perplexity", "2"],
    "ablate": [*SMALL, "--filters", "0:0"],
    "max-patches": ["--model", "net.py:grey", "--layer", "0"],
}
DATA = {"images": ["data/a/0.png", "data/b/1.png"], "data": ["data"], "folder": ["occluded/0"]}
DATA["runs"] = DATA["folder"] * 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes, networks, names, boxes, and a run to draw again."""
    place = tmp_path_factory.mktemp("world")
    noise = np.random.default_rng(0)
    for number in range(8):
        path = place / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    (place / "bad.png").write_text("no picture")
    (place / "net.py").write_text(NETWORKS)
    (place / "names.txt").write_text("a\nb\nc\n")
    (place / "boxes.json").write_text(json.dumps({f"{n}.png": [2, 2, 20, 20] for n in range(8)}))
    line = ["occlude", str(place / "data/a/0.png"), "--mask", "16", "--stride", "16", "--quiet"]
    assert run([*line, "--out", str(place / "occluded")]) == 0
    return place


def value(kind: Any, name: str, chance: random.Random) -> str:
    if chance.random() < 0.15:
        return chance.choice(ODD)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str(chance.choice(list(kind)).value)
    return chance.choice(GOOD.get(name, ["1", "2", "0.5"]))


def line(command: str, chance: random.Random, most: int = 5) -> list[str]:
    """A command line with some options, `most` at most; with none of them one that works."""
    made = [command]
    options = []
    for name, parameter in inspect.signature(COMMANDS[command]).parameters.items():
        kind, info = get_args(parameter.annotation)[:2]
        if isinstance(info, ArgumentInfo):
            made += DATA.get(name, ["0"])
            if most and chance.random() < 0.1:
                made.append(chance.choice([*ODD, "bad.png", "gone.png"]))
        else:
            named = [part for part in info.param_decls or () if part.startswith("--")]
            options.append((named[0] if named else "--" + name.replace("_", "-"), kind))
    for name, kind in chance.sample(options, chance.randint(0, min(most, len(options)))):
        if name in ("--out", "--json", "--overwrite", "--quiet", "--weights"):
            continue
        if kind is bool:
            made.append(chance.choice(name.split("/")))
        else:
            made += [name, value(kind, name, chance)]
    usual = iter(USUAL.get(command, []))
    for name, worth in zip(usual, usual, strict=True):
        made += [] if name in made else [name, worth]
    return made


@pytest.fixture
def hurried() -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("a command line takes for ever")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


NOT_FUZZED = ("merge", "rerun", "doctor", "detect")  # run others, no options, detectors


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [n for n in COMMANDS if n not in NOT_FUZZED])
def test_random_command_lines(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(world)
    chance = random.Random(f"{command} 3")  # noqa: S311
    ended: dict[int, int] = {}
    for number in range(LINES):
        out = tmp_path / str(number)
        extra = [] if command == "models" else ["--out", str(out), "--quiet"]
        made = [*line(command, chance, 5 if number else 0), *extra]
        signal.alarm(SECONDS)
        try:
            status = run(made)
        except BaseException as error:
            raise AssertionError(f"{made} ends in {type(error).__name__}") from error
        said = capsys.readouterr()
        ended[status] = ended.get(status, 0) + 1
        assert status in (0, 1, 2, 3), made
        told = ("cnnviz: ", '{"message": "cnnviz: ')
        lines = [text for text in said.err.splitlines() if text.startswith(told)]
        assert bool(lines) == (status != 0), (made, said.err)
        assert "Traceback" not in said.err, made
        for path in out.rglob("summary.json"):
            content = json.loads(path.read_text())
            schema = json.loads((SCHEMAS / f"{command}.schema.json").read_text())
            jsonschema.validate(content, schema)
            assert all((path.parent / name).is_file() for name in content["files"]), made
        if status == 0 and command not in ("models", "report"):
            assert list(out.rglob("summary.json")), made
    print(f"{command}: {ended}")  # noqa: T201
    assert ended.get(0, 0) >= 1
