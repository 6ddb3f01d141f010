"""Every command on a pretend CUDA device (`pretend_cuda.py`), where no GPU is at hand.

What runs there are the CPU's kernels, so results are those of the CPU; tested is that no tensor is
made, or left, in the wrong place, and how often the host waits for the device.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import COMMANDS, run

FEW = ["--filters", "random:4", "--no-pictures"]
NET = ["--weights", "none", "--size", "64"]
LAST = ["--layer", "features.block3.conv2", *FEW]
LINES = {
    "occlude": ["occlude", "data/cat/0.png", "--mask", "8", "--stride", "8"],
    "occlude-full": ["occlude", "data/cat/0.png", "--mask", "8", "--engine", "full", "--trust"],
    "occlude-bf16": ["occlude", "data/cat/0.png", "--mask", "16", "--precision", "bf16"],
    "occlude-resnet": ["occlude", "data/dog/1.png", "--model", "resnet18", *NET, "--verify"],
    "occlude-vit": ["occlude", "data/dog/1.png", "--model", "swin_t", *NET, "--mask", "32"],
    "max-patches": ["max-patches", "data", "--layer", "stem.conv", "--score", "norm", *FEW],
    "max-patches-two": ["max-patches", "data", "--per-image", "2", *FEW],
    "ablate": ["ablate", "data", "--filters", "stem.conv:1", "--sweep", "stem.conv"],
    "ablate-mean": ["ablate", "data", "--sweep", "stem.conv", "--cumulative", "--mode", "mean"],
    "tsne": ["tsne", "data", "--perplexity", "2"],
    "saliency": ["saliency", "data/cat/0.png", "--method", "gradient"],
    "grad-cam": ["saliency", "data/cat/0.png", "--method", "grad-cam", "--compare", "occlusion"],
    "trust": ["trust", "data/cat/0.png"],
    "reasons": ["reasons", "data/cat/0.png", "--cell", "16", "--grid", "2"],
    "audit": ["audit", "data", "--mask", "16", "--stride", "16", "--top", "2"],
    "activations": ["activations", "data/cat/0.png", "--layer", "stem.conv"],
    "layers": ["layers", "data", "--gradients"],
    "filters": ["filters", "--layer", "all"],
}
HERE = {
    "render": ["render", "occlude/0", "--score", "loss"],
    "diff": ["diff", "audit", "audit"],
    "report": ["report", "occlude"],
    "rerun": ["rerun", "max-patches"],
    "models": ["models", "squeezenet"],
    "doctor": ["doctor", "--device", "cuda"],
    "merge": ["merge", "shares"],
}
"""Commands that read finished runs; on the device of the run, or on none."""
SHARES = [["saliency", "data", "--shard", f"{i}/2", "--out", "shares"] for i in (0, 1)]
CUDA = ["--device", "cuda"]
CATS = [f"data/cat/{number}.png" for number in range(5)]
BATCH = ["--batch-size", "4"]
PCA = ["--method", "pca", "--no-pictures", *BATCH]
INCREMENTAL = ["--mask", "8", "--stride", "4", "--engine", "incremental"]

GROWING: dict[str, tuple[list[str], list[str], int]] = {
    "max-patches, batch": (
        ["max-patches", "data", *LAST, *BATCH], ["max-patches", "twice", *LAST, *BATCH], 3,
    ),
    "max-patches, all layers, batch": (
        ["max-patches", "data", *FEW, *BATCH], ["max-patches", "twice", *FEW, *BATCH], 3,
    ),
    "ablate, batch": (
        ["ablate", "data", "--filters", "stem.conv:1", *BATCH],
        ["ablate", "twice", "--filters", "stem.conv:1", *BATCH], 3,
    ),
    "tsne, batch": (
        ["tsne", "data", *PCA], ["tsne", "twice", *PCA], 3,
    ),
    "occlude, incremental, next image": (
        ["occlude", *CATS[:3], *INCREMENTAL], ["occlude", *CATS[:4], *INCREMENTAL], 1,
    ),
    "occlude, full, batch": (
        ["occlude", "data/cat/0.png", "--mask", "8", "--stride", "8", "--engine", "full", *BATCH],
        ["occlude", "data/cat/0.png", "--mask", "8", "--stride", "4", "--engine", "full", *BATCH],
        12,
    ),
}  # fmt: skip
"""A command line, one with more work, and how many times more of it."""
BUDGET: dict[str, dict[str, float]] = {
    "max-patches, batch": {"filters/patches/scan.py Scan._add": 1},
    "max-patches, all layers, batch": {"filters/patches/scan.py Scan._add": 1},
    "ablate, batch": {},
    "tsne, batch": {
        "embeddings/features.py _extract.run": 1,
        "embeddings/quality.py trustworthiness": 1 / 3,
    },
    "occlude, incremental, next image": {
        "core/device.py beyond_rounding": 2,
        "core/models/load.py Model.outputs": 3,
        "gradients/experiment.py _influences": 10,
        "gradients/experiment.py _traced": 2,
        "gradients/experiment.py saliency": 2,
        "occlusion/engines/full.py difference_alone": 1,
        "occlusion/engines/network.py Scores.of": 1,
        "occlusion/experiment.py Occluder._logits": 2,
        "occlusion/experiment.py Occluder.run": 2,
    },
    "occlude, full, batch": {},
}
"""How often the host waits for the device each time, by function. Numbers may only fall."""
FAULTS = {
    "occlusion/engines/full.py": ("occlude-full", "boxes_P4", ".to(network.device)"),
    "occlusion/experiment.py": ("occlude", "head.logits(scores", ".cpu()"),
    "filters/patches/state.py": ("max-patches", ": tensor", ".cpu()"),
    "filters/ablation/tally.py": ("ablate", "dtype=torch.bool", ", device=self._device"),
    "embeddings/neighbors.py": ("tsne", "dtype=torch.float64", ", device=tiles.device"),
    "embeddings/features.py": ("tsne", "[features, logits], 1)", ".cpu()"),
    "gradients/experiment.py": ("saliency", "raw.float()", ".cpu()"),
    "gradients/experiment.py ": ("saliency", "return logits_K.detach()", ".cpu()"),
    "core/data/replaced_pixels.py": ("trust", "kept_NHW", ".to(original_CHW.device)"),
    "core/data/replaced_pixels.py ": ("trust", "logits_NK", ".cpu()"),
    "audit/hosts.py": ("audit", "self._model.logits(normalised)", ".cpu()"),
    "audit/study.py": ("audit", ".float().detach()", ".cpu()"),
    "core/models/variants.py": ("occlude", "generator=generator)", ".to(device, dtype)"),
    "core/device.py": ("max-patches", "tensor.pin_memory()", ".to(device, non_blocking=True)"),
}
"""Two faults in each room: a file, a command that meets them, and what is left out after what.

