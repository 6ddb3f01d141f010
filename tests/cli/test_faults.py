"""Runs that end before their end: killed, interrupted, out of disk, their folder gone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli import main
from cnnviz.cli.main import COMMANDS, run
from cnnviz.core.errors import CnnvizError
from cnnviz.core.output.run_folder import RunFolder

MASK = ["--mask", "16", "--stride", "8"]
LINES = {
    "occlude": ["occlude", "data/cat/0.png", *MASK, "--pictures", "overlay"],
    "saliency": ["saliency", "data/cat/0.png", "data/cat/1.png"],
    "trust": ["trust", "data/cat/0.png"],
    "reasons": ["reasons", "data/cat/0.png", "--cell", "16", "--grid", "2", "--most", "1"],
    "audit": ["audit", "data", *MASK, "--no-pictures"],
    "activations": ["activations", "data/cat/0.png", "--layer", "stem.conv"],
    "max-patches": ["max-patches", "data", "--layer", "stem.conv", "--batch-size", "2"],
    "ablate": ["ablate", "data", "--filters", "stem.conv:0"],
    "tsne": ["tsne", "data", "--perplexity", "2"],
    "layers": ["layers"],
    "filters": ["filters", "--layer", "features.widen1.conv"],
    "models": ["models"],
    "render": ["render", "occluded/0"],
    "merge": ["merge", "shares"],
    "rerun": ["rerun", "occluded/0"],
    "diff": ["diff", "occluded/0", "occluded/0"],
    "report": ["report", "occluded/0"],
    "doctor": ["doctor"],
    "detect": ["detect", "data/cat/0.png"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with eight pictures of two classes and a run to draw again."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "data" / ("cat" if number < 4 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_every_command_has_a_line() -> None:
    assert set(LINES) == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [n for n in LINES if n not in ("models", "report", "doctor", "detect")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="runs are forks")
@pytest.mark.usefixtures("place")
def test_what_is_written_is_whole_and_the_next_run_works(command: str) -> None:
    if command in ("render", "rerun", "diff"):
        assert run(["occlude", "data/cat/0.png", *MASK, "--out", "occluded", "--quiet"]) == 0
    if command == "merge":
        for share in ("0/2", "1/2"):
            line = ["saliency", "data/cat/0.png", "data/cat/1.png", "--out", "shares", "--quiet"]
            assert run([*line, "--shard", share]) == 0
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), *LINES[command], "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout


def test_an_interruption_that_python_drops_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropped:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def command(*_arguments: object, **_options: object) -> int:
        Dropped()
        for _ in range(500):
            time.sleep(0.01)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(main, "app", command)
    try:
        assert main.run([]) == main.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("made", [CnnvizError, ValueError, OSError, RuntimeError])
def test_an_interruption_that_a_library_makes_an_error_of_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: type[Exception]
) -> None:
    def command(*_arguments: object, **_options: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise made("the checkpoint is damaged") from None
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(main, "app", command)
    try:
        assert main.run([]) == main.INTERRUPTED
        assert "damaged" not in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def held(folder: str, ready: Path) -> str:
    """A program that has a run folder open until its stdin closes."""
    return (
        "import sys; from pathlib import Path; from cnnviz.core.output.run_folder import RunFolder;"
        f"f = RunFolder.open(Path({folder!r})); Path({str(ready)!r}).touch(); sys.stdin.read()"
    )


@pytest.mark.parametrize(
    ("command", "written"), [("occlude", "out/0"), ("max-patches", "out"), ("layers", "out")]
)
def test_two_processes_do_not_share_a_folder(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, written: str
) -> None:
    other = held(written, place / "ready")
    line = [*LINES[command], "--out", "out", "--quiet", "--overwrite"]
    with subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE) as process:
        while not (place / "ready").exists():
            time.sleep(0.02)
        assert run(line) == 1
        assert f"another run writes to {written}; wait for it" in capsys.readouterr().err
        process.kill()  # the lock goes with the process, however it ends
    assert run(line) == 0
    assert run(line) == 0  # one process may come again


def test_a_folder_that_may_not_be_written_to(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert run([*LINES["layers"], "--out", "out", "--quiet"]) == 1
    assert "cannot write to out: permission denied" in capsys.readouterr().err


def test_names_that_become_the_same_file_are_two(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "out")
    long = [f"{'x' * 90}{number}.png" for number in (1, 2)]
    for name in ("maps_a/1.png", "maps_a?1.png", "MAPS_a_1.png", *long):
        folder.write_bytes(name, name.encode())
    folder.write_bytes("maps_a/1.png", b"again")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(found) == 5
    assert set(found) == set(folder.files)
    assert found["maps_a_1.png"] == b"again"
    assert found["maps_a_1-2.png"] == b"maps_a?1.png"
    assert all(name.endswith(".png") for name in found)


HUNGRY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, most):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(self.first(x).relu().mean((2, 3)))


def hungry():
    return Net(2)


def modest():
    return Net(10**9)
"""


@pytest.mark.parametrize(
    "line",
    [
        ["occlude", "data/cat/0.png", *MASK],
        ["saliency", "data/cat/0.png"],
        ["max-patches", "data", "--layer", "first", "--crop", "effective"],
        ["ablate", "data", "--filters", "first:0", "--sweep", "first"],
        ["tsne", "data", "--method", "pca"],
        ["layers", "data"],
    ],
)
def test_out_of_memory_halves_the_batch_and_changes_nothing(place: Path, line: list[str]) -> None:
    (place / "net.py").write_text(HUNGRY)
    (place / "names.txt").write_text("cat\ndog\n")
    found = []
    for name in ("hungry", "modest"):
        options = ["--model", f"net.py:{name}", "--size", "32", "--labels", "names.txt", "--quiet"]
        assert run([*line, *options, "--batch-size", "8", "--out", name]) == 0
        summary = next((place / name).rglob("summary.json"))
        found.append(json.loads(summary.read_text().replace(f"net.py:{name}", "net.py"))["results"])
    halved, whole = flat(found[0]), flat(found[1])
    assert halved.keys() == whole.keys()
    for key, value in whole.items():
        if isinstance(value, float):
            assert halved[key] == pytest.approx(value, rel=0.01, abs=1e-3), key
        else:
            assert halved[key] == value, key


def flat(content: object, path: str = "") -> dict[str, object]:
    """What JSON holds, by its place; times and engines left out."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        parts = [flat(value, f"{path}.{key}") for key, value in pairs if key not in OWN]
        return {place: value for part in parts for place, value in part.items()}
    return {path: content}


OWN = ("seconds", "engine", "reason", "batch_size", "images_at_a_time")
