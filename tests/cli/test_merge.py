"""Shares of a data set: what they find together is what one run would have found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from parts import slow_but
from PIL import Image

from cnnviz.cli.main import parse, run
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.per_image import ImageRun
from cnnviz.cli.repeat import request, requested
from cnnviz.core.data.shards import Shard, of_environment, shard
from cnnviz.core.errors import UsageError
from cnnviz.core.output.summary import FinishedRun

NAMES = ["--labels", "names.txt"]
ONE = ["--batch-size", "1"]  # on some processors the last digits hang on how many go together
LINES = {
    "occlude": ["occlude", "data", "--mask", "16", "--stride", "16", "--pictures", "none"],
    "saliency": ["saliency", "data"],
    "activations": ["activations", "data", "--layer", "stem.conv"],
    "audit": ["audit", "listed.csv", "--mask", "16", "--stride", "16", "--top", "2", *NAMES],
    "max-patches": ["max-patches", "data", "--layer", "stem.conv", "--batch-size", "2"],
    "tsne": ["tsne", "data", "--method", "pca", "--batch-size", "1"],
    "ablate": ["ablate", "listed.csv", "--filters", "stem.conv:3", "--sweep", "stem.conv", *ONE],
}
VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "LOCAL_RANK")


@pytest.fixture(scope="module")
def root(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The data, and two shares of each command of `TWICE`."""
    return built_once("merge", _build)


@pytest.fixture(autouse=True)
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data and the shares."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


TWICE = ("saliency", "max-patches")


def _build(tmp_path: Path) -> None:
    """Nine pictures of two classes, two of one name, and a file that is no picture."""
    random = np.random.default_rng(0)
    names = ["a/0", "a/1", "a/2", "a/3", "a/x", "b/4", "b/5", "b/6", "b/x"]
    for name in names:
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (tmp_path / "data" / "a" / "2b.png").write_bytes(b"no picture")
    rows = [f"data/{name}.png,{'cat' if name[0] == 'a' else 'dog'}" for name in [*names, "a/2b"]]
    (tmp_path / "listed.csv").write_text("\n".join(["path,label", *sorted(rows)]) + "\n")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    (tmp_path / "names.txt").write_text("\n".join([*names, "truck"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for command in TWICE:
            shares(command, 2)
            Path("parts").rename(f"parts-{command}")


def shares(command: str, count: int, *more: str) -> None:
    """Makes the shares of a command in `parts`, or takes those that were made before."""
    if Path(f"parts-{command}").exists() and count == 2 and not more:
        Path(f"parts-{command}").rename("parts")
        return
    for number in range(count):
        line = [*LINES[command], "--out", "parts", "--quiet", "--shard", f"{number}/{count}"]
        assert run([*line, *more]) in (0, 1)


def files(folder: str) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "summary.json"}


def summary(folder: str) -> dict:
    content = json.loads(Path(folder, "summary.json").read_text())
    if content["command"] == "tsne" and content["results"]:
        for key in ("features_reused", "seconds"):
            del content["results"][key]
    return {k: v for k, v in content.items() if k not in ("argv", "elapsed_seconds")}


COUNTS = [
    (command, count)
    for command in LINES
    for count in ((2,) if command in ("saliency", "activations") else (2, 4))
]
ALWAYS = [(command, 2) for command in LINES if command != "activations"]


@pytest.mark.parametrize(("command", "count"), slow_but(COUNTS, *ALWAYS))
def test_what_shares_find_is_what_one_run_finds(command: str, count: int) -> None:
    status = run([*LINES[command], "--out", "one", "--quiet"])
    shares(command, count)
    assert run(["merge", "parts", "--out", "all", "--quiet"]) == status
    assert files("all") == files("one")
    assert summary("all") == summary("one")
    assert len(summary("one")["errors"]) == 1
    assert "shard" not in summary("all")
    assert summary("parts/shard-1-of-2" if count == 2 else "parts/shard-1-of-4")["shard"]


@pytest.mark.parametrize("command", ["saliency", "max-patches"])
def test_a_share_that_is_missing_or_twice_there_is_named(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shares(command, 3)
    Path("parts/shard-1-of-3").rename("elsewhere")
    capsys.readouterr()
    assert run(["merge", "parts", "--out", "all"]) == 2
    assert "missing: --shard 1/3" in capsys.readouterr().err
    assert run(["merge", "parts", "elsewhere", "parts/shard-0-of-3", "--out", "all"]) == 2
    assert "twice" in capsys.readouterr().err
    assert not Path("all").exists()
    assert run(["merge", "elsewhere", "parts", "--out", "all", "--quiet"]) == 1


@pytest.mark.parametrize("more", [["--mode", "mean"], ["--cumulative"]])
def test_what_needs_all_images_first_is_not_shared_out(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*LINES["ablate"], *more, "--out", "parts", "--shard", "0/2"]) == 2
    assert f"{' '.join(more)} cannot run in shards" in capsys.readouterr().err
    assert not Path("parts").exists()


def _other_options() -> None:
    again("--method", "gradient-x-input")


def _other_weights() -> None:
    torch.manual_seed(1)
    again("--model", "squeezenet1_1", "--weights", "none", "--size", "32")


def _other_data() -> None:
    Path("data/b/new.png").write_bytes(Path("data/b/4.png").read_bytes())
    again()


def _other_precision() -> None:
    again("--precision", "bf16")


def again(*more: str) -> None:
    line = ["saliency", "data", "--out", "parts", "--quiet", "--shard", "1/2", "--overwrite"]
    assert run([*line, *more]) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_other_options, "options"),
        (_other_weights, "network"),
        (_other_data, "data or question"),
        (_other_precision, "precision"),
    ],
)
def test_shares_of_another_run_are_refused(
    change: Callable[[], None], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shares("saliency", 2)
    change()
    capsys.readouterr()
    assert run(["merge", "parts", "--out", "all"]) == 2
    assert named in capsys.readouterr().err
    assert not Path("all").exists()


def test_scans_of_other_data_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shares("max-patches", 2)
    Path("data/b/new.png").write_bytes(Path("data/b/4.png").read_bytes())
    line = [*LINES["max-patches"], "--out", "parts", "--quiet", "--shard", "1/2", "--overwrite"]
    assert run(line) == 0
    capsys.readouterr()
    assert run(["merge", "parts", "--out", "all"]) == 2
    assert "belongs to a run with other data" in capsys.readouterr().err


@pytest.mark.parametrize("spoilt", ["{", "[]", '{"schema": "cnnviz.saliency/1"}', None])
def test_what_is_no_share_is_refused(
    spoilt: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    shares("saliency", 2)
    path = Path("parts/shard-0-of-2/summary.json")
    path.write_text(spoilt) if spoilt else path.unlink()
    capsys.readouterr()
    assert run(["merge", "parts", "--out", "all"]) == 2
    assert "holds no finished run with --shard" in capsys.readouterr().err
    assert run(["merge", "nowhere", "--out", "all"]) == 2


def test_a_share_reaches_no_files_but_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    shares("saliency", 2)
    path = Path("parts/shard-0-of-2/images.jsonl")
    first, *rest = path.read_text().splitlines()
    entry = json.loads(first)
    entry["files"].append("../../data/a/0.png")
    path.write_text("\n".join([json.dumps(entry), *rest]) + "\n")
    assert run(["merge", "parts", "--out", "all"]) == 1
    assert "lists a file outside its folder" in capsys.readouterr().err


def test_a_damaged_state_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    shares("max-patches", 2)
    path = Path("parts/shard-1-of-2/scan-state.npz")
    path.write_bytes(path.read_bytes()[:-300])
    assert run(["merge", "parts", "--out", "all"]) == 1
    assert "is damaged; start again" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "0/0", "1/", "0/2/3"])
