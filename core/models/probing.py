"""Trying a network on a blank image: channels it takes, what it puts out, shapes of lazy layers.

Shapes: N images, H W rows and columns.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from cnnviz.core.choices import LUMINANCE
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError


class GreyInput(nn.Module):
    """Feeds a network of one input channel with the luminance of RGB (ITU-R BT.601 weights)."""

    luminance: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # No layer: `first` and `all` are of the user's network.
        weight = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        self.register_buffer("luminance", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to what the network makes of (N, 1, H, W)."""
        out: Tensor = self.network(functional.conv2d(x, self.luminance))
        return out


def _essence(error: BaseException) -> str:
    """The line of an error that says it; TorchScript puts it last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "TorchScript" in lines[0] else lines[0]).strip()[:200]


def _remedy(error: BaseException) -> str:
    """What helps: another size does not where the network wants other dimensions."""
    if re.search(r"conv3d|5D|5-D|5-dim", str(error)):
        return "; a picture has no depth or time, and this network wants an input of 5 dimensions"
    return "; --size gives another size"


def _other_channels(module: nn.Module, error: BaseException, tried: int) -> list[int]:
    """Numbers of channels that the network may want instead, the likeliest first."""
    said = re.search(r"to have (\d+) channels, but got", str(error))
    first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 1)
    found = (int(said[1]) if said else 1, first, 1)
    return [count for count in dict.fromkeys(found) if count != tried]


def probe(
    module: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[nn.Module, object, int]:
    """Tries a network on a blank image; it comes back wrapped if it takes one channel.

    Args:
        module: the network.
        name: of it, for messages.
        channels: of the image, first tried.
        size: rows and columns of the image.
        dtype: of the image.
        device: of the image.

    Returns:
        The network, what it puts out, and the number of channels it takes (3 for grey: it is fed
        with the luminance of RGB).

    Raises:
        CnnvizError: it cannot run on an image of this size.
    """

    def run(count: int) -> object:
        with torch.no_grad():  # not inference mode: what lazy layers make here is written to later
            return module(torch.zeros(1, count, *size, dtype=dtype, device=device))

    try:
        return module, run(channels), channels
    except USER_CODE_ERRORS as error:
        for count in _other_channels(module, error, channels):
            try:
                output = run(count)
            except USER_CODE_ERRORS:
                continue
            if count > 1:
                return module, output, count
            return GreyInput(module).to(device, dtype).train(module.training), output, 3
        kind = str(dtype).removeprefix("torch.")
        raise CnnvizError(
            f"{name} cannot run on an image of {channels}x{size[0]}x{size[1]} in {kind} on "
            f"{device}: {_essence(error)}{_remedy(error)}"
        ) from error


def settled(module: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """The network; lazy layers in it (`nn.LazyLinear`) have taken their shapes from a blank image.

    Raises:
        CnnvizError: as `probe`.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        probe(module.eval(), name, 3, size, torch.float32, torch.device("cpu"))
    return module
