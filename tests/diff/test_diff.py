"""`cnnviz diff` on finished runs of every command that it takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run

NETWORK = '''
import torch
from torch import nn

class Network(nn.Module):
    """Says which channel is brightest; the second one looks at the right half alone."""
    def __init__(self, half, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight *= 0.02
            for k in range(3):
                self.conv.weight[k, k, 1, 1] += 1
        self.half = half
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 3)
        with torch.no_grad():
            self.head.weight.zero_(); self.head.bias.zero_()
            for k in range(3):
                self.head.weight[k, k] = 30
    def forward(self, x):
        x = self.conv(x).relu()
        if self.half:
            x = x[..., x.shape[-1] // 2:]
        return self.head(self.pool(x).flatten(1))

def first(): return Network(False, 0)
def second(): return Network(True, 0)
def third():
    net = Network(False, 1)
    with torch.no_grad():
        net.conv.weight[4] = 0
    return net
'''
NAMES = ["reddish", "greenish", "bluish"]
MODEL = ["--labels", "names.txt", "--size", "16", "--mean", "0", "--std", "1", "--quiet"]
MASK = ["--mask", "5", "--stride", "4"]
LINES = {
    "occlude": ["occlude", "data", *MASK, "--pictures", "none"],
    "audit": ["audit", "data", *MASK, "--no-pictures"],
    "tsne": ["tsne", "data", "--perplexity", "3", "--no-pictures"],
    "filters": ["filters", "--layer", "conv", "--no-gabor"],
    "max-patches": ["max-patches", "data", "--layer", "conv", "--no-pictures", "--top", "4"],
    "ablate": ["ablate", "data", "--sweep", "conv"],
}


@pytest.fixture(scope="module")
def root(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Pictures of three classes, and the runs of three networks on them."""
    return built_once("diff", _run_all)


def _run_all(root: Path) -> None:
    (root / "net.py").write_text(NETWORK)
    (root / "names.txt").write_text("\n".join(NAMES))
    draw = np.random.default_rng(0)
    for kind, name in enumerate(NAMES):
        for number in range(8):
            pixels = draw.uniform(0.3, 0.5, (16, 16, 3))
            pixels[:, number % 2 * 8 :][:, :8, kind] += 0.3
            path = root / "data" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, line in LINES.items():
            for network in ("first", "second", "third"):
                own = ["--model", f"net.py:{network}", "--out", f"{network}-{name}"]
                assert run([*line, *MODEL, *own]) == 0


