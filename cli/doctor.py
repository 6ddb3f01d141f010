"""`cnnviz doctor`: checks the installation, then runs every analysis on this machine.

Works where torch is broken: it is imported in a child process first.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement

from cnnviz.cli.commands.runs import DoctorCommand
from cnnviz.cli.console import Console, print_json
from cnnviz.cli.options import OutputOptions
from cnnviz.core.errors import one_line
from cnnviz.core.extras import version
from cnnviz.core.output.record import Record, Says, to_json

LITTLE = 2 * 2**30
"""Bytes of free space from which on a folder has enough."""
CHILD_SECONDS = 120
_ISSUES = "write an issue with the output of cnnviz doctor --json"
_TORCH = """
import json, torch, torchvision
torch.ones(2, 2) @ torch.ones(2, 2)
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__, "built": torch.version.cuda,
    "cuda": names, "mps": torch.backends.mps.is_available(), "hub": torch.hub.get_dir(),
    "threads": torch.get_num_threads(),
}))
"""


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 (not a password)
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check(Record):
    """One check."""

    name: str
    status: Status
    detail: str
    remedy: Annotated[str, Says("what to do; empty if nothing")] = ""


@dataclass(frozen=True)
class Results(Record):
    """What the doctor found; of the self-test, the numbers that it compared."""

    checks: tuple[Check, ...]
    measured: Annotated[dict[str, float], Says("numbers of the self-test, by what they are")]


@dataclass(frozen=True)
class Report(Record):
    """The output of `--json`."""

    schema: str
    command: str
    version: str
    results: Results


@dataclass(frozen=True)
class Torch:
    """What torch says of itself, in a child process."""

    torch: str
    torchvision: str
    built: str | None
    cuda: list[str]
    mps: bool
    hub: str
    threads: int


def doctor(given: DoctorCommand) -> None:
    """Runs `cnnviz doctor`."""
    console = Console(OutputOptions(json=given.json))
    checks: list[Check] = []
    measured: dict[str, float] = {}
    for check in _checks(given, measured):
        checks.append(check)
        console.line(f"{check.status.upper()}  {check.name}: {check.detail}")
        if check.remedy:
            console.line(f"      {check.remedy}")
    if given.json:
        results = Results(tuple(checks), measured)
        report = Report("cnnviz.doctor/1", "doctor", version(), results)
        print_json([json.dumps(to_json(report), indent=2, ensure_ascii=False) + "\n"])
    count = {status: sum(check.status is status for check in checks) for status in Status}
    console.line(", ".join(f"{number} {status}" for status, number in count.items()))
    if count[Status.FAIL]:
        raise typer.Exit(1)


def _checks(given: DoctorCommand, measured: dict[str, float]) -> Iterator[Check]:
    system = f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield Check("Python", Status.PASS, system)
    yield from _packages()
    torch = _torch()
    if isinstance(torch, Check):
        yield torch
    else:
        yield Check("torch", Status.PASS, f"{torch.torch}, torchvision {torch.torchvision}")
        yield _devices(torch)
        yield _folder("weights", Path(torch.hub), "set TORCH_HOME to a folder with more space")
    yield _folder("output", Path("cnnviz-out"), "give --out a folder that can be written to")
    yield _locks()
    if isinstance(torch, Torch):
        selftest = import_module("cnnviz.cli.selftest")
        run: Callable[..., Iterator[tuple[str, bool, str]]] = selftest.run
        for name, good, detail in run(given.device, full=given.full, measured=measured):
            status = Status.PASS if good else Status.FAIL
            yield Check(name, status, detail, "" if good else _ISSUES)


def _packages() -> Iterator[Check]:
    """Required packages and those of the extras, against the versions that cnnviz names."""
    try:
        lines = metadata.requires("cnnviz") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install . in cnnviz's folder"
        yield Check("cnnviz", Status.WARN, "runs from a folder; it is not installed", remedy)
        return
    yield Check("cnnviz", Status.PASS, f"{version()}, {Path(__file__).parents[1]}")
    fine, extras = list[str](), dict[str, list[str]]()
    for line in lines:
        wanted = Requirement(line)
        extra = re.search(r"extra == ['\"]([^'\"]+)", line)
        got = _installed(wanted.name)
        if extra and (got is None or wanted.name == "cnnviz" or extra[1] in ("test", "dev")):
            if extra[1] not in ("test", "dev", "docs"):
                extras.setdefault("not installed", []).append(extra[1])
        elif got is None or not wanted.specifier.contains(got, prereleases=True):
            status = Status.WARN if extra else Status.FAIL
            detail = f"{got or 'missing'}; cnnviz needs {wanted.specifier or 'any version'}"
            remedy = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Check(wanted.name, status, detail, remedy)
        elif extra:
            extras.setdefault("installed", []).append(f"{extra[1]} ({wanted.name} {got})")
        else:
            fine.append(wanted.name)
    yield Check("packages", Status.PASS, f"{len(fine)} required ones in versions that fit")
    detail = "; ".join(f"{what}: {', '.join(names)}" for what, names in extras.items())
    yield Check("extras", Status.PASS, detail)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Torch | Check:
    """What torch and torchvision say of themselves; a failed check if they do not work."""
    command = [sys.executable, "-c", _TORCH]
    try:
        done = subprocess.run(  # noqa: S603 (our own text, our own interpreter)
            command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False
        )
        if done.returncode == 0:
            return Torch(**json.loads(done.stdout.splitlines()[-1]))
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"it ended with status {done.returncode}"
    except (subprocess.TimeoutExpired, OSError, ValueError, TypeError, IndexError) as error:
        reason = one_line(error)
    remedy = "install both anew: pip install --force-reinstall torch torchvision"
    return Check("torch", Status.FAIL, f"torch and torchvision do not work: {reason}", remedy)


def _devices(torch: Torch) -> Check:
    """The devices that torch can use, next to what the driver reports."""
    if torch.cuda:
        return Check("device", Status.PASS, f"{', '.join(torch.cuda)} (CUDA {torch.built})")
    if torch.mps:
        return Check("device", Status.PASS, "Apple GPU (MPS)")
    driver = _driver()
    if driver:
        detail = f"a GPU that torch cannot use ({driver}; torch is built for {torch.built})"
        remedy = "install a newer driver, or the build of torch for this one (pytorch.org)"
        return Check("device", Status.WARN, detail, remedy)
    return Check("device", Status.PASS, f"CPU, {torch.threads} threads; no GPU")


def _driver() -> str:
    """Graphics card and version of NVIDIA's driver; empty without them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return " ".join(done.stdout.split()) if done.returncode == 0 else ""