`trust/` copies nothing itself; its pixels are replaced in `core/data/`.
"""


def pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def place(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with pictures, and the runs of every command on the device."""

    def build(folder: Path) -> None:
        pictures(folder / "data", 6)
        pictures(folder / "twice", 12)

    return built_once("cuda", build)


def pretended(place: Path, lines: list[tuple[list[str], Any]]) -> list[Any]:
    """What each line gave on the device: status or traceback, and the events there."""
    script = Path(__file__).with_name("pretend_cuda.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(lines)],
        cwd=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "no such devices" in done.stderr:
        pytest.skip("this torch has no devices made in Python")
    ran = [json.loads(line[4:]) for line in done.stdout.splitlines() if line[:4] == "ran "]
    assert len(ran) == len(lines), done.stderr[-2000:]
    return ran


@pytest.fixture(scope="module")
def there(place: Path, built_once: Callable[[str, Callable[[Path], None]], Path]) -> dict[str, Any]:
    """Every command, on the device: its status or traceback, and the events there."""

    def build(folder: Path) -> None:
        (folder / "ran.json").write_text(json.dumps(_there(place)))

    return json.loads((built_once("cuda-runs", build) / "ran.json").read_text())


def _there(place: Path) -> dict[str, Any]:
    lines = {name: [*line, *CUDA, "--out", name] for name, line in LINES.items()}
    lines |= {f"share {i}": [*line, *CUDA] for i, line in enumerate(SHARES)}
    folderless = ("models", "doctor")
    pages = {"report": "page.html"}
    lines |= {
        name: line if name in folderless else [*line, "--out", pages.get(name, f"of-{name}")]
        for name, line in HERE.items()
    }
    return dict(
        zip(lines, pretended(place, [(line, None) for line in lines.values()]), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LINES, *HERE])
def test_no_tensor_is_left_on_the_cpu(there: dict[str, Any], name: str) -> None:
    status, events = there[name]
    assert status == 0, status
    assert name in HERE or any(kind == "kernel" for (kind, *_), _ in events)  # it did run there


def test_every_command_is_run() -> None:
    # `detect` was not tried: torchvision's detectors have kernels of their own.
    assert {line[0] for line in [*LINES.values(), *HERE.values()]} == set(COMMANDS) - {"detect"}


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict):
        kept = (
            v
            for k, v in content.items()
            if k not in ("engine", "seconds", "other_seconds", "verify")
        )
        return [n for value in kept for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [float(content)] if isinstance(content, int | float) else []


def results(folder: Path) -> list[float]:
    (summary,) = folder.rglob("summary.json")
    return numbers(json.loads(summary.read_text(encoding="utf-8"))["results"])


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_numbers_are_those_of_the_cpu(
    there: dict[str, Any], place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert there[name][0] == 0
    monkeypatch.chdir(place)
    assert run([*LINES[name], "--device", "cpu", "--quiet", "--out", f"here-{name}"]) == 0
    cuda, cpu = results(place / name), results(place / f"here-{name}")
    assert len(cpu) > 3
    assert cuda == pytest.approx(cpu, rel=1e-3, abs=1e-4)


def waits(events: list[Any]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for (kind, file, _line, function), n in events:
        counted[f"{file} {function}"] += n * (kind == "wait")
    return counted


@pytest.mark.slow
def test_the_host_waits_no_more_often_than_budgeted(place: Path) -> None:
    lines = [
        ([*line, *CUDA, "--out", f"{name}-{i}"], None)
        for name, (small, large, _) in GROWING.items()
        for i, line in enumerate((small, large))
    ]
    ran = pretended(place, lines)
    assert [status for status, _ in ran] == [0] * len(ran)
    measured = {}
    for (name, (*_, more)), small, large in zip(GROWING.items(), ran[::2], ran[1::2], strict=True):
        added = waits(large[1])
        added.subtract(waits(small[1]))
        measured[name] = {place: n / more for place, n in sorted(added.items()) if n}
    assert measured == BUDGET, json.dumps(measured, indent=1)


REPLAY = "occlusion/engines/incremental/cuda_graph.py"
STALE = [REPLAY, "kept.copy_(given)", "pass"]
WINDOWS = "occlusion/engines/incremental/windows.py"
TABLE = "send(torch.from_numpy(make()), device)"
UNKEPT = [WINDOWS, f"return self.once(key, lambda: {TABLE})", f"return {TABLE}"]


@pytest.mark.slow
def test_launches_are_recorded_once_and_replayed(place: Path) -> None:
    # Of four images the third and fourth are replayed, and the second, to compare.
    few = ["--mask", "16", "--stride", "16", "--engine", "incremental", *CUDA]
    line = ["occlude", *CATS[:4], *few]
    dense = ["occlude", *CATS[:3], "--model", "lraspp_mobilenet_v3_large", *NET, *few]
    lines: dict[str, tuple[list[str], Any]] = {
        "graphs": (line, None),
        "no-graphs": ([*line, "--no-cuda-graphs"], None),
        "graphs-layer": ([*line, "--layer", "stem.conv"], None),
        # What is read of it is frozen image by image: a graph would read the second's for ever.
        "graphs-dense": (dense, None),
        "graphs-stale": (line, STALE),
        "graphs-unkept": (line, UNKEPT),
    }
    made = [([*words, "--out", name], fault) for name, (words, fault) in lines.items()]
    done = [*pretended(place, made[:4]), *pretended(place, made[4:])]
    ran = dict(zip(lines, done, strict=True))
    assert [status for status, _ in ran.values()] == [0] * len(ran)

    def count(name: str, what: str) -> int:
        return sum(n for (kind, file, *_), n in ran[name][1] if kind == what and file == REPLAY)

    def engines(name: str) -> set[str]:
        return set(re.findall(r'"engine": "(\w+)"', (place / name / "summary.json").read_text()))

    assert [count(name, "graph") for name in lines] == [3, 0, 3, 0, 2, 0]
    assert results(place / "graphs") == results(place / "no-graphs")
    right = ("graphs", "graphs-layer", "graphs-dense", "graphs-unkept")
    assert all(engines(name) == {"incremental"} for name in right)
    assert "full" in engines("graphs-stale")  # a graph that is wrong is found out


@pytest.mark.slow
def test_a_copy_that_is_left_out_is_caught_with_its_line(place: Path) -> None:
    lines = [
        ([*LINES[line], *CUDA, "--out", f"fault-{i}"], [file.strip(), kept + left_out, kept])
        for i, (file, (line, kept, left_out)) in enumerate(FAULTS.items())
    ]
    caught = re.compile(r"(same device|to numpy|must be on|device type).*\(.*\w/\w+\.py:\d+\)")
    ran = zip(FAULTS, pretended(place, lines), strict=True)
    missed = {file: status for file, (status, _) in ran if not caught.search(str(status))}
    assert not missed, json.dumps(missed, indent=1)


def test_operations_on_two_devices_fail() -> None:
    code = (
        "import pretend_cuda as p, torch; p.register(); c = p.pretend(); d = c.__enter__()\n"
        "x = torch.ones(3, device='cuda'); print((x + x).cpu().sum().item(), x.device)\n"
        "for fault in ('x + torch.ones(3)', 'x.numpy()', 'torch.ones(3)[x.long()]'):\n"
        "    try: eval(fault)\n"
        "    except (RuntimeError, TypeError) as error: print('cuda:0' in str(error))\n"
        "y = torch.ones(4).pin_memory()[1:].to(d, non_blocking=True) * 2; y[y > 1] = 0\n"
        "print(sum(n for e, n in p.EVENTS.items() if e.kind == 'wait')); y[y > 1]; bool(y.any())\n"
        "print(sum(n for e, n in p.EVENTS.items() if e.kind == 'wait'))\n"
    )
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["6.0", "cuda:0", "True", "True", "True", "1", "3"]
