"""When launches are recorded, and what happens where that fails; torch's graphs are imitated.

`tests/test_device.py` has whole runs, on a pretend device that records kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor

from cnnviz.core.errors import CnnvizError
from cnnviz.occlusion.engines.incremental.cuda_graph import Replay

OFF = [0.0]
"""What a replay adds to the right results."""


class Doubling:
    """A function, and a graph of it that reads the inputs of its recording."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, values: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        self.seen.append((values, values * 2))
        return (self.seen[-1][1],)

    def replay(self) -> None:
        values, result = self.seen[-1]
        result.copy_(values * 2 + OFF[0])


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> Doubling:
    made = Doubling()

    @contextmanager
    def graph(_graph: object, _pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    return made


def after_runs(doubling: Doubling, count: int) -> Replay:
    replay = Replay(doubling, None)
    for number in range(count):
        values = torch.full((3,), float(number))
        replay.ran((values,), (values * 2,))
    return replay


def test_the_second_run_is_recorded_and_later_ones_replay_it(doubling: Doubling) -> None:
    assert not after_runs(doubling, 1).ready
    assert doubling.calls == 0
    replay = after_runs(doubling, 2)
    assert replay.ready
    first, second = replay(torch.ones(3))[0], replay(torch.full((3,), 5.0))[0]
    assert first.tolist() == [2.0] * 3  # a copy: the next replay writes over the graph's own
    assert second.tolist() == [10.0] * 3
    assert doubling.calls == 1  # recorded once


def test_a_graph_that_gives_other_numbers_is_not_used(
    doubling: Doubling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(globals(), "OFF", [0.1])
    assert not after_runs(doubling, 3).ready
    assert caplog.messages == ["no CUDA graph is used, which only takes longer: the results differ"]


@pytest.mark.parametrize("error", [RuntimeError("capturing"), CnnvizError("out of memory")])
def test_what_cannot_be_recorded_runs_as_before(
    doubling: Doubling, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(_values: Tensor) -> tuple[Tensor, ...]:
        raise error

    replay = Replay(fails, None)
    for _ in range(3):
        replay.ran((torch.ones(3),), (torch.ones(3),))
    assert not replay.ready
    assert len(caplog.messages) == 1
    assert str(error) in caplog.messages[0]


def test_rounding_is_no_difference(doubling: Doubling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "OFF", [1e-5])
    assert after_runs(doubling, 2).ready
