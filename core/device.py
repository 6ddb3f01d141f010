"""Devices, rounding, and batches that shrink when memory runs out.

No batch size is known to fit in advance: `in_batches` starts from a guess and halves it whenever
the device runs out of memory, so that a run slows down instead of failing.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cnnviz.core.errors import CnnvizError, UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Resolve `auto`, `cpu`, `cuda[:N]` or `mps` to a device that this machine has."""
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


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device; from pinned memory the host need not wait for it."""
    if device.type != "cuda":
        return tensor.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph would read memory of the host that is no longer there")
    return tensor.pin_memory().to(device, non_blocking=True)


_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
_COARSE = 0.1  # bfloat16, float16
_AMPLIFIED = 30  # times the effect of rounding the pixels: that of rounding in all layers


def rounding(dtype: torch.dtype) -> float:
    """The maximum change, as a share of the largest score, from another order of additions."""
    return _ROUNDING.get(dtype, _COARSE)


def beyond_rounding(
    expected: Tensor, got: Tensor, again: Callable[[Tensor], Tensor], pixels: Tensor
) -> float:
    """The largest difference between two answers to the same pixels; 0 if rounding explains it.

    Some networks amplify rounding. Their answers (`again`) to pixels that are changed by as much as
    rounding does then change as well. Infinite where only one of the two is finite.
    """
    dtype, scale = pixels.dtype, 1.0
    expected, got = expected.cpu(), got.cpu()  # at once: each number would wait for the device
    if expected.numel() and bool(expected.isfinite().all()):
        scale = float(expected.abs().max())
    same = torch.isclose(got, expected, rtol=0, atol=rounding(dtype) * scale, equal_nan=True)
    if bool(same.all()):
        return 0.0
    apart = (got - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    largest = float(apart[~same].max())
    shaken = again(pixels * (1 + torch.finfo(dtype).eps)).cpu()
    amplified = float((shaken - expected).abs().nan_to_num(nan=0.0, posinf=0.0).max())
    return 0.0 if largest <= _AMPLIFIED * amplified else largest


def exact(values: Tensor) -> Tensor:
    """Values as sums (2, ...) for `plus`: the number, and what rounding has taken from it."""
    return torch.stack([values, torch.zeros_like(values)])


def plus(one: Tensor, other: Tensor) -> Tensor:
    """Adds two sums (2, ...) with twice the digits of their type.

    The order of additions then changes nothing that single precision shows (Knuth's two-sum;
    Dekker 1971, "A floating-point technique for extending the available precision").
    """
    (a, a_rest), (b, b_rest) = one, other
    total = a + b
    shadow = total - a
    rest = (a - (total - shadow)) + (b - shadow) + (a_rest + b_rest)
    whole = total + rest
    return torch.stack([whole, rest - (whole - total)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this because memory ran out, on any kind of device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def in_batches(
    count: int, batch_size: int, run: Callable[[slice], None]
) -> Iterator[tuple[int, int]]:
    """Call `run` on consecutive slices of range(count); yield (done, batch size) after each.

    If memory runs out, the batch size is halved and the slice repeated; CnnvizError if a single
    item does not fit.
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
    """Return freed memory to the system, which glibc otherwise keeps.

    Tensors of changing sizes fragment the memory; a long run would grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
