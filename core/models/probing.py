"""Trying a network on a blank image: channels it takes, classes it has, shapes of lazy layers.

Shapes: N images, H W rows and columns, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError

LUMINANCE = (0.299, 0.587, 0.114)


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


def probe(
    module: nn.Module, name: str, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[nn.Module, int]:
    """Tries a network on a blank image; it comes back wrapped if it takes one channel.

    Raises:
        CnnvizError: it cannot run on an image of this size, or puts out something else than logits.
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
                f"{_essence(error)}; --size gives another size"
            ) from error
        module = GreyInput(module).to(device, dtype).train(module.training)
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[0] == 1:
        if output.shape[1] < 2:
            raise CnnvizError(
                f"{name} puts out {output.shape[1]} logit for an image; there must be one for each "
                "class, two at least"
            )
        return module, output.shape[1]
    what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise CnnvizError(f"{name} puts out {what}, not logits of shape (images, classes)")


def settled(module: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """The network; lazy layers in it (`nn.LazyLinear`) have taken their shapes from a blank image.

    Raises:
        CnnvizError: as `probe`.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        probe(module.eval(), name, size, torch.float32, torch.device("cpu"))
    return module
