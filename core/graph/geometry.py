"""Where an operation looks: for each output position of a map, which input positions it reads.

A network over images is a chain of operations on maps (N, C, H, W). For questions about place
(receptive fields, what a mask can reach) an operation is one of five kinds:

    Image      the image itself
    Fixed       does not depend on the pixels: parameters, shapes, arithmetic on shapes
    Pointwise   output (y, x) reads input (y, x) and nothing else, in all channels
    Merge       Pointwise with several inputs: add, multiply, concatenate channels
    Window      output row o reads input rows o*s - p + i*d, i = 0 … k-1; the same for columns
    Mix         every output may read every input position

Rows and columns never interact, so everything here is arithmetic on one axis at a time:
axis 0 is the rows, axis 1 the columns, and an interval (first, last) includes both ends.
"""

from dataclasses import dataclass

Pair = tuple[int, int]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Image:
    """The image that goes in."""


@dataclass(frozen=True)
class Fixed:
    """The same whatever the pixels are: a parameter, a shape, a number."""


@dataclass(frozen=True)
class Pointwise:
    """Each position by itself: activation, batch norm, dropout, channel slicing, 1x1 linear."""


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

    def reads(self, axis: int, first: int, last: int) -> Interval:
        """Input rows (or columns) that the outputs first … last read; may run over the edge.

        For a transposed window the interval can be empty (its last before its first) only if no
        input reaches these outputs.
        """
        stride, before = self.stride[axis], self.padding[axis][0]
        extent = (self.kernel[axis] - 1) * self.dilation[axis]
        if self.transposed:
            return -(-(first + before - extent) // stride), (last + before) // stride
        return first * stride - before, last * stride - before + extent

    def reaches(self, axis: int, first: int, last: int) -> Interval:
        """Output rows (or columns) that read any of the inputs first … last, unclipped.

        Padding modes other than zeros copy inputs to the edge; that is not counted here.
        The interval is empty (its last before its first) where a stride steps over the inputs.
        """
        stride, before = self.stride[axis], self.padding[axis][0]
        extent = (self.kernel[axis] - 1) * self.dilation[axis]
        if self.transposed:
            return first * stride - before, last * stride - before + extent
        return -(-(first + before - extent) // stride), (last + before) // stride


Geometry = Image | Fixed | Pointwise | Merge | Mix | Window


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
    """The window of a convolution, from the arguments that torch takes (padding 'same' too)."""
    spread = pair(dilation)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        total = [(k - 1) * d for k, d in zip(kernel, spread, strict=True)]
        sides = (
            (total[0] // 2, total[0] - total[0] // 2),
            (total[1] // 2, total[1] - total[1] // 2),
        )
    else:
        rows, columns = pair(padding)
        sides = ((rows, rows), (columns, columns))
    return Window(kernel, pair(stride), sides, spread, padding_mode=padding_mode)


def pooling(
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] | None,
    padding: int | tuple[int, ...],
    dilation: int | tuple[int, ...],
    ceil_mode: bool,
) -> Window:
    """The window of a max or average pool, from the arguments that torch takes."""
    rows, columns = pair(padding)
    size = pair(kernel)
    step = pair(stride) if stride not in (None, (), []) else size
    return Window(size, step, ((rows, rows), (columns, columns)), pair(dilation), ceil_mode)
