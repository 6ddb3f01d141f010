import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SHIP = Path(__file__).parent.parent.parent / "sample_images" / "ship.png"


@pytest.fixture
def heard_sigint():
    """A shell's background jobs ignore SIGINT, and so would all they start; a user's do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard_sigint")
def test_ctrl_c_ends_with_130_one_line_and_no_summary(tmp_path):
    command = [sys.executable, "-m", "cnnviz.cli", "occlude", str(SHIP), "--out", str(tmp_path)]
    # Every pixel with many windows: long enough to be interrupted in the middle.
    command += ["--stride", "1", "--border", "center", "--engine", "full"]
    command += [part for side in range(3, 32) for part in ("--mask", str(side))]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}
    ) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the note about the demo network
        first = process.stderr.readline()
        assert first.startswith("occluding:")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1].startswith("cnnviz: interrupted")
    assert "Traceback" not in rest
    assert not (tmp_path / "ship" / "summary.json").exists()