def _folder(name: str, path: Path, remedy: str) -> Check:
    """Whether files can be written to a folder, or made where it would be, and have space."""
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"cnnviz")
            file.flush()
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(f"{name} folder", Status.FAIL, f"{path}: {error.strerror}", remedy)
    detail = f"{path}: {free / 2**30:.0f} GiB free"
    if free < LITTLE:
        return Check(f"{name} folder", Status.WARN, detail, remedy)
    return Check(f"{name} folder", Status.PASS, detail)


def _locks() -> Check:
    """Whether the file system keeps two runs out of one folder."""
    if os.name != "posix":
        return Check("locks", Status.WARN, "this system has none; give each run its own --out")
    try:
        return _locked(Path.cwd())
    except OSError as error:
        detail = f"not tried: no folder can be made here ({error.strerror})"
        return Check("locks", Status.WARN, detail, "run it where results are to go")


def _locked(place: Path) -> Check:
    """Whether a folder that is made there is locked by the first who opens it."""
    fcntl = import_module("fcntl")
    with tempfile.TemporaryDirectory(dir=place) as name:
        first, second = os.open(name, os.O_RDONLY), os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Check("locks", Status.PASS, "a folder is locked by the run that writes to it")
        except OSError as error:
            detail = f"the file system has none ({error.strerror})"
            return Check("locks", Status.WARN, detail, "give each run its own --out")
        finally:
            os.close(first)
            os.close(second)
    return Check("locks", Status.WARN, "locks do not hold", "give each run its own --out")
