"""Runs on a Ray cluster of three nodes: their files are those of one process, byte for byte."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rendering import rendered

from cnnviz.cli import cluster
from cnnviz.cli.cluster import Cluster
from cnnviz.cli.main import run
from cnnviz.core.output import blocks

pytestmark = [pytest.mark.slow, pytest.mark.pictures, pytest.mark.needs("ray")]
IMAGES = 24
ON = ["--cluster", "ray:auto", "--workers", "2", "--quiet"]
TWO, ONE = ["--batch-size", "2"], ["--batch-size", "1"]
OCCLUDED = ["--mask", "16", "--stride", "16"]
LINES = {
    "max-patches": ["max-patches", "data", "--layer", "stem.conv", *TWO],
    "tsne": ["tsne", "data", "--method", "pca", "--no-pictures", *TWO],
    "ablate": [
        *("ablate", "data", "--filters", "stem.conv:3", "--sweep", "stem.conv", *TWO),
        *("--mode", "mean", "--cumulative"),
    ],
    "layers": ["layers", "data", "--gradients", *TWO],
    "occlude": ["occlude", "data", *OCCLUDED, "--pictures", "none"],
    "saliency": ["saliency", "data", "--method", "gradient"],
    "activations": ["activations", "data", "--layer", "stem.conv"],
    "trust": ["trust", "small"],
    "audit": ["audit", "data", *OCCLUDED, "--top", "2", "--no-pictures"],
}
NETWORK = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 4, 3))
        self.head = nn.Linear(4, 10)
    def forward(self, x):
        if Path("slow").exists():
            time.sleep(0.4)
        if Path("full").exists() and (x.mean((1, 2, 3)) > 1.5).any():
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where there is no memory
        return self.head(self.stem(x).amax((2, 3)))

def make():
    return Net()
"""
"""A network that takes time, and whose process dies of the last images while `full` is there."""
IDLE: list[Any] = []
VARYING = ("argv", "elapsed_seconds", "cluster")


@pytest.fixture(scope="session")
def nodes() -> Iterator[Any]:
    """A cluster of three nodes, for all tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster as Nodes

    small = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = Nodes(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**small)
    ray.init(made.address, log_to_driver=False, configure_logging=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def kept(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of earlier runs go on with this one: starting a process takes seconds."""
    start = Cluster.actor
    monkeypatch.setattr(Cluster, "actor", lambda self: IDLE.pop() if IDLE else start(self))
    monkeypatch.setattr(Cluster, "kill", lambda _self, seat: IDLE.append(seat.actor))


@pytest.fixture
def fresh(nodes: Any) -> Any:
    """The cluster without workers of earlier runs."""
    import ray

    while IDLE:
        ray.kill(IDLE.pop())
    return nodes


@pytest.fixture(scope="module")
def root(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The data, and what one process makes of it with each command."""
    return built_once("cluster", _build)


@pytest.fixture(autouse=True)
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the data, and results of one process."""
    for entry in root.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)


def _build(root: Path) -> None:
    """Pictures of two classes, one of which is not a picture."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        path = root / "data" / ("cat" if number % 2 else "dog") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    Image.new("RGB", (32, 32), "white").save(root / "data" / "dog" / "16.png")
    (root / "data" / "cat" / "05.png").write_bytes(b"not a picture")
    shutil.copytree(root / "data" / "cat", root / "small", ignore=lambda _d, n: sorted(n)[4:])
    with pytest.MonkeyPatch.context() as patch, rendered():
        patch.chdir(root)
        for command, line in LINES.items():
            assert run([*line, "--quiet", "--out", f"one-{command}"]) == 1


def files(folder: str) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "summary.json"}


def summary(folder: str) -> dict[str, Any]:
    content = json.loads(Path(folder, "summary.json").read_text())
    if content["command"] == "tsne":
        for key in ("features_reused", "seconds"):
            del content["results"][key]
    return {key: value for key, value in content.items() if key not in VARYING}


@pytest.mark.parametrize("command", list(LINES))
def test_a_cluster_finds_what_one_process_finds(command: str, kept: None) -> None:
    assert run([*LINES[command], *ON, "--out", "all"]) == 1
    assert files("all") == files(f"one-{command}")
    assert summary("all") == summary(f"one-{command}")
    on = json.loads(Path("all/summary.json").read_text())["cluster"]
    assert on["workers"] == 2
    assert on["blocks"] > (3 if command == "trust" else 8)
    assert on["lost"] == []


def test_a_worker_without_memory_and_a_resumption_with_more_workers(
    fresh: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.py").write_text(NETWORK)
    Path("full").touch()
    line = [*LINES["max-patches"], "--model", "net.py:make", "--no-pictures"]
    assert run([*line, *ON, "--out", "all", "--workers", "1"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "images 20 to 22 are missing: given up after 3 tries, as the worker died" in said
    lacks = json.loads(Path("all/summary.json").read_text())
    assert [block["start"] for block in lacks["cluster"]["given_up"]] == [20]
    assert len(lacks["errors"]) == 3
    Path("full").unlink()
    assert run([*line, *ON, "--out", "all", "--resume"]) == 1
    assert run([*line, "--quiet", "--out", "one"]) == 1
    assert files("all") == files("one")
    assert summary("all") == summary("one")
    assert json.loads(Path("all/summary.json").read_text())["cluster"]["blocks"] == 1


def test_nodes_that_are_killed_change_nothing(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # the last test: nodes can be added in the main thread alone
    Path("net.py").write_text(NETWORK)
    line = [*LINES["max-patches"], "--model", "net.py:make", "--no-pictures"]
    assert run([*line, "--quiet", "--out", "one"]) == 1
    Path("slow").touch()
    folder = Path("all/blocks/scan")

    psutil = pytest.importorskip("psutil")
    killed: list[Any] = []
    begun: list[bool] = []
    hand_out = cluster._Work._hand_out

    def together(work: cluster._Work, seat: cluster._Seat) -> None:
        """Blocks go out when all three workers are ready, so each node that is killed has some."""
        if begun or all(each.starting is None for each in work._cluster.seats):
            begun.append(True)
            hand_out(work, seat)

    monkeypatch.setattr(cluster._Work, "_hand_out", together)

    def kill() -> None:
        for count in (2, 5):
            while len(list(folder.glob("[0-9]*-*"))) < count:
                if ended.wait(0.01):
                    return
            killed.append(fresh.list_all_nodes()[-1])
            raylet = psutil.Process(killed[-1].all_processes["raylet"][0].process.pid)
            for worker in raylet.children(recursive=True):  # they would go on for a while
                worker.kill()
            fresh.remove_node(killed[-1], allow_graceful=False)

    ended, killer = threading.Event(), threading.Thread(target=kill)
    killer.start()
    monkeypatch.setattr(blocks, "FAN", 99)
    try:
        assert run([*line, *ON, "--out", "all", "--workers", "3"]) == 1
    finally:
        ended.set()
        killer.join()
    assert files("all") == files("one")
    assert summary("all") == summary("one")
    assert len(killed) == 2
    on = json.loads(Path("all/summary.json").read_text())["cluster"]
    assert on["lost"] or on["started_twice"]  # which of them is first is a matter of time
