"""A pretend CUDA device: tensors that say `cuda:0` and are computed on the CPU.

Inside `pretend()`, torch has one CUDA device. What is copied there stays there until it is copied
back. As on a GPU, an operation on tensors of two devices raises, with the line of cnnviz that
called it; indices may come from the CPU. Every wait of the host for the device, copy between
the two and kernel is counted by function and line of cnnviz (`EVENTS`). A CUDA graph records
kernels, refuses waits and copies, and runs the kernels again on the same memory (`Recording`).

For torch's C++ code the tensors lie on a device of their own (PrivateUse1), which works with and
without CUDA and for backward passes; Python code sees `cuda:0` on them, and may ask for it.

    python tests/pretend_cuda.py JSON     runs command lines, and mutants of the code (see `main`)
"""

import importlib
import io
import json
import os
import sys
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

BACKEND = "pretend"
CUDA = torch.device("cuda", 0)
ROOMS = "cli|core|occlusion|filters|embeddings|gradients|trust|audit|diff|report"
CODE = tuple(f"{os.sep}{room}{os.sep}" for room in ROOMS.split("|"))
ROOT = str(Path(getattr(find_spec("cnnviz.core"), "origin", "")).resolve().parents[1])
"""The folder of the package, installed or not."""


class Event(NamedTuple):
    """What happened (`wait`, `copy`, `kernel`), and which line of cnnviz made it happen."""

    kind: str
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


EVENTS: Counter[Event] = Counter()
# Their results, or their sizes, are known only when the device has computed them.
WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def register() -> bool:
    """Makes the device known to torch; whether this torch lets it."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError:
        return False
    _setup_privateuseone_for_python_backend(BACKEND)
    return True


@cache
def _file(name: str) -> str | None:
    """A file of cnnviz, as seen from the repository."""
    inside = os.path.realpath(name).removeprefix(ROOT)
    return inside[1:] if inside.startswith(CODE) else None


def _place(kind: str) -> Event:
    frame: FrameType | None = sys._getframe(2)
    if threading.current_thread() is not threading.main_thread():  # of the backward pass
        frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame is not None:
        if file := _file(frame.f_code.co_filename):
            name = frame.f_code.co_qualname.split(".<locals>.<")[0].replace("<locals>.", "")
            return Event(kind, file, frame.f_lineno, name)
        frame = frame.f_back
    return Event(kind, "torch", 0, "")


class Recording:
    """A CUDA graph: kernels that run again on the memory that they were recorded with.

    What they read from outside must still be there when they do.
    """

    now: "Recording | None" = None  # the one that kernels go to, in place of being counted

    def __init__(self) -> None:
        self._kernels: list[tuple[Any, Any, Any, list[OnCuda]]] = []
        self._inside: dict[int, OnCuda] = {}
        self._outside: dict[int, tuple[weakref.ref[Any], Event]] = {}

    def add(self, func: Any, args: Any, kwargs: Any, made: Any = None) -> None:
        """Records a kernel that has `made` these, or has written to its arguments."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, OnCuda) and id(leaf) not in self._inside:
                self._outside.setdefault(id(leaf), (weakref.ref(leaf), _place("")))
        held = [leaf for leaf in tree_leaves(made) if isinstance(leaf, OnCuda)]
        self._inside.update((id(leaf), leaf) for leaf in held)
        if not hasattr(func, "_schema") or not _is_view(func):
            self._kernels.append((func, tree_map(_here, args), tree_map(_here, kwargs), held))

    def replay(self) -> None:
        """Runs all of it, which is one launch."""
        _count("graph")
        gone = [place for kept, place in self._outside.values() if kept() is None]
        if gone:
            raise RuntimeError(f"a graph reads memory that is no longer there ({gone[0]})")
        for func, args, kwargs, held in self._kernels:
            found = tree_leaves(func(*args, **kwargs))
            for old, new in zip(held, found, strict=bool(held)):
                old.here.copy_(new)


@contextmanager
def _recording(graph: Recording, _pool: object, capture_error_mode: str) -> Iterator[None]:
    assert capture_error_mode == "thread_local"  # else other threads' copies would end it
    Recording.now = graph
    try:
        yield
    finally:
        Recording.now = None


def _count(kind: str) -> None:
    if Recording.now is not None and kind in ("wait", "copy"):
        raise RuntimeError(f"operation not permitted when stream is capturing ({_place('')})")
    EVENTS[_place(kind)] += Recording.now is None


