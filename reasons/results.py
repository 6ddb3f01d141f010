"""What `reasons` finds: the records of `summary.json`, and `load_run`.

Cells are numbered row by row from the top left, from 0.
Shapes: L cells, H W rows and columns of the working image.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import torch
from torch import Tensor

from cnnviz.core.output.record import (
    ABSENT,
    OPTIONAL,
    Box,
    Count,
    Hidden,
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


class Relation(StrEnum):
    """What two cells are to each other."""

    REDUNDANT = "either would do"
    """`beyond` is positive, and both together take something."""
    CONJUNCTIVE = "both are needed"
    """`beyond` is negative, and each alone takes something."""
    NONE = "none"
    """Too weak, of unlike signs with different fills, or one speaks against the class."""


@dataclass(frozen=True, kw_only=True)
class Pair(Record):
    """Two cells and what they are to each other. Numbers are means over the fills."""

    class_: Annotated[str, Says("in the table of all pairs", only="csv")] = ""
    first: Annotated[Count, Says("cell, row by row from 0")]
    second: Count
    first_drop: Annotated[float, Says("what occluding the first cell takes from the score")]
    second_drop: float
    both: Annotated[float, Says("what occluding both takes from the score")]
    beyond: Annotated[float, Says("both minus the drops of each")]
    lowest: Annotated[float, Says("of `beyond` over the fills")]
    highest: Annotated[float, Says("of `beyond` over the fills")]
    relation: Relation

    @property
    def certain(self) -> float:
        """The smallest magnitude of `beyond` over the fills; 0 where its sign changes."""
        return 0.0 if self.lowest * self.highest <= 0 else min(abs(self.lowest), abs(self.highest))


@dataclass(frozen=True, eq=False, kw_only=True)
class Interactions(Record):
    """All pairs of cells of a grid, for one class."""

    grid: Annotated[Sides, Says("rows, columns of cells")]
    boxes: Annotated[tuple[Box, ...], Says("of the cells, in the working image")]
    score: Annotated[str, Says("the score that drops")]
    drops: Annotated[tuple[float, ...], Says("what occluding each cell takes; mean over the fills")]
    fills: Annotated[tuple[str, ...], Says("all of them agree on a named pair", minItems=1)]
    engine: str
    passes: Annotated[Positive, Says("occluded images")]
    smallest: Annotated[float, Says("magnitude of `beyond` from which on a pair is named")]
    of_pairs: Positive
    pairs: Annotated[tuple[Pair, ...], Says("those that are named, the most certain first")]
    every: Hidden[tuple[Pair, ...]] = ABSENT
    beyond_FLL: Hidden[Tensor] = ABSENT
    """Symmetric, with zeros on the diagonal."""

    def named(self, relation: Relation) -> list[Pair]:
        """The named pairs of a relation, the most certain first."""
        return [pair for pair in self.pairs if pair.relation is relation]


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


@dataclass(frozen=True, kw_only=True)
class Carrier(Record):
    """A filter, or a group of neighbouring ones, and what it carries of the drop."""

    class_: Annotated[str, Says("in the table of all filters", only="csv")] = ""
    layer: str
    filter: Count
    last: Annotated[Count, Says("last filter of the group; the same one without --group")]
    restored: Annotated[float, Says("share of the drop that its original activations bring back")]
    taken: Annotated[float, Says("share of the drop that its occluded activations cause alone")]

    @property
    def share(self) -> float:
        """The mean of both, by which filters are ranked."""
        return (self.restored + self.taken) / 2

    @property
    def name(self) -> str:
        """`12`, or `8-15`."""
        return str(self.filter) if self.last == self.filter else f"{self.filter}-{self.last}"


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerCarriers(Record):
    """The filters of a layer, the strongest first."""

    layer: str
    of_filters: Positive
    restored: Annotated[float, Says("share that all filters together bring back")]
    taken: Annotated[float, Says("share that all filters together take")]
    restored_sum: Annotated[float, Says("of each filter alone; as `restored` where they add up")]
    taken_sum: Annotated[float, Says("of each filter alone; as `taken` where they add up")]
    filters: Annotated[tuple[Carrier, ...], Says("the strongest")]
    every: Hidden[tuple[Carrier, ...]] = ABSENT
    changes_Nhw: Hidden[Tensor] = ABSENT
    """Original minus occluded activations of `filters`; of a group their sum."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Carriers(Record):
    """The filters that carry what a region says of a class."""

    region: Annotated[Share, Says("the region's share of the image's pixels")]
    fill: str
    score: Annotated[str, Says("the score that drops")]
    before: Annotated[float, Says("score of the original image")]
    after: Annotated[float, Says("score with the region occluded")]
    engine: Annotated[str, Says("replay or full")]
    layers: tuple[LayerCarriers, ...]
    reason: Annotated[str | None, Says("why whole passes were run", optional=True)] = None
    region_HW: Hidden[Tensor] = ABSENT

    @property
    def drop(self) -> float:
        """What occluding the region takes from the score."""
        return self.before - self.after


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

    def boxes(self, reason: Reason, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """y0, x0, y1, x1 of the cells of a region."""
        found = []
        for place in reason.cells:
            corner = [self.cell * n for n in divmod(place, self.grid[1])]
            ends = (min(n + self.cell, side) for n, side in zip(corner, size, strict=True))
            found.append((*corner, *ends))
        return found

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

    def table_pairs(self) -> Iterator[Pair]:
        """All pairs of all classes, for a table."""
        for target in self.targets:
            for pair in target.interactions.every if target.interactions else ():
                yield replace(pair, class_=target.class_)

    def table_carriers(self) -> Iterator[Carrier]:
        """All filters of all classes and layers, for a table."""
        for target in self.targets:
            for layer in target.carriers.layers if target.carriers else ():
                for carrier in layer.every:
                    yield replace(carrier, class_=target.class_)


def load_run(run: FinishedRun) -> tuple[ReasonsResult, ...]:
    """Reads the images of a run of `reasons`.

    Raises:
        CnnvizError: the summary holds something else.
    """
    return from_json(tuple[ReasonsResult, ...], run.summary.results)
