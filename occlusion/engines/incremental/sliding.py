"""Sliding operations on windows that were cut with all they need: no padding is left to do.

Convolution, pooling, padding and strided slicing of a traced network, each as a function from the
cut input (N, C, h, w) to the output windows. Along an axis where the kernel is 1 the stride is
already taken by the cut, which then reads every s-th position only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cnnviz.core.graph.call import Call
from cnnviz.core.graph.geometry import Window
from cnnviz.occlusion.engines.incremental.windows import Box
from cnnviz.occlusion.engines.winograd import WinogradConv2d


@dataclass(frozen=True, eq=False)
class Sliding:
    """One sliding operation.

    Attributes:
        window: its geometry.
        compute: cut input (N, C, h, w) and output box to the output windows.
        lowest: padding counts as minus infinity (max pooling).
        fill: what else padding counts as.
        macs: multiply-accumulates per output position.
    """

    window: Window
    compute: Callable[[Tensor, Box], Tensor]
    lowest: bool = False
    fill: float = 0.0
    macs: float = 0.0

    @property
    def local(self) -> bool:
        """Each output position reads the input position of the same number, and no other."""
        w = self.window
        plain = (w.kernel, w.stride, w.padding) == ((1, 1), (1, 1), ((0, 0), (0, 0)))
        return plain and not w.transposed


def sliding(
    call: Call, window: Window, extents: tuple[tuple[int, int], tuple[int, int]]
) -> Sliding:
    """The operation of a node whose geometry is a (not transposed) window.

    Args:
        call: the node with its fixed arguments evaluated; the others are not looked at.
        window: its geometry.
        extents: (H, W) of its input and of its output.
    """
    left = (
        1 if window.kernel[0] == 1 else window.stride[0],
        1 if window.kernel[1] == 1 else window.stride[1],
    )
    module, name = call.module, call.name
    if isinstance(module, WinogradConv2d) and window.padding_mode == "zeros":
        macs = float(module.weight.numel())
        return Sliding(window, lambda cut, _box: module.valid(cut), macs=macs)
    if isinstance(module, nn.Conv2d):
        numbers = (module.weight, module.bias, module.groups)
        return _convolution(window, left, *numbers)
    if name == "conv2d":
        numbers = (call.get(1, "weight"), call.get(2, "bias"), call.get(6, "groups", 1))
        return _convolution(window, left, *numbers)
    if isinstance(module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) or "max_pool2d" in name:
        return Sliding(window, _max_pool(window, left), lowest=True)
    if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d) or "avg_pool2d" in name:
        return Sliding(window, _average_pool(call, window, left, extents))
    fill = getattr(module, "value", 0.0) if module is not None else call.get(3, "value", 0.0)
    return Sliding(
        window, lambda cut, _box: cut, fill=float(fill or 0.0) if name != "getitem" else 0
    )


def _convolution(
    window: Window, stride: tuple[int, int], weight: Tensor, bias: Tensor | None, groups: int
) -> Sliding:
    laid_out = weight.contiguous(memory_format=torch.channels_last)

    def compute(cut: Tensor, _box: Box) -> Tensor:
        return F.conv2d(cut, laid_out, bias, stride, 0, window.dilation, groups)

    return Sliding(window, compute, macs=float(weight.numel()))


def _max_pool(window: Window, stride: tuple[int, int]) -> Callable[[Tensor, Box], Tensor]:
    return lambda cut, _box: F.max_pool2d(cut, window.kernel, stride, 0, window.dilation)


def _average_pool(
    call: Call, window: Window, stride: tuple[int, int], extents: tuple[Any, Any]
) -> Callable[[Tensor, Box], Tensor]:
    """Sums over the window, divided by as many positions as torch counts at that place."""
    module = call.module
    if isinstance(module, nn.AdaptiveAvgPool2d) or call.name == "adaptive_avg_pool2d":
        include, fixed = True, None
    elif isinstance(module, nn.AvgPool2d):
        include, fixed = module.count_include_pad, module.divisor_override
    else:
        include = call.get(5, "count_include_pad", True)
        fixed = call.get(6, "divisor_override")
    counts = [
        _counted(window, axis, extents[0][axis], extents[1][axis], include) for axis in (0, 1)
    ]
    uniform = all(int(c.min()) == int(c.max()) == window.kernel[a] for a, c in enumerate(counts))
    if fixed is not None or uniform:
        return lambda cut, _box: F.avg_pool2d(cut, window.kernel, stride, divisor_override=fixed)

    def compute(cut: Tensor, box: Box) -> Tensor:
        sums = F.avg_pool2d(cut, window.kernel, stride, divisor_override=1)
        rows = counts[0][torch.from_numpy(box.top_N)[:, None] + torch.arange(box.height)]
        columns = counts[1][torch.from_numpy(box.left_N)[:, None] + torch.arange(box.width)]
        divisor = (rows[:, None, :, None] * columns[:, None, None, :]).to(sums.device, sums.dtype)
        return sums.div_(divisor)

    return compute


def _counted(window: Window, axis: int, size_in: int, size_out: int, include: bool) -> Tensor:
    """How many rows (columns) torch counts for each output one."""
    before, after = window.padding[axis]
    start = torch.arange(size_out) * window.stride[axis] - before
    end = (start + window.kernel[axis]).clamp(max=size_in + after)
    if include:
        return end - start
    return end.clamp(max=size_in) - start.clamp(min=0)
