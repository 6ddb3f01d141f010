"""Archives that bring their own network: TorchScript and torch.export."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from cnnviz.core.checkpoints import Kind
from cnnviz.core.errors import CnnvizError


@dataclass(frozen=True)
class Archive:
    """A network out of an archive; `size` is the (rows, columns) it insists on, if it does."""

    module: nn.Module
    size: tuple[int, int] | None


def open_archive(path: Path, kind: Kind) -> Archive:
    """Not there yet."""
    raise CnnvizError(f"'{path}' is a {kind}, which cannot be read yet")


def state_dict(path: Path, kind: Kind) -> dict[str, Tensor]:
    """Not there yet."""
    raise CnnvizError(f"'{path}' is a {kind}, which cannot be read yet")


def is_exported(module: nn.Module) -> bool:
    """Whether torch.export made it: such a module has no modes to switch."""
    return hasattr(module, "range_constraints")
