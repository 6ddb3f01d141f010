"""Runs that end before their end: killed, interrupted, out of disk, their folder gone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import COMMANDS, run

MASK = ["--mask", "16", "--stride", "8"]
LINES = {
    "occlude": ["occlude", "data/cat/0.png", "data/cat/1.png", *MASK],
    "saliency": ["saliency", "data/cat/0.png", "data/cat/1.png"],
    "activations": ["activations", "data/cat/0.png", "--layer", "first"],
    "max-patches": ["max-patches", "data", "--layer", "first", "--batch-size", "2"],
    "ablate": ["ablate", "data", "--filters", "first:0", "--sweep", "first"],
    "tsne": ["tsne", "data", "--perplexity", "2"],
    "layers": ["layers"],
    "filters": ["filters", "--layer", "first"],
    "models": ["models"],
    "render": ["render", "occluded/0"],
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
@pytest.mark.parametrize("fault", ["kill", "interrupt", "starve", "remove"])
@pytest.mark.parametrize("command", [name for name in LINES if name != "models"])  # writes nothing
@pytest.mark.skipif(sys.platform != "linux", reason="runs are forks")
@pytest.mark.usefixtures("place")
def test_what_is_written_is_whole_and_the_next_run_works(fault: str, command: str) -> None:
    if command == "render":
        assert run(["occlude", "data/cat/0.png", *MASK, "--out", "occluded", "--quiet"]) == 0
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), fault, *LINES[command], "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "PROBLEM" not in done.stdout, done.stdout