def test_a_share_is_two_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*LINES["saliency"], "--out", "o", f"--shard={text}"]) == 2
    assert "invalid share" in capsys.readouterr().err
    with pytest.raises(UsageError, match="invalid share"):
        shard(text, "--shard")


def test_more_shares_than_images_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("saliency", "max-patches"):
        assert run([*LINES[command], "--out", "o", "--shard", "0/40"]) == 2
        assert "fewer images than shares" in capsys.readouterr().err
        assert not Path("o").exists()


@pytest.mark.parametrize("length", [0, 1, 7, 100, 1000, 10_001])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_are_everything_once(length: int, count: int) -> None:
    parts = [Shard(number, count).part(length) for number in range(count)]
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= max(1, length / count / 8)


@pytest.mark.parametrize("count", [2, 3, 64])
def test_shares_of_large_sets_cut_no_batch(count: int) -> None:
    parts = [Shard(number, count).part(1_000_003) for number in range(count)]
    assert [i for part in parts for i in (part.start, part.stop)][:-1] == [
        i // 256 * 256 for part in parts for i in (part.start, part.stop)
    ][:-1]


def test_launchers_tell_the_share() -> None:
    assert of_environment({}) is None
    assert of_environment({"RANK": "3"}) is None
    assert of_environment({"RANK": "3", "WORLD_SIZE": "8"}) == (Shard(3, 8), "RANK")
    assert of_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert of_environment(array | {"SLURM_ARRAY_TASK_MIN": "2"}) == (
        Shard(3, 4), "SLURM_ARRAY_TASK_ID",
    )  # fmt: skip
    for bad in (array, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}):
        with pytest.raises(UsageError, match="or 0/1 for everything"):
            of_environment(bad)


