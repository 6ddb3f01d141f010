"""A stranger's file is opened in a child process first, which may be killed.

What a file can do to its reader is to take for ever, to take all memory, or to crash it, and none
of that can be caught in the process that it happens to. So a copy of this process goes first, with
a limit of processor time and of memory; what it finds is thrown away, its errors too, since this
process will meet the same ones. Only a child that did not live to the end says something: the
file is refused.

Children are copies (`fork`) on Linux alone; elsewhere files are opened without a trial.
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
"""Of a file's own size, what reading it may take in memory, beside `SLACK`."""
SLACK = 256 * 2**20
SECONDS = 20
"""Of processor time, beside `BYTES_A_SECOND`."""
BYTES_A_SECOND = 20 * 10**6
WAITING = 10
"""Times as much real time: disks are slower than processors."""
_NO_MEMORY = 71
_LONGEST_NAP = 0.05


def tried(
    path: Path, work: Callable[[], object], *, slack: int = SLACK, seconds: float | None = None
) -> None:
    """Does something with a file in a child process; comes back where the child lived to its end.

    Args:
        path: the file, for its size and for messages.
        work: what is done, whose result and whose ordinary errors are of no interest.
        slack: bytes of memory beside `MEMORY_TIMES` the size of the file.
        seconds: of processor time beside what its size allows; None for `SECONDS`.

    Raises:
        CnnvizError: it took longer, took more memory, or crashed.
    """
    if sys.platform != "linux":
        return
    size = path.stat().st_size
    memory, limit = MEMORY_TIMES * size + slack, int((seconds or SECONDS) + size / BYTES_A_SECOND)
    with warnings.catch_warnings(action="ignore"):  # of threads, which the child does without
        child = os.fork()
    if child == 0:
        _be_a_child(work, memory, limit)
    status = _wait(child, time.monotonic() + WAITING * limit)
    if status is None or os.WIFSIGNALED(status):
        number = signal.SIGXCPU if status is None else os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGKILL):
            raise CnnvizError(f"refused to read '{path}': it takes longer than {limit} seconds")
        raise CnnvizError(f"refused to read '{path}': it crashes torch ({_name(number)})")
    if os.WEXITSTATUS(status) == _NO_MEMORY:
        raise CnnvizError(
            f"refused to read '{path}': its {size:,} bytes take more than {memory // 2**20} MiB of "
            "memory"
        )


def _be_a_child(work: Callable[[], object], memory: int, seconds: int) -> None:
    """Does the work within the limits and ends, whatever happens."""
    status = 1
    try:
        _limit(memory, seconds)
        work()
        status = 0
    except USER_CODE_ERRORS as raised:
        error: BaseException | None = raised
        while error is not None:  # readers say of it that the file is damaged
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
        signal.signal(number, signal.SIG_DFL)  # Python's own would wait for the work to end
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    torch.set_num_threads(1)  # a copied process has none of the others
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: own + memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        _soft, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, hard))


def _wait(child: int, until: float) -> int | None:
    """How the child ended; None where it had to be killed. An interruption kills it too."""
    nap = 0.001
    try:
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return status
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)
        return None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _name(number: int) -> str:
    return signal.strsignal(number) or f"signal {number}"
