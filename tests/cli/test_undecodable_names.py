"""File names that are not UTF-8: the run's work is not lost for a name."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run

COMMANDS = {
    "occlude": ["--mask", "16", "--stride", "16"],
    "saliency": [],
    "activations": ["--layer", "stem.conv"],
    "audit": ["--mask", "16", "--stride", "16"],
    "max-patches": ["--layer", "stem.conv"],
    "tsne": ["--perplexity", "2", "--method", "pca"],
    "layers": [],
}


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", [[], ["--json", "--report"]], ids=["files", "json"])
def test_a_broken_image_of_such_a_name_is_listed_and_the_rest_is_done(
    command: str, form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name in (b"a.png", b"b\xff.png", b"c.png", b"d.png"):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / os.fsdecode(name))
    (tmp_path / "data" / os.fsdecode(b"e\xfe.png")).write_bytes(b"no image")
    place = tmp_path / "out"
    line = [command, str(tmp_path / "data"), *COMMANDS[command], *form, "--out", str(place)]
    assert run([*line, "--junit", str(tmp_path / "j.xml")]) == 1
    content = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    ((error),) = content["errors"]
    assert error["input"].endswith("e\ufffd.png")
    assert "\udcfe" not in capsys.readouterr().err
    assert (tmp_path / "j.xml").read_bytes().decode()
