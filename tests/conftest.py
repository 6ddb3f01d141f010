"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch


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
