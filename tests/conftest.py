"""Fixtures that several test files share; workers that run side by side share the processors."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of the processes that tests start, too
for _variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):  # runs would speak to it
    os.environ.pop(_variable, None)

sys.path.insert(0, str(Path(__file__).parent))  # for `networks` and `zoo`

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402 (of torch)

torch.set_num_threads(THREADS)


@pytest.fixture
def assets() -> Path:
    """The folder of real weights and photographs, where there is one."""
    folder = os.environ.get("CNNVIZ_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CNNVIZ_TEST_ASSETS names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def built_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Callable[[Path], None]], Path]:
    """Builds a folder that many tests read: one worker does, the others wait for it."""

    def built(name: str, build: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        base = base.parent if _WORKERS > 1 else base
        place = base / name
        with FileLock(base / f"{name}.lock"):
            if not (base / f"{name}.built").exists():
                place.mkdir()
                build(place)
                (base / f"{name}.built").touch()
        return place

    return built


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


HOSTILE = ("hostile_input", "foreign_folders", "odd_networks", "trial", "doors", "faults", "fuzz")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many cases of bad input were tried."""
    reports = terminalreporter.getreports
    ended = [*reports("passed"), *reports("failed")]
    files = {f"test_{name}.py" for name in HOSTILE}
    tried = {r.nodeid for r in ended if Path(r.nodeid.partition("::")[0]).name in files}
    if tried:
        terminalreporter.write_line(f"bad input: {len(tried)} cases")
