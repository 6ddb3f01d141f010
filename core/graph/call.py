"""One operation of a traced network at the moment it runs: what the rules of geometry look at."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from cnnviz.core.graph.geometry import Geometry, Mix
from cnnviz.core.graph.program import target_name

Axes = tuple[int, int]
Verdict = tuple[Geometry, Axes | None]

MIXED: Verdict = (Mix(), None)


@dataclass(frozen=True)
class Call:
    """One operation as it ran.

    Attributes:
        node: the node itself.
        module: the module it calls, if it calls one.
        args: its arguments, evaluated.
        kwargs: its keyword arguments, evaluated.
        value: what came out.
        axes: rows and columns of each input that depends on the image (None: it has none).
    """

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    axes: dict[fx.Node, Axes | None]

    @property
    def name(self) -> str:
        """`relu` for torch.relu, F.relu, Tensor.relu_, operator and aten spellings alike."""
        return target_name(self.node.target)

    def get(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name."""
        if len(self.args) > index:
            return self.args[index]
        return self.kwargs.get(name, default)

    @property
    def map(self) -> Tensor:
        """The first argument."""
        first: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return first

    @property
    def map_axes(self) -> Axes | None:
        """Rows and columns of the first argument."""
        first = self.node.args[0] if self.node.args else next(iter(self.node.kwargs.values()))
        return self.axes.get(first) if isinstance(first, fx.Node) else None
