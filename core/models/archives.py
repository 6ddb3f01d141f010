"""Archives that bring their own network: TorchScript, torch.export and ONNX.

A TorchScript archive is a program: torch's own interpreter runs it (`torchscript.py`), which offers
tensor operations and no Python, but no guarantee against a hostile author either. torch.export
archives are checked and rewritten first (`exported.py`).

Shapes: N images, H W rows and columns, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.models.checkpoints import Kind, check_finite
from cnnviz.core.models.exported import load_exported
from cnnviz.core.models.onnx_network import OnnxNetwork
from cnnviz.core.models.torchscript import load_script

SELF_CONTAINED = (Kind.TORCHSCRIPT, Kind.EXPORTED, Kind.ONNX)


@dataclass(frozen=True)
class Archive:
    """A network out of an archive.

    Attributes:
        module: in eval mode.
        state: its parameters and buffers.
        size: the (rows, columns) it insists on; None where any will do.
    """

    module: nn.Module
    state: dict[str, Tensor]
    size: tuple[int, int] | None


class FixedBatch(nn.Module):
    """Feeds a network that takes just `batch` images at a time; the last share is filled up."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network = network
        self.batch = batch

    def forward(self, x: Any) -> Tensor:
        """(N, 3, H, W) of any N to (N, K)."""
        if isinstance(x, fx.Proxy):
            images = "image" if self.batch == 1 else "images"
            raise TypeError(
                f"its graph takes {self.batch} {images} at a time and no other number; export it "
                "with a dynamic batch"
            )
        shares = []
        for share in torch.split(x, self.batch):
            blank = share.new_zeros(self.batch - len(share), *share.shape[1:])
            shares.append(self.network(torch.cat([share, blank]))[: len(share)])
        return torch.cat(shares)


def _load_onnx(path: Path) -> Archive:
    network = OnnxNetwork(path)
    module = FixedBatch(network, network.batch) if network.batch else network
    return Archive(module.eval(), {}, network.size)


def open_archive(path: Path, kind: Kind) -> Archive:
    """The network in an archive, on the CPU.

    Raises:
        CnnvizError: it is damaged, refused, or its weights are not finite.
    """
    if kind is Kind.ONNX:
        return _load_onnx(path)
    if kind is Kind.TORCHSCRIPT:
        module = load_script(path)
        archive = Archive(module, dict(module.state_dict()), None)
    else:
        found = load_exported(path)
        module = FixedBatch(found.module, found.batch) if found.batch else found.module
        archive = Archive(module.eval(), found.state, found.size)
    check_finite(archive.state, path)
    return archive
