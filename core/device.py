"""Where and how precisely a network runs, and how many images go through it at a time.

A batch size is a promise nobody can keep beforehand: `in_batches` starts from a guess and halves it
whenever the device runs out of memory, so a run slows down where it would have died.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator

import torch

from cnnviz.core.errors import CnnvizError, UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Resolves `auto`, `cpu`, `cuda[:N]` or `mps` to a device that is really there.

    Raises:
        UsageError: the name means nothing to torch, or the machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UsageError(f"no device '{name}'; --device takes auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available to torch here; use --device cpu or auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"no device '{name}'; this machine has cuda:0 to cuda:{count - 1}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no MPS device is available to torch here; use --device cpu or auto")
    return torch.device(name)


_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.1  # bfloat16, float16


def rounding(dtype: torch.dtype) -> float:
    """The share of the largest score that another order of additions may change, and no more."""
    return _ROUNDING.get(dtype, _COARSE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this for want of memory, on any kind of device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def in_batches(
    count: int, batch_size: int, run: Callable[[slice], None]
) -> Iterator[tuple[int, int]]:
    """Calls `run` on consecutive slices of range(count); yields (done, batch size) after each.

    Out of memory halves the batch size, and the same slice start is tried again.

    Raises:
        CnnvizError: a single item does not fit the device's memory.
    """
    done = 0
    while done < count:
        part = slice(done, min(done + batch_size, count))
        try:
            run(part)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise CnnvizError(
                    "out of memory with one image at a time; use --device cpu or a smaller --size"
                ) from error
        else:
            done = part.stop
            yield done, batch_size
            continue
        batch_size = max(1, batch_size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def give_back_memory() -> None:
    """Returns freed memory to the system where the C library would keep it (glibc does).

    Tensors of ever-changing sizes leave holes that nothing fits into; a long run would grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
