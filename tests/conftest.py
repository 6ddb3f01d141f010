"""Fixtures that several test files share; workers that run side by side share the processors."""

import os
from pathlib import Path

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of the processes that tests start, too

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(THREADS)


@pytest.fixture
def assets() -> Path:
    """The folder of real weights and photographs, where there is one."""
    folder = os.environ.get("CNNVIZ_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CNNVIZ_TEST_ASSETS names no folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