class OnCuda(Tensor):
    """A tensor on the device; `here` is what it holds."""

    here: Tensor
    device = property(lambda _self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> "OnCuda":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(BACKEND, 0),
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.here!r} on {CUDA}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    name, asked = func._schema.name, next((v for v in leaves if isinstance(v, torch.device)), None)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnCuda)]
    goes = bool(there) if asked is None else asked.type == BACKEND
    if name in ("aten::_to_copy", "aten::copy_"):
        source, target = (args[0], goes) if name == "aten::_to_copy" else (args[1], None)
        goes = isinstance(args[0], OnCuda) if target is None else target
        if isinstance(source, OnCuda) != goes:
            _count_copy(
                source, bool(kwargs.get("non_blocking") or (*args, False, False)[2] is True)
            )
    elif there and asked is None:
        _check(name, args, tensors)
    if there and name in WAITING:
        _count("wait")
    if goes and not _is_view(func):
        _count("kernel")
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if func._schema.is_mutable and there and isinstance(args[0], Tensor):
        if Recording.now is not None:
            Recording.now.add(func, args, kwargs)
        return args[0] if isinstance(found, Tensor) else found
    found = tree_map(lambda v: OnCuda(v) if goes and isinstance(v, Tensor) else v, found)
    if Recording.now is not None and goes:
        Recording.now.add(func, args, kwargs, found)
    return found


def _count_copy(source: Tensor, non_blocking: bool) -> None:
    """A copy from one device to the other: the host waits unless its side is pinned."""
    _count("copy")
    if not non_blocking or not (isinstance(source, OnCuda) or is_pinned(source)):
        _count("wait")


def _is_view(func: Any) -> bool:
    written = [r.alias_info is None or r.alias_info.is_write for r in func._schema.returns]
    return not all(written) or func._schema.name in ("aten::empty", "aten::detach")


