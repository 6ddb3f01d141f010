"""`cnnviz rerun`: a run again from its summary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.cli.rerun import _leaves, _same

LINES = {
    "occlude": ["occlude", "0.png", "1.png", "--mask", "16", "--pictures", "overlay"],
    "one": ["occlude", "0.png", "--mask", "16", "--pictures", "overlay"],
    "saliency": ["saliency", "0.png"],
    "max-patches": ["max-patches", "0.png", "1.png", "--layer", "stem.conv"],
    "layers": ["layers"],
    "share": ["saliency", "0.png", "1.png", "--shard", "1/2"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("0.png", "1.png"):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def ran(name: str, *options: str, status: int = 0) -> Path:
    assert run([*LINES[name], *options, "--out", "first", "--quiet"]) == status
    (found,) = Path("first").rglob("summary.json")
    return found


@pytest.mark.parametrize("name", LINES)
def test_a_run_again_gives_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran(name)
    assert run(["rerun", str(summary), "--out", "second"]) == 0
    assert "values are the same" in capsys.readouterr().out
    (again,) = Path("second").rglob("summary.json")
    before, after = (json.loads(path.read_text()) for path in (summary, again))
    if name != "layers":
        assert before["results"] == after["results"]
    assert before.get("shard") == after.get("shard")
    assert run(["rerun", str(summary.parent), "--out", "second", "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_a_check_that_fails_again_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3 of `rerun` means that results differ, and nothing else."""
    summary = ran("one", "--expect", "0,0,2,2", "--min-inside", "0.99", status=3)
    assert run(["rerun", str(summary), "--out", "second"]) == 0
    said = capsys.readouterr()
    assert "values are the same" in said.out
    assert "note: a check of the run failed; only a difference fails this command" in said.err
    changed(summary, lambda c: c["results"][0]["targets"][0].update(max_drop=0.123))
    assert run(["rerun", str(summary), "--out", "second", "--overwrite", "--quiet"]) == 3


def changed(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_differs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran("one")
    changed(summary, lambda c: c["results"][0]["targets"][0].update(max_drop=0.123))
    line = ["rerun", str(summary), "--out", "second", "--overwrite"]
    assert run([*line, "--quiet"]) == 3
    assert "results[0].targets[0].max_drop: 0.123 -> " in capsys.readouterr().err
    assert run([*line, "--quiet", "--tolerance", "1"]) == 0
    assert run([*line, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["same"] is False
    assert said["differing"] == len(said["first"]) == 1
    changed(summary, lambda c: c["results"].append({}))
    assert run([*line, "--quiet"]) == 3
    assert "results: 2 entries -> 1 entries" in capsys.readouterr().err


def test_another_version_or_network_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran("one")
    changed(summary, lambda c: c.update(version="0.0.1"))
    changed(summary, lambda c: c["model"].update(weights_sha256="0" * 64))
    assert run(["rerun", str(summary), "--out", "second"]) == 0
    said = capsys.readouterr().err
    assert "version was 0.0.1 and is" in said
    assert "the network has other weights" in said


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"command": "rm", "schema": "cnnviz.rm/1", "argv": ["rm"]}',
        '{"command": "occlude", "schema": "cnnviz.occlude/1", "argv": ["render", "x"]}',
        '{"command": "occlude", "schema": "cnnviz.occlude/1", "argv": "occlude"}',
        '{"command": "occlude", "schema": "cnnviz.occlude/1", "argv": ["occlude", 3]}',
        '{"command": "occlude", "schema": "cnnviz.occlude/1", "argv": ["occlude"], "shard": 3}',
        '{"command": ["occlude"], "schema": "cnnviz.occlude/1", "argv": ["occlude"]}',
    ],
)
def test_what_is_no_summary_is_refused(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("summary.json").write_text(content)
    assert run(["rerun", "summary.json", "--out", "o"]) == 2
    assert "is not " in capsys.readouterr().err
    assert not Path("o").exists()


def test_the_run_itself_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran("one")
    before = summary.read_bytes()
    assert run(["rerun", str(summary), "--out", str(summary.parent), "--overwrite"]) == 2
    assert "holds the run itself" in capsys.readouterr().err
    assert run(["rerun", str(summary), "--out", "first", "--overwrite"]) == 2
    assert summary.read_bytes() == before
    assert run(["rerun", "gone"]) == 1


def test_a_run_that_cannot_be_repeated_ends_as_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran("one")
    Path("0.png").unlink()
    assert run(["rerun", str(summary), "--out", "second", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit"] == 2


@pytest.mark.parametrize(
    ("was", "now", "tolerance", "same"),
    [
        (1.0, 1.0 + 1e-9, 0.0, False),
        (1.0, 1.0 + 1e-9, 1e-6, True),
        (0, 0.0, 0.0, True),
        (True, 1, 0.0, True),
        ("a", "b", 1.0, False),
        (None, 0, 1.0, False),
    ],
)
def test_values_are_compared_with_room(was: Any, now: Any, tolerance: float, same: bool) -> None:
    assert _same(was, now, tolerance) is same


def test_times_and_places_are_not_compared() -> None:
    run_ = {"seconds": 1, "other_seconds": 2, "folder": "a", "comparison": {"p": 3, "seconds": 4}}
    assert [place for place, _, _ in _leaves(run_, run_, "")] == [".comparison.p"]


MARK = """
from pathlib import Path
from torch import nn

def make():
    Path("mark").touch()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def read(output):
    Path("mark").touch()
    return output
"""


@pytest.mark.parametrize(
    "named",
    [["--model", "net.py:make"], ["--output", "net.py:read"], ["-m", "net:make"]],
    ids=["factory", "function", "module"],
)
def test_code_that_a_summary_names_runs_only_if_it_is_allowed(
    named: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(".")
    Path("net.py").write_text(MARK)
    summary = ran("one")
    changed(summary, lambda c: c["argv"].extend(named))
    assert run(["rerun", str(summary), "--out", "second"]) == 2
    assert "names code that would run: " in capsys.readouterr().err
    assert not Path("mark").exists()
    assert run(["rerun", str(summary), "--out", "second", "--allow-code"]) in (0, 1, 3)
    assert Path("mark").exists()


@pytest.mark.parametrize("more", [["-oelsewhere"], ["--out=elsewhere"], ["--report", "--json"]])
def test_a_summary_does_not_say_where_results_go(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    summary = ran("one")
    changed(summary, lambda c: c["argv"].extend(more))
    assert run(["rerun", str(summary), "--out", "second", "--quiet"]) == 0
    assert not Path("elsewhere").exists()
    assert not Path("second", "0", "report.html").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["occlude", "--help"], "does not run a command"),
        (["occlude", "0.png", "--mask", "x"], "invalid mask 'x'"),
        (["occlude", "0.png", "--no-such"], "No such option"),
        (["occlude", "--", "--out", "elsewhere"], "no file or folder '--out'"),
    ],
)
def test_a_command_line_that_is_not_valid_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = ran("one")
    changed(summary, lambda c: c.update(argv=argv))
    assert run(["rerun", str(summary), "--out", "second"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("elsewhere").exists()


def test_a_rerun_of_rerun_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    summary = ran("one")
    changed(summary, lambda c: c.update(command="rerun", schema="cnnviz.rerun/1"))
    changed(summary, lambda c: c.update(argv=["rerun", str(summary)]))
    assert run(["rerun", str(summary), "--out", "second"]) == 2
    assert "that can be repeated" in capsys.readouterr().err
