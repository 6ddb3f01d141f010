"""What a layer puts out, as maps: where its channels, rows and columns lie.

Convolutions put out (N, C, H, W). Blocks behind a permute put out (N, H, W, C), transformers a row
of tokens (N, T, C): those of a grid of patches, row by row, behind some that stand for no place
(class token, registers). All are maps of C channels, where it is plain which axis is which.

Shapes: N images, C channels, T tokens, H W rows and columns of the maps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cnnviz.core.errors import UsageError
from cnnviz.core.graph.trace import Untraceable, describe, trace
from cnnviz.core.models.layers import named_layers, trial_outputs

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

CHANNELS_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
MOST_EXTRA = 9
"""Tokens before the grid, at most: a class token, one of distillation, registers."""

MapShape = tuple[int, int, int]
"""(channels, rows, columns) of what a layer puts out for one image."""


class Form(StrEnum):
    """How a layer's output lies."""

    MAPS = "N, C, H, W"
    LAST = "N, H, W, C"
    TOKENS = "N, T, C"
    VECTOR = "N, C"


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes maps.

    Attributes:
        form: which axis is which.
        shape: C, H, W.
        extra: tokens before the grid's.
    """

    form: Form
    shape: MapShape
    extra: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """The output, for any number of images, as maps (N, C, H, W)."""
        if self.form is Form.MAPS:
            return output
        if self.form is Form.LAST:
            return output.movedim(3, 1)
        if self.form is Form.TOKENS:
            return output[:, self.extra :].movedim(2, 1).reshape(len(output), *self.shape)
        return output[:, :, None, None]

    @property
    def patches(self) -> bool:
        """Whether the units are a grid of patches, evenly over the image."""
        return self.form in (Form.TOKENS, Form.LAST)


def token_grid(count: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """The one way in which so many tokens are a grid of square patches of the image, if there is.

    Args:
        count: T.
        size: (rows, columns) of the image.

    Returns:
        The tokens before the grid, and its (rows, columns).
    """
    grids = {
        (size[0] // side, size[1] // side)
        for side in range(1, min(size))
        if size[0] % side == 0 and size[1] % side == 0
    }
    found = [
        (count - rows * columns, (rows, columns))
        for rows, columns in grids
        if 0 <= count - rows * columns <= min(MOST_EXTRA, rows * columns - 1)
    ]
    return found[0] if len(found) == 1 else None


class Layouts:
    """The layouts of a model's layers, found out by a pass over a blank image.

    The graph of the network is only made where the shape alone does not tell.
    """

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._layers = named_layers(model.module)
        self._axes: Mapping[str, tuple[int, int] | None] | None = None

    def of(self, names: Sequence[str], *, refuse: bool = True) -> dict[str, Layout]:
        """By name, in the order given; without layers that do not run in a forward pass.

        Args:
            names: of layers that exist.
            refuse: whether a layer without maps is an error, or left out.

        Raises:
            UsageError: a layer puts out something else than maps, tokens of a grid or a vector.
        """
        found: dict[str, Layout] = {}
        for name, output in trial_outputs(self._model, names).items():
            layout = self._layout(name, output)
            if layout is not None:
                found[name] = layout
            elif refuse:
                shape = "x".join(map(str, output.shape[1:]))
                raise UsageError(
                    f"layer '{name}' of {self._model.name} puts out {shape}, not channels of maps; "
                    f"name a convolution or what follows one"
                )
        return {name: found[name] for name in names if name in found}

    def _layout(self, name: str, output: Tensor) -> Layout | None:
        shape = tuple(output.shape)
        if shape[0] != 1:  # windows of the image, as if they were images
            return None
        if len(shape) == 2:
            return Layout(Form.VECTOR, (shape[1], 1, 1))
        if len(shape) == 3:
            found = token_grid(shape[1], self._model.input_size)
            return Layout(Form.TOKENS, (shape[2], *found[1]), found[0]) if found else None
        if len(shape) != 4:
            return None
        if self._is_channels_last(name, shape):
            return Layout(Form.LAST, (shape[3], shape[1], shape[2]))
        return Layout(Form.MAPS, (shape[1], shape[2], shape[3]))

    def _is_channels_last(self, name: str, shape: tuple[int, ...]) -> bool:
        if isinstance(self._layers[name], CHANNELS_SECOND):
            return False
        size = self._model.input_size
        second, last = _misfit(shape[2:4], size), _misfit(shape[1:3], size)
        if second == 0 < last:
            return False
        axes = self._places().get(name)
        return axes == (1, 2) or (axes is None and last < second)

    def _places(self) -> Mapping[str, tuple[int, int] | None]:
        """Layer name to its axes of rows and columns; empty where nobody can tell."""
        if self._axes is None:
            model = self._model
            try:
                graph = describe(
                    trace(model.module),
                    model.input_size,
                    channels=model.preprocess.channels,
                    device=model.device,
                    dtype=model.precision.dtype,
                )
                self._axes = {name: graph.info[node].axes for name, node in graph.layers.items()}
            except Untraceable:
                self._axes = {}
        return self._axes


def _misfit(grid: Sequence[int], size: tuple[int, int]) -> float:
    """How far a grid is from the image's proportions; infinite where it is finer than the image."""
    rows, columns = (whole / part for whole, part in zip(size, grid, strict=True))
    return math.inf if min(rows, columns) < 1 else abs(math.log(rows / columns))
