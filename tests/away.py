"""A device that is not there: its tensors lie in memory, and no operation may mix them with others.

`with away():` torch knows the device `away:0`. What is sent there stays there until it is copied
back, as on a GPU: an operation that takes tensors from both sides fails, whichever machine runs
the tests. Indices may come from the processor, as on CUDA.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "away"
MAY_MIX = {"aten::copy_", "aten::index", "aten::index_put_", "aten::index_put"}
BACK: Counter[str] = Counter()
"""How many numbers each operation has brought back to the processor."""


def register() -> bool:
    """Makes the device known to torch; whether this torch lets it."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    except ImportError:
        return False
    _setup_privateuseone_for_python_backend(NAME)
    return True


class Away(Tensor):
    """A tensor on the device; `here` is what it holds."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Away":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

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
    there = [tensor for tensor in tensors if isinstance(tensor, Away)]
    goes = bool(there) if asked is None else asked.type == NAME
    if asked is None and there and name not in MAY_MIX:
        home = [t for t in tensors if not isinstance(t, Away) and t.dim()]
        if home:
            raise RuntimeError(f"{name}: tensors on two devices")
    if name == "aten::copy_" and there and not isinstance(args[0], Away):
        goes = False
    if there and (not goes or name == "aten::_local_scalar_dense"):
        BACK[name] += sum(tensor.numel() for tensor in there)
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if func._schema.is_mutable and there and isinstance(args[0], Tensor):
        return args[0] if isinstance(found, Tensor) else found
    return tree_map(lambda v: Away(v) if goes and isinstance(v, Tensor) else v, found)


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.here if isinstance(value, Away) else value


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What makes tensors beneath the dispatcher is done here: `torch.tensor`, numbers in places."""

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if func.__name__ == "__setitem__" and isinstance(args[0], Away):
            if isinstance(args[2], Tensor) and args[2].dim() and not isinstance(args[2], Away):
                raise RuntimeError("__setitem__: tensors on two devices")
            return func(*tree_map(_here, args))
        if func.__name__ == "__getitem__" and isinstance(args[0], Away):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(p) if type(p) is list else p for p in places))
        if func.__name__ == "tolist" and isinstance(args[0], Away):
            BACK["tolist"] += args[0].numel()
            return args[0].here.tolist()
        if (
            func.__name__ == "__set__"
            and func.__self__ is Tensor.data
            and isinstance(args[0], Away)
        ):
            args[0].here = args[1].here
            return None
        return func(*args, **kwargs)


def _no_gradients(mode: bool = True) -> AbstractContextManager[Any]:
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def away() -> Iterator[torch.device]:
    """The device, for as long as the block runs.

    Without inference mode, whose tensors may not share what wrapped ones have.
    """
    inference = torch.inference_mode
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.inference_mode = _no_gradients  # type: ignore[misc, assignment]
    BACK.clear()
    try:
        with _Functions(), _Dispatch():
            yield torch.device(NAME, 0)
    finally:
        torch.inference_mode = inference  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(swap)
