"""Workers that die, blocks that fail, and runs that stop: on a cluster that is pretended."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from matplotlib import rc_context
from PIL import Image

from cnnviz.cli import cluster
from cnnviz.cli.main import run
from cnnviz.core.data import datasets

IMAGES = 24
LINE = ["max-patches", "data", "--layer", "stem.conv", "--batch-size", "1", "--no-pictures"]
LINES = {
    "tsne": ["tsne", "few", "--method", "pca", "--no-pictures", "--batch-size", "2"],
    "layers": ["layers", "few", "--batch-size", "2"],
    "occlude": ["occlude", "few", "--mask", "16", "--stride", "16", "--pictures", "none"],
}
ON = ["--cluster", "ray", "--workers", "2", "--quiet", "--out", "all"]
ALONE = [*ON, "--workers", "1"]


class Died(Exception):  # noqa: N818 (as Ray calls it)
    """As Ray's error for an actor that is gone."""


class Pretended:
    """Enough of Ray: actors in this process, whose answers come one at a time.

    Attributes:
        dies: whether a worker dies in the place of a call: its method, its arguments, and how
            often it was called so.
        stuck: whether a call is answered only if no other one can be.
    """

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(
            RayActorError=Died, OutOfMemoryError=MemoryError, ObjectLostError=KeyError
        )
        self.dies: Callable[[str, tuple[Any, ...], int], bool] = lambda *_call: False
        self.stuck: Callable[[str, tuple[Any, ...], int], bool] = lambda *_call: False
        self.called: Counter[tuple[Any, ...]] = Counter()
        self.resources = {"CPU": 2.0, "memory": 1e12}

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        return lambda kind: SimpleNamespace(remote=lambda: _Actor(self, kind()))

    def kill(self, actor: "_Actor") -> None:
        actor.dead = True
        actor.worker._context.run(actor.worker._open.close)

    def wait(
        self, answers: Iterable[Any], num_returns: int, timeout: float
    ) -> tuple[list[Any], None]:
        first: dict[int, Any] = {}  # of each actor
        for answer in answers:
            first.setdefault(id(answer.actor), answer)
        ready = [a for a in first.values() if not self.stuck(a.name, a.given, a.number)]
        return [(ready or list(first.values()))[0]], None

    def get(self, answer: Any) -> Any:
        if not isinstance(answer, _Answer):
            return answer
        if answer.actor.dead or self.dies(answer.name, answer.given, answer.number):
            answer.actor.dead = True
            raise Died("The actor died unexpectedly before finishing this task")
        return getattr(answer.actor.worker, answer.name)(*answer.given)


class _Actor:
    def __init__(self, ray: Pretended, worker: Any) -> None:
        self.worker, self.dead = worker, False
        self.ready = SimpleNamespace(remote=lambda *a: _Answer(ray, self, "ready", a))
        self.block = SimpleNamespace(remote=lambda *a: _Answer(ray, self, "block", a))


class _Answer:
    def __init__(self, ray: Pretended, actor: _Actor, name: str, given: tuple[Any, ...]) -> None:
        self.actor, self.name, self.given = actor, name, given
        key = (name, *given) if name == "block" else (name,)
        ray.called[key] += 1
        self.number = ray.called[key]


