"""Options of `cnnviz activations`; imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.choices import Scaling
from cnnviz.core.options import Option, Spec


class MapOrder(StrEnum):
    """The order in which a layer's maps are shown."""

    CHANNEL = "channel"
    STRONGEST = "strongest"


@dataclass(frozen=True)
class ActivationsSpec(Spec):
    """Which maps `activations` shows, and how."""

    layers: Annotated[
        tuple[str, ...],
        Option("A layer's name; repeatable. Default: the first convolution.", ("--layer",)),
    ] = ()
    top: Annotated[int | None, Option("Show the N strongest maps. Default: all.", least=1)] = None
    order: Annotated[
        MapOrder | None,
        Option("channel (the default without --top) or strongest (with --top)."),
    ] = None
    filters: Annotated[
        tuple[str, ...],
        Option(
            "Draw these over the image: all, 3,7-12 (in each layer), random:10 (from the "
            "layers together), or LAYER:3,7; repeatable."
        ),
    ] = ()
    normalize: Annotated[
        Scaling, Option("White is the largest value of each map (filter) or of the layer.")
    ] = Scaling.FILTER
    signed: Annotated[
        bool, Option("Draw negative values, too; without it they are drawn as zero (ReLU).")
    ] = False
    alpha: Annotated[
        float,
        Option("Opacity of a map over the image at its largest value, 0 to 1.", least=0, most=1),
    ] = 0.9

    @property
    def sorting(self) -> MapOrder:
        """The order, with its default."""
        return self.order or (MapOrder.CHANNEL if self.top is None else MapOrder.STRONGEST)
