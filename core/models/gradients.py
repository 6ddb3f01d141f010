"""Gradients of a network that is only borrowed: none is left in it.

`Tensor.backward` is what every network stands, those with re-entrant checkpointing too, which
`autograd.grad` refuses; its parameters are frozen meanwhile, so that nothing collects in them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient for as long as the `with` lasts."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def gradients(score: Tensor, tensors: Sequence[Tensor], name: str) -> list[Tensor | None]:
    """The gradient of one number with respect to some tensors; None where it does not reach.

    Call it inside the `with frozen(module)` of the forward pass; the graph is kept.

    Args:
        score: what is differentiated, one element.
        tensors: leaves, or values that the score was made from.
        name: of the model, for messages.

    Raises:
        CnnvizError: the forward pass cuts all gradients, or the backward pass fails.
    """
    if not score.requires_grad:
        raise CnnvizError(
            f"{name} cuts its gradient (torch.no_grad, .detach() or numpy in its forward), so "
            "there is none to show; cnnviz occlude needs none"
        )
    asking = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in asking:
        tensor.retain_grad()
        tensor.grad = None
    try:
        score.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CnnvizError(
            f"the backward pass of {name} fails: {reason}; cnnviz occlude needs none"
        ) from error
    found = [tensor.grad for tensor in tensors]
    for tensor in asking:
        tensor.grad = None
    return found
