"""How the benchmarks take times and memory, and show them."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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


def resident() -> float:
    """MiB of this process in memory now (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
