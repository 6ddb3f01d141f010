"""A scan that is killed, at whatever moment, ends as if it had not been."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import model_of
from PIL import Image
from torch import nn

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.filters.patches.max_patches import find_patches
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import Saving, ScanPlan, make_plan


def make_model() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2), nn.Flatten(1)
    )
    return model_of(net, (12, 12), "0")


def write_images(folder: Path, count: int = 60, broken: tuple[int, ...] = (7, 31, 59)) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        noise = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    for number in broken:
        (folder / f"{number:02}.png").write_bytes(b"no image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return root


@pytest.fixture
def model() -> Model:
    return make_model()


@pytest.fixture
def data(folder: Path) -> ImageData:
    return open_data([str(folder)])


class Stop(Exception):  # noqa: N818
    """Stands for the end of the process."""


def interrupted(model: Model, data: ImageData, plan: ScanPlan, saving: Saving, after: int) -> None:
    seen = 0

    def stop(_images: int) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise Stop

    with pytest.raises(Stop):
        find_patches(model, data, plan, saving=saving, progress=stop)


@pytest.mark.parametrize("every", [1, 3])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(
    model: Model, data: ImageData, tmp_path: Path, every: int
) -> None:
    plan = make_plan(model, MaxPatchesSpec(batch_size=4))
    steps: list[int] = []
    whole = find_patches(model, data, plan, progress=steps.append)
    assert len(steps) == 16  # 15 batches, the last of one picture, and the broken one behind it
    for after in range(1, len(steps) + 1):
        path = tmp_path / f"{after}.npz"
        interrupted(model, data, plan, Saving(path, every), after)
        resumed = find_patches(model, data, plan, saving=Saving(path, every, resume=True))
        assert resumed == whole


def test_resuming_reads_only_what_was_left(model: Model, data: ImageData, tmp_path: Path) -> None:
    plan, path = make_plan(model, MaxPatchesSpec(batch_size=4)), tmp_path / "state.npz"
    interrupted(model, data, plan, Saving(path, 1), 10)
    steps: list[int] = []
    saving = Saving(path, 1, resume=True)
    find_patches(model, data, plan, saving=saving, progress=steps.append)
    assert steps[0] >= 36
    assert sum(steps) == 60


def test_a_state_file_without_resume_is_not_read(
    model: Model, data: ImageData, tmp_path: Path
) -> None:
    plan, path = make_plan(model, MaxPatchesSpec(batch_size=4)), tmp_path / "state.npz"
    path.write_bytes(b"whatever")
    whole = find_patches(model, data, plan)
    assert find_patches(model, data, plan, saving=Saving(path)) == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights_sha256": "other"}, "weights"),
        ({"preprocess": Preprocess(None, (12, 12), mean=(0.0, 0.0, 0.0))}, "preprocessing"),
        ({"precision": Precision.BF16}, "precision"),
        ({"choices": "sigmoid"}, "outputs"),
    ],
)
def test_state_of_another_model_is_refused_by_naming_what_differs(
    model: Model, data: ImageData, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    plan, path = make_plan(model, MaxPatchesSpec(batch_size=4)), tmp_path / "state.npz"
    interrupted(model, data, plan, Saving(path, 1), 3)
    other = replace(model, **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=f"belongs to a run with other {named};"):
        find_patches(other, data, plan, saving=Saving(path, resume=True))


def test_state_of_other_data_or_questions_is_refused(
    model: Model, data: ImageData, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state.npz"
    interrupted(model, data, make_plan(model, MaxPatchesSpec(batch_size=4)), Saving(path, 1), 3)
    saving = Saving(path, resume=True)
    fewer = open_data([str(folder)], limit=50)
    with pytest.raises(UsageError, match="run with other data;"):
        find_patches(model, fewer, make_plan(model, MaxPatchesSpec(batch_size=4)), saving=saving)
    with pytest.raises(UsageError, match="run with other --top;"):
        find_patches(model, data, make_plan(model, MaxPatchesSpec(top=3)), saving=saving)
    with pytest.raises(UsageError, match="run with other layers or filters;"):
        find_patches(model, data, make_plan(model, MaxPatchesSpec(filters=("0:1",))), saving=saving)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_file_that_is_no_state_is_refused(
    model: Model, data: ImageData, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(CnnvizError, match=r"'.*state.npz' is damaged; start again"):
        find_patches(
            model,
            data,
            make_plan(model, MaxPatchesSpec(batch_size=4)),
            saving=Saving(path, resume=True),
        )


def test_arrays_of_another_shape_or_pickles_are_refused(
    model: Model, data: ImageData, tmp_path: Path
) -> None:
    path, saving = tmp_path / "state.npz", Saving(tmp_path / "state.npz", 1, resume=True)
    interrupted(model, data, make_plan(model, MaxPatchesSpec(batch_size=4)), saving, 3)
    with np.load(path) as file:
        arrays = dict(file)
    for bad in (np.zeros((1, 1), np.int64), np.array([{}], dtype=object)):
        np.savez(path, **(arrays | {"0.keys": bad}))
        with pytest.raises(CnnvizError, match="is damaged"):
            find_patches(model, data, make_plan(model, MaxPatchesSpec(batch_size=4)), saving=saving)


KILLED = """
import dataclasses, json, os, random, signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
sys.path[:0] = [str(here), str(here.parents[1])]
import torch
from test_state import make_model, open_data, make_plan, find_patches, MaxPatchesSpec, Saving

torch.set_num_threads(1)
images, state = sys.argv[2:]

def scan(saving=None):
    model = make_model()
    plan = make_plan(model, MaxPatchesSpec(batch_size=4))
    slow = lambda _images: time.sleep(0.03 if saving else 0)
    result = find_patches(
        model, open_data([images]), plan, saving=saving, progress=slow
    )
    return [dataclasses.asdict(entry) for entry in result.filters], result.errors

resumable = Saving(Path(state), 1, resume=True)

delays = random.Random(0)
killed = 0
while killed < 10:
    child = os.fork()
    if child == 0:
        scan(resumable)
        os._exit(0)
    time.sleep(delays.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        killed += 1
    else:
        Path(state).unlink(missing_ok=True)
print(json.dumps([killed, scan(resumable), scan()]))
"""


@pytest.mark.slow
def test_killed_ten_times_at_random_moments_and_resumed_equals_uninterrupted(
    folder: Path, tmp_path: Path
) -> None:
    """All in one process, since last digits depend on the number of threads."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, Path(__file__).parent, folder, tmp_path / "state.npz"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    killed, resumed, whole = json.loads(done.stdout)
    assert killed == 10
    assert resumed == whole
    _filters, errors = whole
    assert len(errors) == 3
