"""Every command on a device whose tensors mix with no others: as on a GPU, where none is at hand.

What runs there are the processor's own kernels, so that results are those of the processor; what
is tested is that no tensor is made, or left, in the wrong place.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run

FEW = ["--filters", "random:8", "--no-pictures"]
NET = ["--weights", "none", "--size", "64"]
LINES = {
    "occlude": ["occlude", "data/cat/0.png", "--mask", "8", "--stride", "8"],
    "occlude-full": ["occlude", "data/cat/0.png", "--mask", "8", "--engine", "full", "--trust"],
    "occlude-bf16": ["occlude", "data/cat/0.png", "--mask", "16", "--precision", "bf16"],
    "occlude-resnet": ["occlude", "data/dog/1.png", "--model", "resnet18", *NET, "--verify"],
    "occlude-vit": ["occlude", "data/dog/1.png", "--model", "swin_t", *NET, "--mask", "32"],
    "max-patches": ["max-patches", "data", "--layer", "stem.conv", "--score", "norm"],
    "max-patches-all": ["max-patches", "data", "--model", "mobilenet_v2", *NET, *FEW],
    "ablate": ["ablate", "data", "--filters", "stem.conv:1", "--sweep", "stem.conv"],
    "ablate-mean": ["ablate", "data", "--sweep", "stem.conv", "--cumulative", "--mode", "mean"],
    "tsne": ["tsne", "data", "--perplexity", "2"],
    "saliency": ["saliency", "data/cat/0.png", "--method", "gradient"],
    "grad-cam": ["saliency", "data/cat/0.png", "--method", "grad-cam", "--compare", "occlusion"],
    "trust": ["trust", "data/cat/0.png"],
    "audit": ["audit", "data", "--mask", "16", "--stride", "16", "--top", "2"],
    "activations": ["activations", "data/cat/0.png", "--layer", "stem.conv"],
    "layers": ["layers", "data", "--gradients"],
    "filters": ["filters", "--layer", "all"],
}
EXACT = ("occlude", "occlude-full", "occlude-resnet", "max-patches", "ablate", "saliency", "trust")
BATCH = 4


def pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("away")
    pictures(folder / "data", 6)
    pictures(folder / "twice", 12)
    return folder


def out(name: str) -> list[str]:
    return ["--out", name]


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """What each line gave on that device: status or traceback, and what was brought back."""
    twice = [*LINES["max-patches"], "--batch-size", str(BATCH), "--no-pictures"]
    lines = {
        **LINES,
        "six": twice,
        "twelve": [part if part != "data" else "twice" for part in twice],
    }
    asked = [[*line, *out(name)] for name, line in lines.items()]
    script = Path(__file__).with_name("run_away.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(asked)],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "no such devices" in done.stderr:
        pytest.skip("this torch has no devices made in Python")
    said = [line.removeprefix("away ") for line in done.stdout.splitlines() if line[:5] == "away "]
    assert len(said) == len(lines), done.stderr[-2000:]
    return dict(zip(lines, map(json.loads, said), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_no_tensor_is_left_on_the_processor(found: dict[str, Any], name: str) -> None:
    status, back = found[name]
    assert status == 0, status
    assert back  # it did run there


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict):
        kept = (v for k, v in content.items() if k not in ("engine", "seconds", "verify"))
        return [n for value in kept for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [float(content)] if isinstance(content, int | float) else []


def results(folder: Path) -> list[float]:
    (summary,) = folder.rglob("summary.json")
    return numbers(json.loads(summary.read_text())["results"])


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_what_comes_out_is_what_the_processor_finds(
    found: dict[str, Any], place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found[name][0] == 0
    monkeypatch.chdir(place)
    assert run([*LINES[name], "--quiet", *out(f"here-{name}")]) == 0
    there, here = results(place / name), results(place / f"here-{name}")
    assert len(here) > 3
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_a_scan_brings_nothing_back_for_each_image(found: dict[str, Any]) -> None:
    # A flag for each image (is every filter finite?), and what there is at the end.
    six, twelve = (sum(found[name][1].values()) for name in ("six", "twelve"))
    assert found["twelve"][0] == 0
    assert twelve - six <= 2 * 12


def test_operations_on_two_devices_fail() -> None:
    code = (
        "import away, torch; away.register(); a = away.away(); d = a.__enter__()\n"
        "x = torch.ones(3, device=d); print((x + x).cpu().sum().item(), x.device)\n"
        "try: x + torch.ones(3)\n"
        "except RuntimeError as error: print(error)\n"
    )
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["6.0 away:0", "aten::add: tensors on two devices"]
