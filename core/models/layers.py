"""Layers by name: finding them, reading and changing their outputs, and viewing these as maps.

A layer is a submodule under its dotted name (`layer1.0.conv1`). Hooks are borrowed:
`watch_outputs` and `replace_outputs` remove them in `finally`.

Convolutions return (N, C, H, W). Blocks behind a permute return (N, H, W, C), transformers a row of
tokens (N, T, C): those of a grid of patches, row by row, after some without a position (class
token, registers). All are maps of C channels, if it is clear which axis is which.

Shapes: N images, C channels, T tokens, H W rows and columns of the maps.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import UsageError, nearest
from cnnviz.core.graph.trace import Untraceable, describe, trace
from cnnviz.core.models.behaviour import Wrapper, compiled_parts
from cnnviz.core.models.load import Model

_log = logging.getLogger("cnnviz")

CHANNELS_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)
MAXIMUM_EXTRA = 9
"""Tokens before the grid, at most: a class token, one of distillation, registers."""

MapShape = tuple[int, int, int]
"""(channels, rows, columns) of a layer's output for one image."""


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every submodule except the root, by dotted name, in order of definition.

    Parts that TorchScript compiled take no hooks: they and what lies inside are left out.
    """
    parts = compiled_parts(module)
    return {
        name: layer
        for name, layer in module.named_modules()
        if name and _part_of(name, parts) is None
    }


def _part_of(name: str, parts: Sequence[str]) -> str | None:
    """The part that a layer is, or lies in."""
    return next((part for part in parts if f"{name}.".startswith(f"{part}.")), None)


def conv_layers(module: nn.Module) -> list[str]:
    """Names of the two-dimensional convolutions, in order of definition."""
    return [name for name, layer in named_layers(module).items() if isinstance(layer, nn.Conv2d)]


def find_layer(module: nn.Module, name: str, model_name: str) -> nn.Module:
    """Return the layer of that name; a UsageError offers the nearest names."""
    check_open(module, model_name)
    layers = named_layers(module)
    if name in layers:
        return layers[name]
    if part := _part_of(name, compiled_parts(module)):
        raise UsageError(
            f"layer '{name}' of {model_name} cannot be reached: '{part}' is TorchScript; build it "
            "without torch.jit.script"
        )
    if not layers:
        raise UsageError(
            f"no layer '{name}' in {model_name}, which has no visible layers (a black box, or a "
            "single layer); those of a network in Python are visible: --model FILE.py:FACTORY"
        )
    last = conv_layers(module)[:-3:-1]
    near = ", ".join(nearest(name, [*last, *layers]))
    last_text = f"; the last convolutions are {', '.join(last)}" if last else ""
    raise UsageError(
        f"no layer '{name}' in {model_name}; the nearest are {near}{last_text} "
        f"(cnnviz layers --model {model_name} lists all)"
    )


def check_open(module: nn.Module, model_name: str) -> None:
    """Raise UsageError for a TorchScript or torch.export archive, whose layers are out of reach."""
    inner = module
    while isinstance(inner, Wrapper):
        inner = inner.network
    scripted = isinstance(inner, torch.jit.ScriptModule)
    exported = any(isinstance(layer, fx.GraphModule) for layer in module.modules())
    if scripted and ":" in model_name:
        raise UsageError(
            f"{model_name} returns a TorchScript network, whose layers cannot be reached; return "
            "it as it is before torch.jit.script or torch.jit.trace"
        )
    if scripted or (exported and not conv_layers(module)):
        raise UsageError(
            f"{model_name} is an archive, whose layers cannot be reached; load its weights into "
            f"the network's code: --model NAME --checkpoint {model_name}"
        )


@contextmanager
def replace_outputs(
    module: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Pass each named layer's output through a function inside the `with`.

    Raises:
        KeyError: there is no such layer.
        UsageError: the module is an archive; or a layer returns something other than a tensor.
    """
    check_open(module, "FILE")
    layers = named_layers(module)

    def hook(name: str, _layer: nn.Module, _inputs: object, output: object) -> Tensor:
        if isinstance(output, Tensor):
            return changes[name](output)
        raise UsageError(
            f"layer '{name}' returns {type(output).__name__}, not a tensor; name a layer inside it"
        )

    with ExitStack() as stack:
        for name in changes:
            handle = layers[name].register_forward_hook(partial(hook, name))
            stack.callback(handle.remove)
        yield


@contextmanager
def watch_outputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named layers; raises as `replace_outputs`.

    Yields:
        Layer name to output, filled by the forward passes inside the `with`, each replacing the one
        before. A layer that runs more than once in a pass leaves its last output.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        # A copy, since the next layer may work in place (a ReLU after a convolution).
        outputs.pop(name, None)  # so that the last to run comes last
        outputs[name] = output.clone()
        return output

    with replace_outputs(module, {name: partial(keep, name) for name in names}):
        yield outputs


