"""Results of `cnnviz activations`: the feature maps of one image and their numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.notebook import Displayed
from cnnviz.core.output.record import (
    HIDDEN,
    Box,
    Count,
    Place,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    from_json,
)
from cnnviz.core.output.summary import read_summary

Units = tuple[Tensor, Tensor]
"""For each row (H,) and each column (W,) of the image, the unit of a layer at that place."""


@dataclass(frozen=True, kw_only=True)
class Channel(Record):
    """One channel's map."""

    channel: Count
    lowest: float
    highest: float
    mean: float
    sparsity: Annotated[Share, Says("share of exact zeros")]
    peak_unit: Place
    peak_box: Annotated[
        Box | None, Says("the pixels that the peak's unit sees; null where that is not known")
    ]
    peak_box_original: Annotated[Box | None, Says("the same in the file's own pixels")]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerActivation(Record):
    """One layer's maps; `units` is None if their positions in the image are not known."""

    layer: str
    channels: Positive
    map: Sides
    sparsity: Share
    silent: Annotated[tuple[Count, ...], Says("channels that are zero everywhere")]
    strongest: Annotated[tuple[Count, ...], Says("all channels, by largest value")]
    per_channel: Annotated[tuple[Channel, ...], Says(minItems=1)]
    maps_CHW: Annotated[Tensor, HIDDEN] = field(default_factory=lambda: torch.empty(0, 0, 0))
    units: Annotated[Units | None, HIDDEN] = None

    def order(self, *, strongest: bool) -> list[int]:
        """Channel numbers, ascending or by largest value, strongest first."""
        return list(self.strongest) if strongest else list(range(self.channels))


@dataclass(frozen=True, eq=False)
class Activations(Displayed, Record):
    """The maps of some layers on one image; `working` is the image as the network gets it."""

    image: str
    layers: Annotated[tuple[LayerActivation, ...], Says(minItems=1)]
    working: Annotated[WorkingImage | None, HIDDEN] = None


def load(folder: Path) -> tuple[Activations, ...]:
    """Reads the results of a finished run, without the maps.

    Raises:
        CnnvizError: the folder does not hold a run of `cnnviz activations`.
    """
    return from_json(tuple[Activations, ...], read_summary(folder).content["results"])