@pytest.fixture(scope="module")
def root(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Pictures, of which four in a row are not pictures, and what one process makes of them."""
    return built_once("cluster-faults", _build)


def _build(root: Path) -> None:
    random = np.random.default_rng(0)
    (root / "data").mkdir()
    for number in range(IMAGES):
        path = root / "data" / f"{number:02d}.png"
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        if 8 <= number < 12:
            path.write_bytes(b"not a picture")
        elif number < 6:
            few = root / "few" / ("cat" if number < 3 else "dog") / path.name
            few.parent.mkdir(parents=True, exist_ok=True)
            few.write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert run([*LINE, "--quiet", "--out", "one"]) == 1


@pytest.fixture
def ray(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """The cluster, in a folder with the data; blocks have two images."""
    for entry in root.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    made = Pretended()
    monkeypatch.setattr(cluster, "required", lambda *_names: made)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(datasets, "MAX_WORKERS", datasets.MAX_WORKERS)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    monkeypatch.setattr(cluster, "block_size", lambda _images, _batch: 2)
    with rc_context():  # workers of one process leave their styles in any order
        yield made


def content(folder: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    varying = ("argv", "elapsed_seconds", "cluster")
    if summary["command"] == "tsne":
        del summary["results"]["seconds"]
    return {key: value for key, value in summary.items() if key not in varying}


def on(folder: str = "all") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())["cluster"]
    return found


@pytest.mark.slow
def test_blocks_of_bad_images_are_named_as_in_one_process(ray: Pretended) -> None:
    assert run([*LINE, *ON]) == 1
    assert content("all") == content("one")
    assert len(content("all")["errors"]) == 4
    plain = {"workers": 2, "blocks": 12, "started_twice": 0, "lost": [], "given_up": []}
    assert on() == plain
    assert [path.name for path in Path("all").iterdir()] == ["summary.json"]


def test_lost_workers_are_replaced_and_named(ray: Pretended) -> None:
    ray.dies = lambda name, given, number: given[0] in (4, 14) and number == 1
    assert run([*LINE, *ON]) == 1
    assert content("all") == content("one")
    assert all("its process ended" in text for text in on()["lost"])
    assert {"images 4 to 6", "images 14 to 16"} == {
        text.partition(" at ")[2].partition(":")[0] for text in on()["lost"]
    }


def files(folder: str) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "summary.json"}


GONE = {"start": 6, "stop": 8, "images": 2, "tries": 3, "error": "its process ended"}


def dies_at(*starts: int) -> Callable[[str, tuple[Any, ...], int], bool]:
    return lambda name, given, number: name == "block" and given[0] in starts


@pytest.mark.slow
def test_a_block_that_is_given_up_is_named_and_the_others_are_kept(
    ray: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.dies = dies_at(6)
    assert run([*LINE, *ON]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "not a picture" not in line]
    assert said[-1] == (
        "cnnviz: images 6 to 8 are missing: given up after 3 tries, as the worker died "
        "(its process ended); --resume computes them, with fewer --workers or more memory"
    )
    assert not any("06.png" in line for line in said)
    assert on()["given_up"] == [GONE]
    assert on()["blocks"] == 11
    failed = {Path(e["input"]).stem: e["message"] for e in content("all")["errors"]}
    assert sorted(failed) == [f"{place:02d}" for place in (6, 7, 8, 9, 10, 11)]
    lost = "is missing: its block was given up, as the worker died (its process ended)"
    assert failed["06"] == f"'data/06.png' {lost}"
    assert not list(Path("all/blocks/scan").glob(".*"))

    ray.dies, ray.called = lambda *_call: False, Counter()
    assert run([*LINE, *ALONE, "--resume"]) == 1
    assert content("all") == content("one")
    assert on()["blocks"] == 1
    assert on()["given_up"] == []
    assert not Path("all/blocks").exists()
    assert run([*LINE, *ON, "--resume"]) == 2
    assert "there is nothing to resume" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", list(LINES))
def test_an_incomplete_run_of_each_command_becomes_complete(
    command: str,
    ray: Pretended,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "TRIES", 1)
    line = LINES[command]
    assert run([*line, "--quiet", "--out", "single"]) == 0
    ray.dies = dies_at(2)
    assert run([*line, *ALONE]) == 1
    assert [(block["start"], block["stop"]) for block in on()["given_up"]] == [(2, 4)]
    named = [Path(error["input"]).name for error in content("all")["errors"]]
    assert named == ["02.png", "03.png"]
    if command == "occlude":
        _read_by_others(capsys)
    ray.dies = lambda *_call: False
    assert run([*line, *ALONE, "--resume"]) == 0
    assert files("all") == files("single")
    assert content("all") == content("single")
    assert on()["blocks"] == 1


def _read_by_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Readers of an incomplete run say what it lacks."""
    why = "given up after 1 tries, as the worker died (its process ended)"
    lacks = f"images 2 to 4 are missing: {why}"
    for reader, status in (
        (["report", "all", "--out", "page.html"], 0),
        (["diff", "single", "all", "--out", "changes", "--no-pictures"], 0),
        (["rerun", "all", "--out", "again"], 3),
    ):
        capsys.readouterr()
        assert run(reader) == status
        assert f"note: all is incomplete: {lacks}" in capsys.readouterr().err
    assert f"incomplete: {lacks}" in Path("page.html").read_text()
    found = json.loads(Path("changes/summary.json").read_text())
    assert f"all is incomplete: {lacks}" in [one["title"] for one in found["findings"]]
    assert len(found["results"]["left_out"]) == 2


@pytest.mark.slow
def test_passes_that_feed_each_other_are_not_of_different_images(
    ray: Pretended, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TRIES", 1)
    line = ["ablate", "few", "--sweep", "stem.conv", "--batch-size", "2"]
    line += ["--mode", "mean", "--cumulative"]
    assert run([*line, "--quiet", "--out", "single"]) == 0
    passes: list[str] = []
    go = cluster._Work.go
    monkeypatch.setattr(
        cluster._Work, "go", lambda work: passes.append(work._step.name) or go(work)
    )
    for fatal, reached in (("means", ["means"]), ("remove-0", ["means", "tally", "remove-0"])):
        ray.dies = lambda name, given, _, f=fatal: dies_at(2)(name, given, _) and f == passes[-1]
        passes.clear()
        assert run([*line, *ALONE, "--resume"]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "images 2 to 4 are missing: given up after 1 tries, as the worker died" in said
        assert "; what is done is kept: --resume" in said
        assert passes == reached
        assert not Path("all/summary.json").exists()
        assert not list(Path("all/blocks").rglob(".*"))
    ray.dies = lambda *_call: False
    assert run([*line, *ALONE, "--resume"]) == 0
    assert files("all") == files("single")
    assert content("all") == content("single")


@pytest.mark.slow
def test_a_run_whose_blocks_are_all_given_up_has_no_summary(
    ray: Pretended, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TRIES", 1)
    monkeypatch.setattr(cluster, "block_size", lambda _images, _batch: 4)
    ray.dies = dies_at(0, 4)
    assert run([*LINES["tsne"], *ALONE]) == 1
    said = capsys.readouterr().err
    assert "images 0 to 4 are missing: given up" in said
    assert ", and 1 more blocks; what is done is kept" in said
    assert not Path("all/summary.json").exists()


@pytest.mark.slow
def test_workers_that_die_at_once_end_the_run(
    ray: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.dies = lambda name, given, number: name == "ready"
    assert run([*LINE, *ON]) == 1
    assert "workers die before they are ready: its process ended" in capsys.readouterr().err


@pytest.mark.slow
def test_a_slow_last_block_is_started_twice(
    ray: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "LATE", 0.0)
    ray.stuck = lambda name, given, number: name == "block" and given[0] == 0 and number == 1
    assert run([*LINE, *ON]) == 1
    assert content("all") == content("one")
    assert on()["started_twice"] >= 1


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_blocks(
    ray: Pretended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(name: str, given: tuple[Any, ...], number: int) -> bool:
        if name == "block" and given[0] >= 12:
            raise KeyboardInterrupt
        return False

    ray.dies = stop
    assert run([*LINE, *ON]) == 130
    assert run([*LINE, *ON]) == 2
    assert "use --resume to go on, --overwrite" in capsys.readouterr().err
    ray.dies = lambda *_call: False
    assert run([*LINE, *ON, "--resume", "--top", "3"]) == 2
    assert "belongs to a run with other --top" in capsys.readouterr().err
    assert run([*LINE, *ON, "--resume"]) == 1
    assert content("all") == content("one")
    assert 5 <= on()["blocks"] <= 7


@pytest.mark.slow
def test_a_file_that_a_worker_does_not_have_is_named(
    ray: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.txt").write_text("\n".join("abcdefghij"))

    def gone(name: str, given: tuple[Any, ...], number: int) -> bool:
        Path("names.txt").unlink(missing_ok=True)
        return False

    ray.dies = gone
    assert run([*LINE, *ON, "--labels", "names.txt"]) in (1, 2)
    assert "names.txt" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cluster", "dask"], "--cluster 'dask': it takes ray, or ray:ADDRESS"),
        (["--cluster", "ray:"], "it takes ray, or ray:ADDRESS"),
        (["--workers", "2"], "--workers needs --cluster ray"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker needs --cluster ray"),
        (["--cluster", "ray", "--workers", "0"], "--workers 0 is out of range"),
        (["--cluster", "ray", "--shard", "0/2"], "--shard and --cluster"),
    ],
)
def test_options_of_a_cluster(
    more: list[str], said: str, ray: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*LINE, *more, "--out", "all"]) == 2
    assert said in capsys.readouterr().err
    assert not Path("all").exists()


def test_without_ray_the_remedy_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run([*LINE, "--cluster", "ray", "--out", str(tmp_path / "all")]) == 2
    assert "pip install '.[ray]'" in capsys.readouterr().err


def test_data_and_results_at_a_url(ray: Pretended) -> None:
    memory = fsspec.filesystem("memory")
    memory.put("data/", "/cluster/data/", recursive=True)
    at_url = [part.replace("data", "memory://cluster/data") for part in LINE]
    assert run([*at_url, "--quiet", "--out", "memory://cluster/one"]) == 1
    assert run([*at_url, *ON[:-1], "memory://cluster/all"]) == 1
    memory.get("/cluster/one/", "at-url-one/", recursive=True)
    memory.get("/cluster/all/", "at-url-all/", recursive=True)
    assert content("at-url-all") == content("at-url-one")
    assert on("at-url-all")["blocks"] == 12
    assert len(content("at-url-all")["errors"]) == 4
