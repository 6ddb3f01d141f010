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
    """What helps: another size does not where the network wants other channels or dimensions."""
    text = str(error)
    channels = re.search(r"to have (\d+) channels, but got 3 channels", text)
    if channels and channels[1] not in "13":
        return f"; a picture has 3 channels (or 1), and this network wants {channels[1]}"
    if re.search(r"conv3d|5D|5-D|5-dim", text):
        return "; a picture has no depth or time, and this network wants an input of 5 dimensions"
    return "; --size gives another size"


def probe(
    module: nn.Module, name: str, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, object]:
    """Tries a network on a blank image; it comes back wrapped if it takes one channel.

    Returns:
        The network, and what it puts out.

    Raises:
        CnnvizError: it cannot run on an image of this size.
    """

    def run(channels: int) -> object:
        with torch.no_grad():  # not inference mode: what lazy layers make here is written to later
            return module(torch.zeros(1, channels, *size, dtype=dtype, device=device))

    try:
        output = run(3)
    except USER_CODE_ERRORS as error:
        try:
            output = run(1)
        except USER_CODE_ERRORS:
            kind = str(dtype).removeprefix("torch.")
            raise CnnvizError(
                f"{name} cannot run on an image of 3x{size[0]}x{size[1]} in {kind} on {device}: "
                f"{_essence(error)}{_remedy(error)}"
            ) from error
        module = GreyInput(module).to(device, dtype).train(module.training)
    return module, output


def settled(module: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """The network; lazy layers in it (`nn.LazyLinear`) have taken their shapes from a blank image.

    Raises:
        CnnvizError: as `probe`.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        probe(module.eval(), name, size, torch.float32, torch.device("cpu"))
    return module
