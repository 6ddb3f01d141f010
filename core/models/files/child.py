"""A stranger's file is opened in a child process first, which can be killed.

A file can keep its reader busy for ever, take all memory, or crash it; the process that this
happens to cannot catch it. So a copy of this process opens the file first, within limits of
processor time and memory. Its result and its errors are discarded, since this process will meet the
same ones. Only if the child does not survive, the file is refused.

Children are copies (`fork`), on Linux only; elsewhere files are opened without this test.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from cnnviz.core.device import is_out_of_memory
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError

MEMORY_TIMES = 4
"""Memory that reading a file may take, in multiples of its size, in addition to `SLACK`."""
SLACK = 256 * 2**20
SECONDS = 20
"""Processor time, in addition to the file's size divided by `BYTES_PER_SECOND`."""
BYTES_PER_SECOND = 20 * 10**6
REAL_TIME = 10
"""Real time, in multiples of the processor time: disks are slower than processors."""
_NO_MEMORY = 71
_LONGEST_SLEEP = 0.05


def run_in_child(
    path: Path, work: Callable[[], object], *, slack: int = SLACK, seconds: float | None = None
) -> None:
    """Run `work` in a child process first; raise CnnvizError if the child does not survive.

    Its result and ordinary errors are discarded. `slack` (bytes) and `seconds` are its limits in
    addition to what the file's size allows.
    """
    if sys.platform != "linux":
        return
    size = path.stat().st_size
    memory, limit = MEMORY_TIMES * size + slack, int((seconds or SECONDS) + size / BYTES_PER_SECOND)
    with warnings.catch_warnings(action="ignore"):  # about threads, which the child does not use
        child = os.fork()
    if child == 0:
        _child_main(work, memory, limit)
    status = _wait(child, time.monotonic() + REAL_TIME * limit)
    if status is None or os.WIFSIGNALED(status):
        number = signal.SIGXCPU if status is None else os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            raise CnnvizError(f"refused to read '{path}': it takes longer than {limit} seconds")
        name = signal.strsignal(number) or f"signal {number}"
        raise CnnvizError(f"refused to read '{path}': it crashes torch ({name})")
    if os.WEXITSTATUS(status) == _NO_MEMORY:
        raise CnnvizError(
            f"refused to read '{path}': its {size:,} bytes take more than {memory // 2**20} MiB of "
            "memory"
        )


def _child_main(work: Callable[[], object], memory: int, seconds: int) -> None:
    """Apply the limits, run the work and exit."""
    status = 1
    try:
        _limit(memory, seconds)
        work()
        status = 0
    except USER_CODE_ERRORS as raised:
        error: BaseException | None = raised
        while error is not None:  # readers report it as a damaged file
            if isinstance(error, MemoryError) or is_out_of_memory(error):
                status = _NO_MEMORY
            error = error.__cause__
    finally:
        os._exit(status)


def _limit(memory: int, seconds: int) -> None:
    import faulthandler
    import resource

    faulthandler.disable()
    for number in (signal.SIGINT, signal.SIGXCPU, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # Python's handlers would wait for the work to end
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    torch.set_num_threads(1)  # a copied process has none of the others
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: used + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, maximum in limits.items():
        _soft, hard = resource.getrlimit(kind)
        allowed = maximum if hard == resource.RLIM_INFINITY else min(maximum, hard)
        resource.setrlimit(kind, (allowed, hard))


def _wait(child: int, until: float) -> int | None:
    """Return the child's exit status, or None if it had to be killed; an interruption kills it."""
    pause = 0.001
    try:
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return status
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_SLEEP)
        return None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
