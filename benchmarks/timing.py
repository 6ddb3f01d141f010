"""How the benchmarks take times and show them."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Seconds = tuple[float, float]
"""Wall-clock and processor time."""


def timed(device: torch.device, run: Callable[[], object]) -> Seconds:
    """How long a run takes, the device's work included."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - processor


def spread(values: Sequence[float]) -> str:
    """Median and range, three digits."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"
