"""A network that is held to what it was when it was loaded: rows of numbers, one a picture.

What a user's code answers may depend on the picture: another type, another number of classes, an
exception of its own, the end of the program. Each of these is an error with one line, for the
picture or the batch it happens to. Numbers that are not finite are found by the analyses, which
know the picture.

Shapes: N images, K classes or values.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.device import is_out_of_memory
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError
from cnnviz.core.models.factories import where


def answer(
    call: Callable[[], object], images: int, shape: tuple[int, ...] | None, name: str
) -> Any:
    """What a call of a network gives; its failures are said in a line.

    Args:
        call: runs it.
        images: N, in that call.
        shape: of the answer to one picture; None where what it puts out is of no interest.
        name: of the network, for messages.

    Raises:
        CnnvizError: it raised something, or put out something else.
    """
    try:
        rows = call()
    except CnnvizError:
        raise
    except USER_CODE_ERRORS as error:
        if is_out_of_memory(error) or _is_ours(error):
            raise
        raise CnnvizError(f"{name} fails on a picture: {where(error)}") from error
    if shape is None or isinstance(rows, fx.Proxy):
        return rows
    if not isinstance(rows, Tensor):
        what = type(rows).__name__
    elif rows.is_floating_point() and rows.shape == (images, *shape):
        return rows
    else:
        what = f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
    raise CnnvizError(
        f"{name} puts out {what} for {images} of the pictures; by its answer to a blank one it was "
        f"to be floating-point numbers {(images, *shape)}"
    )


def guarded(module: nn.Module, name: str, classes: int) -> nn.Module:
    """The same network, whose calls fail with a line and give rows (N, K) or fail.

    Its class is replaced, so that layers keep their names, and graphs do not see it.

    Args:
        module: images (N, C, H, W) to rows of numbers.
        name: of it, for messages.
        classes: K; 0 where what it puts out is of no interest.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module  # its class cannot be replaced; its types are checked when it is compiled

    def call(self: nn.Module, images: Any, *others: Any, **options: Any) -> object:
        shape = (classes,) if classes and isinstance(images, Tensor) else None
        run = partial(kind.__call__, self, images, *others, **options)
        return answer(run, len(images) if shape else 0, shape, name)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return module


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised by an analysis that watches the network: a bug, which should show."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("cnnviz.") and not module.startswith(f"{__package__}.")
