"""What docs/ci.md shows is run: the jobs' lines, the hook, the Makefile."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from cnnviz.cli.main import run

PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
NET = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )
"""


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as the page has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    torch.save(nn.Sequential(*layers).state_dict(), tmp_path / "best.pth")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    boxes = {f"{name}.png": {"boxes": [[0, 0, 32, 32]]} for name in "ab"}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def lines() -> list[str]:
    github, gitlab = (yaml.safe_load(block) for block in blocks("yaml"))
    steps = [step["run"] for step in github["jobs"]["look"]["steps"] if "run" in step]
    return [line for line in [*steps, *gitlab["look"]["script"]] if line.startswith("cnnviz ")]


def test_the_jobs_of_the_page_pass_and_fail_as_they_should() -> None:
    assert len(lines()) == 2
    for line in lines():
        assert run([*shlex.split(line)[1:], "--overwrite"]) == 0
        assert Path("look.xml").read_text().count("<testcase") == 2
        assert Path("look/summary.json").exists()
    boxes = {f"{name}.png": {"boxes": [[0, 0, 1, 1]]} for name in "ab"}
    Path("boxes.json").write_text(json.dumps(boxes))
    assert run([*shlex.split(lines()[0])[1:], "--overwrite"]) == 3
    assert Path("look.xml").read_text().count("<failure") == 2


@pytest.fixture
def environment() -> dict[str, str]:
    """One in which `cnnviz` is the program under test."""
    Path("bin").mkdir()
    program = Path("bin/cnnviz")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cnnviz.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git"), reason="there is no git here")
def test_the_hook_of_the_page_looks_when_the_weights_change(environment: dict[str, str]) -> None:
    (script,) = blocks("sh")
    Path("hook").write_text(script)
    for command in (["git", "init", "-q"], ["sh", "hook"]):
        subprocess.run(command, check=True, env=environment, capture_output=True)
    assert not Path("cnnviz-out").exists()
    subprocess.run(["git", "add", "best.pth"], check=True, env=environment)  # noqa: S607
    subprocess.run(["sh", "hook"], check=True, env=environment, capture_output=True)  # noqa: S607
    assert Path("cnnviz-out/occlude/summary.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_the_makefile_of_the_page_makes_what_has_changed(environment: dict[str, str]) -> None:
    Path("Makefile").write_text(blocks("make")[0])
    make = ["make", "-s"]
    subprocess.run(make, check=True, env=environment, capture_output=True)
    made = {path: path.stat().st_mtime_ns for path in Path("maps").glob("*/summary.json")}
    assert len(made) == 2
    os.utime("photos/a.png")
    subprocess.run(make, check=True, env=environment, capture_output=True)
    again = {path for path in made if path.stat().st_mtime_ns != made[path]}
    assert again == {Path("maps/a/summary.json")}
