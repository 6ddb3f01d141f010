"""Work on a GPU whose launches are recorded once and then replayed together, as a CUDA graph.

The host takes some microseconds to launch a kernel, which is longer than many windows take to
compute, and an image of ResNet-18 takes over a thousand launches. Images of one size with the same
masks take the same ones: only the pixels differ. See CUDA's programming guide, "CUDA Graphs".
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cnnviz.core.device import rounding
from cnnviz.core.errors import CnnvizError, one_line

Tensors = tuple[Tensor, ...]
_log = logging.getLogger("cnnviz")


class Replay:
    """A function of tensors on a GPU, whose shapes and other data do not change from call to call.

    Its first run as it is fills the caches; after the second its launches are recorded, replayed,
    and the results compared. Nothing is replayed where recording fails (the function waits for the
    device, or copies from the host) or the results differ by more than rounding; a warning then has
    the reason.
    """

    def __init__(self, run: Callable[..., Tensors], pool: Any) -> None:
        """Records `run`; `pool` is the memory that its graph may share with others."""
        self._run, self._pool, self._runs = run, pool, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = ()  # what the graph reads
        self._outputs: Tensors = ()  # what it writes

    @property
    def ready(self) -> bool:
        """Whether there is a recording."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensors:
        """What the function returns for these inputs, by one launch."""
        assert self._graph is not None  # noqa: S101 (it is ready)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def ran(self, inputs: Tensors, outputs: Tensors) -> None:
        """Notes that the function ran as it is, and records its launches the second time."""
        self._runs += 1
        if self._runs != 2:
            return
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.device(inputs[0].device),
                torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"),
            ):
                self._outputs = self._run(*self._inputs)
            self._graph = graph
            if not all(map(_same, self(*inputs), outputs)):
                self._give_up("the results differ")
        except (RuntimeError, CnnvizError) as error:  # such as too little memory for both
            self._give_up(one_line(error))

    def _give_up(self, reason: str) -> None:
        self._graph, self._inputs, self._outputs = None, (), ()
        _log.warning("no CUDA graph is used, which only takes longer: %s", reason)


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by rounding at most."""
    scale = expected.float().nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()
    limit = rounding(expected.dtype) * scale
    return torch.allclose(found, expected, rtol=0, atol=limit, equal_nan=True)