def trial_outputs(model: Model, names: Sequence[str]) -> dict[str, Tensor]:
    """The named layers' outputs for one blank image, in the order in which they last ran.

    Layers that do not run are left out.
    """
    with watch_outputs(model.module, names) as outputs:
        _run_blank(model)
    return outputs


def _run_blank(model: Model) -> None:
    with torch.inference_mode():
        model.outputs(model.blank())


def count_runs(model: Model, names: Sequence[str]) -> Counter[str]:
    """How often each of these layers runs in a pass."""
    runs: Counter[str] = Counter()

    def count(name: str, output: Tensor) -> Tensor:
        runs[name] += 1
        return output

    with replace_outputs(model.module, {name: partial(count, name) for name in names}):
        _run_blank(model)
    return runs


def note_repeats(model: Model, names: Sequence[str]) -> None:
    """Print a note for each of these layers that runs more than once in a pass."""
    for name, times in count_runs(model, names).items():
        if times > 1:
            _log.warning(
                "note: layer %r runs %d times in a forward pass; its last run is used", name, times
            )


def not_run(name: str) -> UsageError:
    """The error to raise for a layer that no forward pass reaches."""
    return UsageError(f"layer '{name}' does not run in a forward pass; name another one")


class Form(StrEnum):
    """The axes of a layer's output."""

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
        extra: tokens before the grid.
    """

    form: Form
    shape: MapShape
    extra: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """View the output, for any number of images, as maps (N, C, H, W)."""
        if self.form is Form.MAPS:
            return output
        if self.form is Form.LAST:
            return output.movedim(3, 1)
        if self.form is Form.TOKENS:
            return output[:, self.extra :].movedim(2, 1).reshape(len(output), *self.shape)
        return output[:, :, None, None]

    @property
    def axis(self) -> int:
        """The axis of channels in the layer's output."""
        return {Form.LAST: 3, Form.TOKENS: 2}.get(self.form, 1)

    @property
    def patches(self) -> bool:
        """Whether the units are a regular grid of patches of the image."""
        return self.form in (Form.TOKENS, Form.LAST)


def token_grid(count: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
    """The only grid of square patches of the image that so many tokens can be; None if ambiguous.

    Args:
        count: T.
        size: (rows, columns) of the image.

    Returns:
        The number of tokens before the grid, and its (rows, columns).
    """
    grids = {
        (size[0] // side, size[1] // side)
        for side in range(1, min(size))
        if size[0] % side == 0 and size[1] % side == 0
    }
    fitting = [
        (count - rows * columns, (rows, columns))
        for rows, columns in grids
        if 0 <= count - rows * columns <= min(MAXIMUM_EXTRA, rows * columns - 1)
    ]
    return fitting[0] if len(fitting) == 1 else None


class Layouts:
    """The layouts of a model's layers, from a pass over a blank image.

    The network is traced only if a shape alone is ambiguous.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._layers = named_layers(model.module)
        self._axes: Mapping[str, tuple[int, int] | None] | None = None

    def of(self, names: Sequence[str], *, refuse: bool = True) -> dict[str, Layout]:
        """Layouts by name, in the order given, without layers that do not run.

        `refuse` decides whether a layer without maps raises UsageError, or is left out.
        """
        layouts: dict[str, Layout] = {}
        for name, output in trial_outputs(self._model, names).items():
            layout = self._layout(name, output)
            if layout is not None:
                layouts[name] = layout
            elif refuse:
                shape = "x".join(map(str, output.shape[1:]))
                raise UsageError(
                    f"layer '{name}' of {self._model.name} returns {shape}, not channels of maps; "
                    "name a convolution or a layer after one"
                )
        return {name: layouts[name] for name in names if name in layouts}

    def _layout(self, name: str, output: Tensor) -> Layout | None:
        shape = tuple(output.shape)
        if shape[0] != 1:  # windows of the image, as if they were images
            return None
        if len(shape) == 2:
            return Layout(Form.VECTOR, (shape[1], 1, 1))
        if len(shape) == 3:
            grid = token_grid(shape[1], self._model.input_size)
            return Layout(Form.TOKENS, (shape[2], *grid[1]), grid[0]) if grid else None
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
        axes = self._traced_axes().get(name)
        return axes == (1, 2) or (axes is None and last < second)

    def _traced_axes(self) -> Mapping[str, tuple[int, int] | None]:
        """Layer name to its axes of rows and columns; empty if the network cannot be traced."""
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
    """Difference of a grid's proportions to the image's; infinite if it is finer than the image."""
    rows, columns = (whole / part for whole, part in zip(size, grid, strict=True))
    return math.inf if min(rows, columns) < 1 else abs(math.log(rows / columns))
