"""`--size` takes pairs wherever it stands, as `--mask` does."""

import json
from pathlib import Path

import pytest

from cnnviz.cli.main import run

SAMPLES = Path(__file__).parent.parent.parent / "sample_images"
TRUCK, LABELS = str(SAMPLES / "truck.png"), str(SAMPLES / "labels.csv")
COMMANDS = {
    "occlude": [TRUCK, "--mask", "8x6", "--stride", "8", "--layer", "features.block1.conv1"],
    "saliency": [TRUCK, "--method", "grad-cam"],
    "layers": [LABELS, "--gradients"],
    "filters": ["--no-gabor"],
    "activations": [TRUCK, "--layer", "features.block1.conv1", "--filters", "3"],
    "max-patches": [LABELS, "--layer", "features.block2.conv2", "--filters", "3", "--top", "2"],
    "ablate": [LABELS, "--filters", "stem.conv:3"],
    "tsne": [LABELS, "--perplexity", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pair_runs_in_every_command_that_loads_a_model(command, tmp_path):
    line = [command, *COMMANDS[command], "--size", "32x48", "--device", "cpu", "--quiet"]
    assert run([*line, "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("summary.json")
    assert json.loads(file.read_text("utf-8"))["model"]["input_size"] == [32, 48]


@pytest.mark.parametrize("text", ["0", "-3", "1x", "32x48x3", "1000000000000", "x", ""])
def test_another_form_of_size_is_one_line_that_says_what_is_accepted(text, tmp_path, capsys):
    assert run(["layers", f"--size={text}", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"invalid size '{text}'; --size takes a side in pixels (15) or HxW (15x30)" in line


def test_more_pixels_than_can_be_decoded_are_refused(tmp_path, capsys):
    assert run(["layers", "--size", "99999x99999", "--out", str(tmp_path)]) == 2
    assert "--size 99999x99999 is out of range; it takes a side" in capsys.readouterr().err
