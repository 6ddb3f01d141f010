"""Fixtures that several test files share; workers that run side by side share the processors."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of the processes that tests start, too
for _variable in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):  # runs would speak to it
    os.environ.pop(_variable, None)

sys.path.insert(0, str(Path(__file__).parent))  # for `networks` and `zoo`

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402 (of torch)
from rendering import rendered, skip_rendering  # noqa: E402

torch.set_num_threads(THREADS)
skip_rendering()


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
                shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
                place.mkdir()
                build(place)
                (base / f"{name}.built").touch()
        return place

    return built


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _rendered_if_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Renders the figures of tests that have the marker `pictures`."""
    with rendered() if request.node.get_closest_marker("pictures") else nullcontext():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nothing-missing",
        action="store_true",
        help="fail if a test was skipped because an optional package is not installed",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use optional packages are slow ones."""
    for item in items:
        if item.get_closest_marker("needs"):
            item.add_marker("slow")


MISSING = "not installed; pip install '.[dev]'"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests of optional packages that are not there."""
    marks = item.iter_markers("needs")
    gone = [name for mark in marks for name in mark.args if find_spec(name) is None]
    if gone:
        pytest.skip(f"{', '.join(gone)} {MISSING}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Ends with a failure if packages were missing that had to be there."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--nothing-missing"):
        return
    skipped = reporter.stats.get("skipped", ())
    if any(MISSING in str(r.longrepr) or "could not import" in str(r.longrepr) for r in skipped):
        reporter.write_line("a test was skipped because an optional package is missing", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


HOSTILE = (
    "hostile_input",
    "foreign_folders",
    "foreign_shares",
    "hostile_data",
    "odd_networks",
    "trial",
    "doors",
    "faults",
    "fuzz",
    "undecodable_names",
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many cases of bad input were tried."""
    reports = terminalreporter.getreports
    ended = [*reports("passed"), *reports("failed")]
    files = {f"test_{name}.py" for name in HOSTILE}
    tried = {r.nodeid for r in ended if Path(r.nodeid.partition("::")[0]).name in files}
    if tried:
        terminalreporter.write_line(f"bad input: {len(tried)} cases")