@pytest.fixture
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(root, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def compared(command: str, other: str, *more: str, out: str = "out") -> dict:
    line = ["diff", f"first-{command}", f"{other}-{command}", "--out", out, "--quiet", *more]
    assert run(line) == 0
    return json.loads(Path(out, "summary.json").read_text())["results"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", LINES)
def test_a_run_is_like_itself(command: str) -> None:
    results = compared(command, "first", "--no-pictures", "--min-agreement", "1")
    assert results["agreement"]["mean"] == 1
    assert results["same_weights"]
    assert results["changed"] == []
    if results["predictions"]:
        assert results["predictions"]["flips"] == 0


@pytest.mark.pictures
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", LINES)
def test_every_command_is_compared_and_drawn(command: str) -> None:
    results = compared(command, "third", "--top", "3")
    assert results["of"] == command
    assert not results["same_weights"]
    files = {path.name for path in Path("out").iterdir()}
    of_images = {"images.csv", "classes.png"}
    of_filters = {"filters.csv", "layers.png"}
    wanted = {
        "occlude": {*of_images, "worst.png"},
        "audit": {*of_images, "worst.png"},
        "tsne": {*of_images, "worst.png"},
        "filters": {*of_filters, "worst.png"},
        "max-patches": {*of_filters, "worst.png"},
        "ablate": {*of_images, *of_filters},
    }[command]
    assert {name for name in files if not name.endswith(".parquet")} == {*wanted, "summary.json"}
    for name in wanted:
        if name.endswith(".png"):
            with Image.open(Path("out", name)) as picture:
                assert min(picture.size) > 150
    if "filters.csv" in wanted:
        (layer,) = results["layers"]
        assert layer["died"] == ([4] if command != "ablate" else [])
        assert results["worst_filters"][0]["filter"] == 4 or command == "ablate"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("command", ["occlude", "audit"])
def test_a_network_that_looks_at_one_half_is_told_from_one_that_looks_at_all(command: str) -> None:
    results = compared(command, "second", "--no-pictures")
    assert results["predictions"]["labelled"] == (24 if command == "audit" else 0)
    left = [e for e in results["worst_images"] if int(Path(e["image"]).stem) % 2 == 0]
    assert left  # pictures whose colour is where the second one does not look
    assert results["agreement"]["mean"] < 0.9
    signs = results["classes"][0]["signs"]
    assert signs["evidence moved"]["value"] > 0.2


@pytest.mark.usefixtures("place")
def test_checks_end_with_status_3_and_are_in_junit() -> None:
    line = ["diff", "first-audit", "second-audit", "--quiet", "--no-pictures", "--junit", "j.xml"]
    checks = ["--max-flips", "0", "--min-agreement", "0.99"]
    assert run([*line, *checks, "--out", "out"]) == 3
    report = Path("j.xml").read_text()
    assert 'name="flips"' in report
    assert 'name="agreement"' in report
    assert json.loads(Path("out/summary.json").read_text())["results"]["predictions"]["flips"] > 0
    assert run([*line, "--max-flips", "1", "--min-agreement", "-1", "--out", "again"]) == 0


@pytest.mark.usefixtures("place")
def test_values_of_a_regression_are_compared_too() -> None:
    for network in ("first", "second"):
        line = ["occlude", "data/reddish", *MASK, "--head", "none", "--target", "1", "--quiet"]
        line += ["--size", "16", "--mean", "0", "--std", "1", "--pictures", "none"]
        assert run([*line, "--model", f"net.py:{network}", "--out", f"{network}-value"]) == 0
    results = compared("value", "second")
    assert results["predictions"]["flips"] == 0
    assert results["agreement"]["mean"] < 0.99
    assert Path("out/worst.png").exists()


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    assert run(["diff", *line, "--quiet", "--out", "refused"]) in (1, 2)
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1
    assert not Path("refused").exists()
    return told


def test_refusals_say_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "two runs; 1 given" in refused(capsys, "first-audit")
    assert "no finished run in data" in refused(capsys, "data", "first-audit")
    assert "command (audit and occlude)" in refused(capsys, "first-audit", "second-occlude")
    told = refused(capsys, "first-filters", "second-filters", "--max-flips", "0.1")
    assert "needs runs with predictions" in told
    other = [*LINES["occlude"], *MODEL, "--model", "net.py:second", "--overwrite"]
    other[other.index("--mask") + 1] = "6"
    assert run([*other, "--out", "second-occlude"]) == 0
    assert "mask" in refused(capsys, "first-occlude", "second-occlude")
    shape = [*LINES["audit"], *MODEL, "--model", "net.py:second", "--fill", "black", "--overwrite"]
    assert run([*shape, "--out", "second-audit"]) == 0
    assert "fill (mean and black)" in refused(capsys, "first-audit", "second-audit")
    Image.new("RGB", (16, 16)).save(place / "data" / "bluish" / "0.png")
    again = [*LINES["audit"], *MODEL, "--model", "net.py:second", "--overwrite"]
    assert run([*again, "--out", "second-audit"]) == 0
    assert "received other pixels of" in refused(capsys, "first-audit", "second-audit")
    shared = [*LINES["audit"], *MODEL, "--model", "net.py:first", "--shard", "0/2"]
    assert run([*shared, "--out", "shares"]) == 0
    share = "shares/shard-0-of-2"
    assert "cnnviz merge joins" in refused(capsys, share, "first-audit")
    models = ["layers", "--model", "net.py:first", *MODEL, "--out", "inventory"]
    assert run(models) == 0
    assert "is a run of layers; diff compares runs of" in refused(
        capsys, "inventory", "first-audit"
    )


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("occlude", "0/scores.npz"),
        ("audit", "images.jsonl"),
        ("audit", "images.csv"),
        ("tsne", "features.npz"),
        ("filters", "kernels.npz"),
        ("ablate", "predictions.npz"),
        ("ablate", "sweep.csv"),
        ("max-patches", "summary.json"),
    ],
)
@pytest.mark.parametrize("how", ["cut off", "gone"])
def test_damaged_runs_are_one_line(
    command: str, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(f"second-{command}", name)
    if how == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    refused(capsys, f"first-{command}", f"second-{command}")


@pytest.mark.usefixtures("place")
def test_a_run_is_never_overwritten_by_its_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("first-audit", "."):
        line = ["diff", "first-audit", "second-audit", "--out", out, "--overwrite", "--quiet"]
        assert run(line) == 2
        assert "holds first-audit itself" in capsys.readouterr().err
    assert Path("first-audit/summary.json").exists()


def test_pictures_that_are_gone_are_left_blank(place: Path) -> None:
    shutil.rmtree(place / "data")
    for command in ("audit", "tsne", "max-patches", "occlude"):
        compared(command, "third", out=f"out-{command}")
        assert Path(f"out-{command}", "worst.png").exists()


@pytest.mark.usefixtures("place")
def test_what_a_summary_lists_outside_its_folder_is_not_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path("second-occlude/summary.json")
    content = json.loads(path.read_text())
    content["results"][0]["folder"] = "../first-occlude/0"
    path.write_text(json.dumps(content))
    assert "outside its folder" in refused(capsys, "first-occlude", "second-occlude")
