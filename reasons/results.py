"""What `reasons` finds: the records of `summary.json`, and `load_run`.

Cells are numbered row by row from the top left, from 0.
Shapes: L cells, H W rows and columns of the working image.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from cnnviz.core.output.record import (
    ABSENT,
    OPTIONAL,
    Box,
    Count,
    Hidden,
    Interval,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    from_json,
)
from cnnviz.core.output.summary import ClassRecord, FinishedRun
from cnnviz.occlusion.results import OcclusionResult, in_pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Reason(Record):
    """A region that holds the class on its own."""

    cells: Annotated[tuple[Count, ...], Says("of the grid, row by row from 0")]
    share: Annotated[Share, Says("of the image's pixels")]
    alone: Annotated[Share, Says("probability of the class with only this region kept")]
    without: Annotated[
        Share, Says("probability with this region and all reasons before it occluded")
    ]
    lost: Annotated[bool, Says("whether the class is lost by that")]
    inside: Annotated[
        Share | None, Says("with --expect: share of the region on the object", optional=True)
    ] = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Pair(Record):
    """Two cells, and whether they need each other.

    `interaction` is what occluding both takes beyond what each takes: above 0 both are needed
    (conjunction), below 0 either would do (redundancy)... of log-odds.
    """

    first: Count
    second: Count
    both: Annotated[float, Says("drop of the log-odds with both occluded")]
    interaction: Annotated[float, Says("both minus the drops of each; mean over the fills")]
    interval: Annotated[Interval | None, Says("of the interaction, over the fills")] = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Interactions(Record):
    """All pairs of cells of a grid."""

    grid: Annotated[Sides, Says("rows, columns of cells")]
    boxes: Annotated[tuple[Box, ...], Says("of the cells, in the working image")]
    drops: Annotated[tuple[float, ...], Says("drop of the log-odds with each cell occluded")]
    fills: tuple[str, ...]
    pairs: Annotated[tuple[Pair, ...], Says("the strongest first")]
    passes: Positive


@dataclass(frozen=True, eq=False, kw_only=True)
class Part(Record):
    """A part of the image and its Shapley value."""

    label: Annotated[int, Says("its number in the label image; of a grid, row by row from 0")]
    share: Annotated[Share, Says("of the image's pixels")]
    value: Annotated[float, Says("mean gain of the log-odds as it joins others")]
    error: Annotated[float | None, Says("standard error; absent if exact", optional=True)] = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Shapley(Record):
    """The log-odds of the image, shared among its parts: the values sum to `all` - `none`."""

    segments: Annotated[str, Says("grid, slic or the file's name")]
    parts: Annotated[tuple[Part, ...], Says(minItems=2)]
    all: Annotated[float, Says("log-odds of the image")]
    none: Annotated[float, Says("log-odds with all parts occluded")]
    permutations: Annotated[Count, Says("random orders, in opposite pairs; 0 if exact")]
    passes: Positive
    labels_HW: Hidden[Tensor] = ABSENT


@dataclass(frozen=True, eq=False, kw_only=True)
class Carrier(Record):
    """A filter, and how much of the drop it carries."""

    filter: Count
    restored: Annotated[
        float, Says("share of the drop that its untouched activations bring back alone")
    ]
    removed: Annotated[float, Says("share of the drop that its occluded activations cause alone")]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCarriers(Record):
    """The filters of a layer, the strongest first."""

    layer: str
    filters: tuple[Carrier, ...]
    sum: Annotated[float, Says("of all filters' restored shares; 1 if they add up")]


@dataclass(frozen=True, eq=False, kw_only=True)
class Carriers(Record):
    """Which filters carry the region whose occlusion hurts most."""

    box: Box
    drop: Annotated[float, Says("of the log-odds with the region occluded")]
    layers: tuple[LayerCarriers, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassReasons(ClassRecord):
    """The reasons for one class of an image."""

    cell: Annotated[Positive, Says("side of a cell in pixels of the working image")]
    grid: Annotated[Sides, Says("rows, columns of cells")]
    reasons: Annotated[
        tuple[Reason, ...], Says("disjoint regions, in the order in which they were found")
    ]
    complete: Annotated[
        bool, Says("the search ended since no more was found, not at the maximum of reasons")
    ]
    needed: Annotated[
        Reason | None,
        Says("smallest region that holds the class alone and loses it occluded; null for none"),
    ]
    lost_when: str
    passes: Annotated[Positive, Says("images through the network for the regions")]
    shapley: Annotated[Shapley | None, Says("with --segments", optional=True)] = None
    interactions: Annotated[Interactions | None, OPTIONAL] = None
    carriers: Annotated[Carriers | None, OPTIONAL] = None

    def mask(self, reason: Reason, size: tuple[int, ...]) -> Tensor:
        """(H, W) bool: the pixels of a region."""
        cells_L = torch.zeros(self.grid[0] * self.grid[1], dtype=torch.bool)
        cells_L[list(reason.cells)] = True
        return in_pixels(cells_L.reshape(1, *self.grid), self.cell, size)[0]

    def on(self, object_HW: Tensor) -> "ClassReasons":
        """With the share of each region on the object."""

        def judged(reason: Reason) -> Reason:
            region_HW = self.mask(reason, object_HW.shape)
            return replace(reason, inside=float(object_HW[region_HW].double().mean()))

        reasons = tuple(judged(reason) for reason in self.reasons)
        return replace(self, reasons=reasons, needed=self.needed and judged(self.needed))


@dataclass(frozen=True, eq=False, kw_only=True)
class ReasonsResult(Record):
    """The reasons of one image.

    `folder` holds the files of an image of a finished run, relative to the run's.
    """

    image: str
    prediction: Annotated[ClassRecord | None, OPTIONAL] = None
    top5: Annotated[tuple[ClassRecord, ...] | None, Says(minItems=1, maxItems=5, optional=True)] = (
        None
    )
    fill: Annotated[str, Says("what replaces occluded pixels")]
    targets: Annotated[tuple[ClassReasons, ...], Says(minItems=1)]
    occlusion: Hidden[OcclusionResult] = ABSENT
    folder: Hidden[str] = ABSENT

    def on(self, object_HW: Tensor) -> "ReasonsResult":
        """The result with the share of each region on the object, (H, W) bool."""
        targets = tuple(target.on(object_HW) for target in self.targets)
        return replace(self, targets=targets)


def load_run(run: FinishedRun) -> tuple[ReasonsResult, ...]:
    """Reads the images of a run of `reasons`.

    Raises:
        CnnvizError: the summary holds something else.
    """
    return from_json(tuple[ReasonsResult, ...], run.summary.results)
