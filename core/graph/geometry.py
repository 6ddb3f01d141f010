"""Where an operation looks: for each output position of a map, which input positions it reads.

A network over images is a chain of operations on maps (N, C, H, W). For questions about location
(receptive fields, what a mask can reach) an operation is one of six kinds:

    Image      the image itself
    Fixed      does not depend on the pixels: parameters, shapes, arithmetic on shapes
    Pointwise  output (y, x) reads input (y, x) and nothing else, in all channels
    Merge      Pointwise with several inputs: add, multiply, concatenate channels
    Window     output row o reads input rows o*s - p + i*d, i = 0 … k-1; the same for columns
    Mix        every output may read every input position

Rows and columns never interact, so everything here is arithmetic on one axis at a time:
axis 0 is the rows, axis 1 the columns, and an interval (first, last) includes both ends.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Pair = tuple[int, int]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Image:
    """The input image."""


@dataclass(frozen=True)
class Fixed:
    """Independent of the pixels: a parameter, a shape, a number."""


@dataclass(frozen=True)
class Pointwise:
    """Each position separately: activation, batch norm, dropout, channel slicing, 1x1 linear."""


@dataclass(frozen=True)
class Merge:
    """Several maps of one size, position by position: add, multiply, concatenated channels."""


@dataclass(frozen=True)
class Mix:
    """All positions at once: flatten, attention, a gate computed from the whole map.

    `mean` marks the plain average over all rows and columns, which can be updated from a change.
    """

    mean: bool = False


@dataclass(frozen=True)
class Window:
    """A sliding window: convolution, pooling, padding (kernel 1), strided slicing (kernel 1).

    Pairs are (vertical, horizontal). `padding` is ((top, bottom), (left, right)) and may be
    negative where rows are cut off; `padding_mode` is torch's name: zeros, reflect, replicate or
    circular. With `transposed` the roles of input and output are exchanged, as in ConvTranspose2d.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    transposed: bool = False
    padding_mode: str = "zeros"

    def reaches(self, axis: int, first_I: Ints, last_I: Ints) -> tuple[Ints, Ints]:
        """Output rows (or columns) that read any of the inputs first … last, unclipped.

        Not for transposed windows. An interval is empty (its last before its first) where a stride
        skips the inputs. Copies of inputs in the padding are not counted.
        """
        stride, before = self.stride[axis], self.padding[axis][0]
        extent = (self.kernel[axis] - 1) * self.dilation[axis]
        return -(-(first_I + before - extent) // stride), (last_I + before) // stride


Geometry = Image | Fixed | Pointwise | Merge | Mix | Window


def copied_from(positions: Ints, extent: int, padding_mode: str) -> Ints:
    """Which row of a map each row of its padded version shows; -1 for padding with zeros."""
    if padding_mode == "reflect":
        folded = np.abs(positions)
        return np.where(folded >= extent, 2 * (extent - 1) - folded, folded)
    if padding_mode == "replicate":
        return np.clip(positions, 0, extent - 1)
    if padding_mode == "circular":
        return positions % extent
    return np.where((positions >= 0) & (positions < extent), positions, -1)


def pair(value: int | tuple[int, ...] | list[int]) -> Pair:
    """Torch's `3` or `(3, 3)` or `[3]` as two numbers: vertical, horizontal."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def convolution(
    kernel: Pair,
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    padding_mode: str = "zeros",
) -> Window:
    """The window of a convolution, from torch's arguments (padding 'same' too)."""
    dilations = pair(dilation)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        total = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        sides = (
            (total[0] // 2, total[0] - total[0] // 2),
            (total[1] // 2, total[1] - total[1] // 2),
        )
    else:
        rows, columns = pair(padding)
        sides = ((rows, rows), (columns, columns))
    return Window(kernel, pair(stride), sides, dilations, padding_mode=padding_mode)


def pooling(
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None,
    padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    ceil_mode: bool,
) -> Window:
    """The window of a max or average pool, from torch's arguments."""
    rows, columns = pair(padding)
    size = pair(kernel)
    step = pair(stride) if stride not in (None, (), []) else size
    return Window(size, step, ((rows, rows), (columns, columns)), pair(dilation), ceil_mode)


_PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad2d: "zeros", nn.ConstantPad2d: "zeros", nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate", nn.CircularPad2d: "circular",
}  # fmt: skip


def window_of(module: nn.Module, value: Any) -> Window | None:
    """The window of one of torch's modules that returned `value`; None if it is not known."""
    if isinstance(module, nn.Conv2d):
        return convolution(
            pair(module.kernel_size),
            module.stride,
            module.padding,
            module.dilation,
            module.padding_mode,
        )
    if isinstance(module, nn.ConvTranspose2d):
        plain = convolution(
            pair(module.kernel_size), module.stride, module.padding, module.dilation
        )
        return replace(plain, transposed=True)
    if isinstance(module, nn.MaxPool2d) and isinstance(value, Tensor):
        return pooling(
            module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )
    if isinstance(module, nn.AvgPool2d):
        return pooling(module.kernel_size, module.stride, module.padding, 1, module.ceil_mode)
    if isinstance(module, tuple(_PADS)):
        mode = next(mode for kind, mode in _PADS.items() if isinstance(module, kind))
        sides: Any = module.padding
        left, right, top, bottom = sides
        return Window((1, 1), padding=((top, bottom), (left, right)), padding_mode=mode)
    return None
