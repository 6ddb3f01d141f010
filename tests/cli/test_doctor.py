import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from cnnviz.cli import doctor, selftest
from cnnviz.cli.doctor import Check, Status
from cnnviz.cli.main import run

SCHEMA = Path(__file__).parent.parent.parent / "docs" / "schemas" / "doctor.schema.json"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch works, and the self-test has one line."""
    torch = doctor.Torch("2", "1", None, [], False, str(Path.cwd() / "hub"), 2)
    monkeypatch.setattr(doctor, "_torch", lambda: torch)

    def short(_device: str, *, full: bool, measured: dict[str, float]) -> Iterator[selftest.Line]:
        measured["map"] = 1e-7
        yield "occlusion on the CPU", not full, "map 1e-07 of the largest value apart"

    monkeypatch.setattr(selftest, "run", short)


def statuses(checks: list[Check]) -> dict[str, Status]:
    return {check.name: check.status for check in checks}


@pytest.mark.usefixtures("healthy")
def test_json_is_as_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert content["results"]["measured"] == {"map": 1e-7}
    assert {check["status"] for check in content["results"]["checks"]} <= {"pass", "warn"}


@pytest.mark.usefixtures("healthy")
def test_a_wrong_number_fails_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--full"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  occlusion on the CPU: map 1e-07" in shown
    assert doctor._ISSUES in shown
    assert shown.splitlines()[-1].endswith("1 fail")


def test_a_broken_torch_is_reported_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise OSError('libcudart.so.12: no such file')"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "cnnviz.cli", "doctor"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "FAIL  torch: torch and torchvision do not work: OSError: libcudart.so.12" in done.stdout
    assert "PASS  output folder" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("numpy>=1.26", None),
        ("numpy>=999", Status.FAIL),
        ("no-such-package>=1", Status.FAIL),
        ('numpy>=999; extra == "timm"', Status.WARN),
        ('no-such-package>=1; extra == "timm"', None),
    ],
)
def test_packages_are_compared_with_what_cnnviz_names(
    line: str, status: Status | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _name: [line])
    found = [check for check in doctor._packages() if check.status is not Status.PASS]
    assert [check.status for check in found] == ([status] if status else [])
    assert all("pip install" in check.remedy for check in found)


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor._folder("output", tmp_path / "new" / "folder", "elsewhere").status is Status.PASS
    assert doctor._folder("output", tmp_path / "file", "elsewhere").status is Status.FAIL


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize("gone", [True, False])
def test_all_is_checked_where_nothing_can_be_written(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "gone" if gone else Path("/proc/self")
    if gone:
        place.mkdir()
    elif not place.exists():
        pytest.skip("a file system of Linux")
    monkeypatch.chdir(place)
    if gone:
        place.rmdir()
    assert run(["doctor"]) == 1
    shown = capsys.readouterr()
    assert "FAIL  output folder" in shown.out
    assert "WARN  locks: not tried" in shown.out
    assert "PASS  occlusion on the CPU" in shown.out
    assert shown.err == ""


def test_a_name_too_long_for_a_folder_fails(tmp_path: Path) -> None:
    assert doctor._folder("weights", tmp_path / ("a" * 300), "elsewhere").status is Status.FAIL


def test_little_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE", 1 << 80)
    assert doctor._folder("weights", tmp_path, "elsewhere").status is Status.WARN


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = doctor.Torch("2", "1", "13.0", [], False, "hub", 2)
    assert doctor._devices(torch).status is Status.PASS
    monkeypatch.setattr(doctor, "_driver", lambda: "H200, 999.1")
    check = doctor._devices(torch)
    assert (check.status, "H200" in check.detail) == (Status.WARN, True)


def test_numbers_are_compared_by_what_they_are() -> None:
    values = np.arange(1.0, 19.0)
    assert selftest.compared("map", values, values, 1e-3) == (
        True, 0.0, "map 0e+00 of the largest value apart",
    )  # fmt: skip
    assert not selftest.compared("map", values + 0.1, values, 1e-3)[0]
    assert selftest.compared("top", values, values, 0)[0]
    assert not selftest.compared("top", values, np.r_[values[:9], values[:9]], 0)[0]
    assert not selftest.compared("order", np.array([0.3]), np.array([0.9]), 0)[0]


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["", "occlusion", "max-patches", "ablation", "gradients"])
def test_every_analysis_has_its_known_numbers(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.loads(selftest.KNOWN.read_text(encoding="utf-8"))
    if planted:
        name = next(iter(stored[planted]))
        stored[planted][name][0] += 0.1
    (tmp_path / "known.json").write_text(json.dumps(stored))
    monkeypatch.setattr(selftest, "KNOWN", tmp_path / "known.json")
    measured: dict[str, float] = {}
    lines = list(selftest.run("cpu", full=False, measured=measured))
    assert len(lines) == 6
    assert [title for title, good, _ in lines if not good] == (
        [f"{planted} on the CPU"] if planted else []
    )
    assert measured["occlusion, incremental and full engine on cpu: map"] < 1e-3


def test_a_device_that_is_not_there_fails_the_self_test() -> None:
    ((title, good, detail),) = selftest.run("cuda:77", full=False, measured={})
    assert (title, good) == ("self-test", False)
    assert "CUDA" in detail or "cuda" in detail
