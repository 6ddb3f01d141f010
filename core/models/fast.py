"""The same network, sooner: batch norms folded into convolutions, maps that lie channels last.

What a command watches or changes keeps its name and its own output; all else may be folded away.
The result is compared with the original on a random picture, there and at every kept layer; a
network that cannot be traced, or gives other numbers, runs as it is, channels last if it bears
that.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnnviz.core.device import rounding
from cnnviz.core.errors import USER_CODE_ERRORS
from cnnviz.core.graph.fold import fold
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.guarded import guarded
from cnnviz.core.models.layers import conv_layers, named_layers, watch_outputs

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model


def fast(model: "Model", keep: Collection[str] = ()) -> "Model":
    """The model with a module that answers sooner; the given one is left as it was.

    Args:
        model: the network.
        keep: layers that will be watched or changed, by name.

    Returns:
        A model whose module has the layers of `keep` under their names, or `model` itself where
        nothing is to be gained.
    """
    if model.region is not None or not conv_layers(model.module):
        return model
    image = random_image(tuple(model.blank().shape[1:]), model.device, model.precision.dtype)
    names = list(keep)
    try:
        with torch.inference_mode(False), torch.no_grad():
            module: nn.Module = fold(trace(model.module, names), names)
        check_same(model.module, module, image, names)
        module = guarded(module, model.name, classes=0)
    except USER_CODE_ERRORS:
        module, layout = laid_out(model.module, image)
        if layout is not torch.channels_last:
            return model
    return replace(model, module=module, layout=torch.channels_last)


def random_image(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal noise (1, C, H, W), the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *shape, generator=generator).to(device, dtype)


def check_same(
    module: nn.Module, other: nn.Module, image_1CHW: Tensor, layers: Sequence[str] = ()
) -> None:
    """Compares two networks on an image: a trace freezes decisions that are taken on values.

    Args:
        module: the network.
        other: what shall stand for it.
        image_1CHW: the image.
        layers: whose outputs are compared too.

    Raises:
        Untraceable: they differ by more than rounding.
    """
    if missing := [name for name in layers if name not in named_layers(other)]:
        raise Untraceable(f"layer '{missing[0]}' is no step of its traced graph")
    # One after the other: the two may share layers, and then each would see the other's pass.
    expected, expected_layers = _outputs(module, image_1CHW, layers)
    got, got_layers = _outputs(other, image_1CHW, layers)
    _check_close(expected, got, "its traced graph")
    for name, output in expected_layers.items():
        what = f"layer '{name}' of its traced graph"
        _check_close(output, got_layers.get(name, torch.zeros(0)), what)


def _outputs(
    module: nn.Module, image_1CHW: Tensor, layers: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.inference_mode():
        if not layers:
            return module(image_1CHW), {}
        with watch_outputs(module, layers) as outputs:
            return module(image_1CHW), outputs


def _check_close(expected: Tensor, got: Tensor, what: str) -> None:
    if expected.shape != got.shape:
        raise Untraceable(f"{what} gives outputs of another shape")
    if not torch.equal(expected.isfinite(), got.isfinite()):
        raise Untraceable(f"{what} gives numbers that are not finite elsewhere")
    difference = float((expected.float() - got.float()).abs().max())
    if difference > rounding(expected.dtype) * float(expected.float().abs().max()):
        raise Untraceable(f"{what} gives other numbers")


def laid_out(
    module: nn.Module,
    image_1CHW: Tensor,
    change: Callable[[nn.Module], None] = lambda _copy: None,
) -> tuple[nn.Module, torch.memory_format]:
    """A copy of the module in channels-last layout, or as it is where it cannot stand that.

    Args:
        module: the network.
        image_1CHW: to compare the two on.
        change: what else is done to the copy.
    """
    channels_last = torch.channels_last
    try:
        with torch.no_grad():  # a copy of TorchScript would remember what it was copied from
            plain = copy.deepcopy(module).to(memory_format=channels_last)
        change(plain)
        check_same(module, plain, image_1CHW.contiguous(memory_format=channels_last))
    except (Untraceable, *USER_CODE_ERRORS):
        return module, torch.contiguous_format
    return plain, channels_last