def _check(name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raises if the operation takes tensors of two devices; counts how it indexes."""
    if name in INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        for index in indices:
            if not isinstance(index, OnCuda) or index.dtype in (torch.bool, torch.uint8):
                _count("wait")
        tensors = [tensor for tensor in tensors if all(tensor is not index for index in indices)]
        if not isinstance(args[0], OnCuda):
            tensors = [args[0], *indices]
    at_home = [t for t in tensors if not isinstance(t, OnCuda) and t.dim()]
    if at_home and any(isinstance(t, OnCuda) for t in tensors):
        raise _two_devices(name)


def _two_devices(name: str) -> RuntimeError:
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"cuda:0 and cpu! ({name}, {_place('')})"
    )


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, OnCuda) else value


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor of the CPU was given by `pin_memory`."""
    return hasattr(tensor.untyped_storage(), "pretends_pinned")


def _pinned(tensor: Tensor) -> Tensor:
    pinned = tensor.clone()
    pinned.untyped_storage().pretends_pinned = True  # type: ignore[attr-defined]
    return pinned


def _asked(value: Any) -> Any:
    """CUDA devices in arguments, by the name that torch's C++ code knows."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device(BACKEND, 0)
    return value


class _Functions(TorchFunctionMode):
    """Names the device for C++; does what makes or reads tensors beneath the dispatcher."""

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        for place, value in [*enumerate(args[:3]), *kwargs.items()]:
            if type(value) is str and value.partition(":")[0] == "cuda":
                value = torch.device(value)  # noqa: PLW2901
                if isinstance(place, str):
                    kwargs[place] = value
                else:
                    args = [*args[:place], value, *args[place + 1 :]]
        args, kwargs = tree_map(_asked, tuple(args)), tree_map(_asked, kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "pin_memory":
            return _pinned(args[0])
        if name == "is_pinned":
            return own is not None and not isinstance(own, OnCuda) and is_pinned(own)
        if isinstance(own, OnCuda):
            return _of_cuda(func, name, args, kwargs)
        return func(*args, **kwargs)


def _of_cuda(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    own: OnCuda = args[0]
    if name == "__setitem__":
        return _set(func, own, args[1], args[2])
    if name == "__getitem__":
        places = args[1] if isinstance(args[1], tuple) else (args[1],)
        copied = (list, np.ndarray)
        return func(own, tuple(torch.tensor(p) if isinstance(p, copied) else p for p in places))
    if name == "tolist":
        _count("wait")
        return own.here.tolist()
    if name in ("numpy", "__array__"):
        if name == "numpy" and kwargs.get("force"):
            _count("wait")
            return own.here.detach().numpy()
        raise TypeError(f"can't convert cuda:0 device type tensor to numpy ({_place('')})")
    if name == "__set__" and func.__self__ is Tensor.data:
        own.here = args[1].here
        return None
    return func(*args, **kwargs)


def _set(func: Any, own: OnCuda, places: Any, value: Any) -> None:
    indices = [
        torch.from_numpy(p) if isinstance(p, np.ndarray) else p
        for p in tree_leaves(places)
        if isinstance(p, Tensor | np.ndarray)
    ]
    filled = not isinstance(value, Tensor) or not value.dim()  # a masked fill waits for nothing
    if isinstance(value, Tensor) and value.dim() and not isinstance(value, OnCuda):
        if indices:
            raise _two_devices("aten::index_put_")
        _count_copy(value, False)
    for index in indices:
        by_mask = index.dtype in (torch.bool, torch.uint8) and not filled
        if by_mask or not isinstance(index, OnCuda):
            _count("wait")
    _count("kernel")
    func(*tree_map(_here, (own, places, value)))
    if Recording.now is not None:
        Recording.now.add(func, (own, places, value), {})


def _no_gradients(mode: bool = True) -> AbstractContextManager[Any]:
    return torch.no_grad() if mode else nullcontext()


class _Properties:
    name, total_memory = "pretend", 8 << 30


@contextmanager
def pretend() -> Iterator[torch.device]:
    """The device, for as long as the block runs; code of cnnviz is imported inside.

    Without inference mode, whose tensors may not share what wrapped ones have.
    """
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    of_cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "empty_cache": lambda: None,
        "synchronize": lambda _device=None: _count("wait"),
        "max_memory_allocated": lambda _device=None: 0,
        "set_sync_debug_mode": lambda _mode: None,
        "mem_get_info": lambda _device=None: (4 << 30, 8 << 30),
        "get_device_properties": lambda _device=None: _Properties,
        "CUDAGraph": Recording,
        "graph_pool_handle": lambda: (0, 1),
        "graph": _recording,
        "device": lambda _device: nullcontext(),
        "is_current_stream_capturing": lambda: Recording.now is not None,
    }
    EVENTS.clear()
    try:
        with (
            mock.patch.multiple(torch.cuda, **of_cuda),
            mock.patch.object(torch, "inference_mode", _no_gradients),
            _Functions(),
            _Dispatch(),
        ):
            yield CUDA
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)


def plant(file: str, old: str, new: str) -> None:
    """From now on the module of that file is imported with a fault in it."""
    path = Path(ROOT, file)
    fault = path.read_text(encoding="utf-8").replace(old, new)
    if fault == path.read_text(encoding="utf-8"):
        raise ValueError(f"'{old}' is not in {file}")
    get_code = SourceFileLoader.get_code

    def planted(self: SourceFileLoader, name: str) -> Any:
        mine = Path(self.path).resolve() == path
        return compile(fault, str(path), "exec") if mine else get_code(self, name)

    SourceFileLoader.get_code = planted  # type: ignore[method-assign]


def ran(line: list[str]) -> tuple[object, list[tuple[Event, int]]]:
    """The exit status of a command line, or what it printed if it failed, and the events."""
    from cnnviz.cli.main import run

    said = io.StringIO()
    with pretend(), redirect_stderr(said), redirect_stdout(said):
        try:
            status: object = run(line)
        except Exception:  # noqa: BLE001 (any failure is shown)
            status = traceback.format_exc()
        return status and f"{status} {said.getvalue()}"[-3000:], [*EVENTS.items()]


def main() -> None:
    """Runs a list of [command line, fault or null], each line in a fork if it has a fault."""
    if not register():
        sys.exit("this torch has no such devices")
    for name in ("torchvision", "matplotlib.figure", "sklearn.neighbors", "openTSNE"):
        importlib.import_module(name)  # once, not in each fork
    for line, fault in json.loads(sys.argv[1]):
        child = os.fork() if fault else 0
        if child:
            os.waitpid(child, 0)
            continue
        if fault:
            plant(*fault)
        print("ran", json.dumps(ran(line)), flush=True)  # noqa: T201
        if fault:
            os._exit(0)


if __name__ == "__main__":
    main()
