"""Small networks of timm's families through every command: an answer, or a line."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "architectures.py"
spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
assert spec is not None
assert spec.loader is not None
architectures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architectures)

# What the last layer with maps puts out, and the engine of `occlude`.
NETWORKS = {
    "test_byobnet": ("N, C, H, W", "incremental"),
    "test_convnext": ("N, C, H, W", "incremental"),
    "test_efficientnet_evos": ("N, C, H, W", "incremental"),
    "test_mambaout": ("N, H, W, C", "incremental"),
    "test_maxvit": ("N, C, H, W", "incremental"),
    "test_vit": ("N, T, C", "full"),
    "test_vit_relpos": ("N, T, C", "incremental"),
}


@pytest.mark.needs("timm")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore")
def test_every_command_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "times", lambda *_args: (1.0, 1.0))
    architectures.make_data(tmp_path)
    row = architectures.try_out(name, tmp_path)
    assert not row.crashed
    assert not row.refused
    assert (row.form, row.engine) == NETWORKS[name]
