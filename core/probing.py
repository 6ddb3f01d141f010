"""Trying a network on a blank image: how many channels it takes, how many classes it has.

Shapes: N images, H W rows and columns, K classes.
"""

import torch
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError

LUMINANCE = (0.299, 0.587, 0.114)
PROBE_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError)


class GreyInput(nn.Module):
    """Feeds a network of one input channel with the luminance of RGB (ITU-R BT.601 weights)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.luminance = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.luminance.weight.copy_(torch.tensor(LUMINANCE).view(1, 3, 1, 1))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to what the network makes of (N, 1, H, W)."""
        out: Tensor = self.network(self.luminance(x))
        return out


def _probe(module: nn.Module, channels: int, size: tuple[int, int]) -> object:
    parameter = next(module.parameters(), torch.empty(0))
    blank = torch.zeros(1, channels, *size, dtype=parameter.dtype, device=parameter.device)
    with torch.inference_mode():
        return module(blank)


def count_classes(module: nn.Module, name: str, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """Tries the network on a blank image; it comes back wrapped if it takes one channel."""
    shown = f"3x{size[0]}x{size[1]}"
    try:
        output = _probe(module, 3, size)
    except PROBE_ERRORS as error:
        try:
            output = _probe(module, 1, size)
        except PROBE_ERRORS:
            text = " ".join(str(error).split())[:200]
            raise CnnvizError(
                f"{name} cannot run on an image of {shown}: {text}; give its size with --size"
            ) from error
        module = GreyInput(module)
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[0] == 1:
        return module, output.shape[1]
    what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise CnnvizError(f"{name} puts out {what}, not logits of shape (images, classes)")