def test_everything_can_be_asked_for_whatever_a_launcher_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run([*LINES["saliency"], "--out", "parts", "--quiet"]) in (0, 1)
    assert "share 1/3 of the images, according to RANK" in capsys.readouterr().err
    assert Path("parts/shard-1-of-3/summary.json").exists()
    assert run([*LINES["saliency"], "--out", "whole", "--quiet", "--shard", "0/1"]) == 1
    assert len(summary("whole")["results"]) == 9


def test_one_image_is_not_shared_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assert run(["saliency", "data/a/0.png", "--out", "o", "--quiet"]) == 0
    assert Path("o/0/summary.json").exists()


def test_images_that_came_later_are_no_part_of_the_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares("saliency", 2)
    Path("data/b/new.png").write_bytes(Path("data/b/4.png").read_bytes())
    capsys.readouterr()
    assert run(["merge", "parts", "--out", "all"]) == 2
    assert "belongs to a run with other images" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torchrun's processes are forks")
def test_torchrun_makes_shares() -> None:
    line = ["-m", "cnnviz.cli", *LINES["max-patches"], "--out", "parts", "--quiet"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *line],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    for number in (0, 1):
        folder = Path(f"parts/shard-{number}-of-2")
        assert (folder / "summary.json").exists(), done.stderr
    assert run([*LINES["max-patches"], "--out", "one", "--quiet"]) == 1
    assert run(["merge", "parts", "--out", "all", "--quiet"]) == 1
    assert files("all") == files("one")


def test_an_interrupted_merge_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in ("0/2", "1/2"):
        assert run([*LINES["saliency"], "--out", "parts", "--quiet", "--shard", share]) in (0, 1)
    capsys.readouterr()

    def interrupted(*_arguments: object, **_options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(ImageRun, "finish_images", interrupted)
    try:
        assert run(["merge", "parts", "--out", "all", "--quiet"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.count("interrupted") == 1


@pytest.mark.slow
@pytest.mark.pictures  # the child renders its figures
@pytest.mark.skipif(sys.platform != "linux", reason="runs are killed")
@pytest.mark.parametrize("command", ["saliency", "max-patches"])
def test_a_share_that_is_killed_goes_on_by_itself(command: str) -> None:
    more = ["--save-every", "1"] if command == "max-patches" else []
    line = [*LINES[command], *more, "--out", "parts", "--quiet", "--shard"]
    assert run([*LINES[command], *more, "--out", "one", "--quiet"]) == 1
    assert run([*line, "0/2"]) in (0, 1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for seconds in (2.5, 4):
        child = subprocess.Popen(
            [sys.executable, "-m", "cnnviz.cli", *line, "1/2", "--resume"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert run([*line, "1/2", "--resume"]) in (0, 1, 2)  # 2: it was done by then
    assert run(["merge", "parts", "--out", "all", "--quiet"]) == 1
    assert files("all") == files("one")


@pytest.mark.parametrize("command", list(LINES))
def test_options_come_back_from_a_summary_as_they_were_given(command: str) -> None:
    record = parse([*LINES[command], "--mean", "0.1234567890123,0.2,0.3", "--dark"])
    run_of = FinishedRun(Path("x"), SimpleNamespace(command=command), {})  # type: ignore[arg-type]
    content = json.loads(json.dumps(request(record)))
    again = requested(run_of, content, OutputOptions(), (), allow_urls=False)
    assert request(again) == request(record)
    assert (again.model, again.output.dark) == (record.model, True)
    assert str(again.shard) == "0/1"


def test_what_a_summary_names_runs_only_if_the_user_names_it() -> None:
    content = request(parse([*LINES["saliency"], "--model", "net.py:make"]))
    run_of = FinishedRun(Path("x"), SimpleNamespace(command="saliency"), {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"name it: --code 'net\.py:make'"):
        requested(run_of, content, OutputOptions(), (), allow_urls=False)
    requested(run_of, content, OutputOptions(), ["net.py:make"], allow_urls=False)
    content["images"] = ["s3://bucket/"]
    with pytest.raises(UsageError, match="use --allow-urls"):
        requested(run_of, content, OutputOptions(), ["net.py:make"], allow_urls=False)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("images",), None), (("images",), [3]), (("model",), None), (("model", "seed"), "x"),
        (("model", "threshold"), 7), (("spec", "samples"), -1), (("output", "width"), 10**9),
        (("model", "size"), [1, 2, 3]), (("look", "colormap"), "none"),
    ],
)  # fmt: skip
def test_options_that_no_run_writes_are_refused(place: tuple[str, ...], value: object) -> None:
    content = inner = json.loads(json.dumps(request(parse(LINES["saliency"]))))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    run_of = FinishedRun(Path("x"), SimpleNamespace(command="saliency"), {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has options that no run writes"):
        requested(run_of, content, OutputOptions(), (), allow_urls=False)
