"""What an occlusion experiment finds: the records of `summary.json`, and how a run is read back.

Shapes: P positions, L cells, H W rows and columns of the working image, r c rows and columns of
cells.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.output.judged import Judged, Pointing, Scorecard
from cnnviz.core.output.notebook import Displayed
from cnnviz.core.output.record import (
    ABSENT,
    OPTIONAL,
    Box,
    Change,
    Count,
    Hidden,
    Place,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    Unsigned,
    from_json,
)
from cnnviz.core.output.summary import ClassRecord, FinishedRun, Read
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.measurement import Activation, Measurement
from cnnviz.occlusion.options import MapKind, Score, Upsample

Stride = Annotated[
    Positive | Sides, Says("pixels between positions; rows, columns where they differ")
]
RANKED_BY = ("covering", "keeping")


@dataclass(frozen=True, kw_only=True)
class Flip(Record):
    """A class that becomes the prediction, or of which a box appears, where a mask lies."""

    class_: str
    index: Count
    positions: Positive


@dataclass(frozen=True, kw_only=True)
class Flips(Record):
    """How often occlusion changes the prediction; of independent classes, crosses the threshold.

    Of a box: how often it vanishes, and at how many positions boxes appear elsewhere, by class.
    """

    share: Share
    to: tuple[Flip, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement(Pointing):
    """The map together with a gradient method's map of the same class.

    `map_HW` is the mean of their positive parts, each divided by its 99 % quantile.
    `only_occlusion_HW` is True where occlusion's map is above half of its peak and the gradient's
    below a quarter; `only_gradient_HW` the other way round.
    """

    with_: str
    rank_correlation: Annotated[Change | None, Says("of the two maps; null where one is constant")]
    peak: Annotated[
        Place | None,
        Says("row, column of the agreement map's largest value; null where the two agree nowhere"),
    ]
    map_HW: Hidden[Tensor] = ABSENT
    gradient_HW: Hidden[Tensor] = ABSENT
    only_occlusion_HW: Hidden[Tensor] = ABSENT
    only_gradient_HW: Hidden[Tensor] = ABSENT


@dataclass(frozen=True, eq=False, kw_only=True)
class Panel(Judged, ClassRecord):
    """The map of one class and one mask.

    `values_P` is how much occluding each position hurts, in units of the score, and `map_HW` the
    same for each pixel. `probabilities_P` are the class's probabilities (of a regression values, of
    a box its score times IoU) and `winners_P` the most probable class at each position, or what
    happens to a box (`BoxReading.outcomes`).
    """

    mask: Sides
    stride: Stride
    positions: Positive
    max_drop: Annotated[
        float, Says("largest position value, in the score's units: a drop, of the loss a rise")
    ]
    max_drop_box: Annotated[Box, Says("y0, x0, y1, x1 in the working image")]
    mean_drop: Annotated[float, Says("mean position value, in the score's units")]
    occluded: Annotated[
        float | None,
        Says("the class's probability (or value) with max_drop_box occluded", optional=True),
    ] = None
    reliance: Annotated[
        float | None,
        Says("largest drop of the probability or score, over it", maximum=1, optional=True),
    ] = None
    flips: Annotated[Flips | None, OPTIONAL] = None
    agreement: Annotated[
        Agreement | None,
        Says(
            "with a gradient method's map of the class, where the network has a gradient",
            optional=True,
        ),
    ] = None
    trust: Annotated[Scorecard | None, Says("the scorecard of this map", optional=True)] = None
    grid: Hidden[Grid] = ABSENT
    probabilities_P: Hidden[Tensor] = ABSENT
    values_P: Hidden[Tensor] = ABSENT
    map_HW: Hidden[Tensor] = ABSENT
    winners_P: Hidden[Tensor] = ABSENT

    @property
    def target(self) -> int:
        """The class index."""
        return self.index


@dataclass(frozen=True, eq=False, kw_only=True)
class Region(Record):
    """Cells of the image that hold a class, or whose occlusion loses it."""

    share: Annotated[Share, Says("of the image's pixels")]
    cells: Count
    of_cells: Positive
    probability: Annotated[Share, Says("of the class with only this region kept, or occluded")]
    ranked_by: Annotated[str, Says(enum=list(RANKED_BY))]
    cells_rc: Hidden[Tensor] = ABSENT


@dataclass(frozen=True, eq=False, kw_only=True)
class Sufficiency(ClassRecord):
    """The smallest region that is enough for a class, and the smallest whose occlusion loses it.

    `kept_curve` is the class's probability with the 0, 1, … L best cells kept, `covered_curve` with
    these occluded; `fill_CHW` replaces what is occluded, in [0, 1].
    """

    cell: Annotated[Positive, Says("side of a cell in pixels of the working image")]
    region: Annotated[Region, Says("kept alone, holds the class at 90 % of its probability")]
    without: Annotated[Share, Says("probability with that region occluded")]
    redundancy: Annotated[Share, Says("without, over the probability")]
    losing: Annotated[Region | None, Says("occluded, loses the class; null where nothing does")]
    lost_when: str
    fill_CHW: Hidden[Tensor] = ABSENT
    kept_curve: Hidden[Tensor] = ABSENT
    covered_curve: Hidden[Tensor] = ABSENT

    def pixels_of(self, region: Region) -> Tensor:
        """(H, W) bool: the region's cells in the image."""
        return in_pixels(region.cells_rc[None], self.cell, self.fill_CHW.shape[1:])[0]


def in_pixels(cells_Nrc: Tensor, cell: int, size: tuple[int, ...]) -> Tensor:
    """(N, H, W) of values of cells; those at the right and the bottom may be cut off."""
    large = cells_Nrc.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return large[:, : size[0], : size[1]]


@dataclass(frozen=True, eq=False, kw_only=True)
class OcclusionResult(Displayed, Record):
    """One image: a measurement, and a panel per class and mask, classes outermost.

    `compared` is the score that the panels compare; of a regression `score` is "value". `folder`
    holds the files of an image of a finished run, relative to the run's.
    """

    image: str
    prediction: Annotated[ClassRecord | None, OPTIONAL] = None
    top5: Annotated[tuple[ClassRecord, ...] | None, Says(minItems=1, maxItems=5, optional=True)] = (
        None
    )
    read: Annotated[Read | None, OPTIONAL] = None
    score: Score | Literal["value"]
    upsample: Upsample
    fill: Annotated[
        str | None, Says("what replaces occluded pixels; absent with render", optional=True)
    ] = None
    method: Annotated[MapKind, Says("which map is drawn and judged")]
    engine: Annotated[str, Says(enum=["full", "incremental", "none"])]
    targets: Annotated[tuple[Panel, ...], Says(minItems=1)]
    label: Annotated[ClassRecord | None, Says("the true class", optional=True)] = None
    correct: Annotated[bool | None, OPTIONAL] = None
    incremental_given_up: Annotated[
        Unsigned | None,
        Says(
            "largest |difference| of a score to the full engine, beyond rounding, for which the "
            "incremental engine was given up; null (NaN) where its scores were not finite; absent "
            "if it was not",
            optional=True,
            null=True,
        ),
    ] = None
    verified_largest_difference: Annotated[
        Unsigned | None,
        Says(
            "with --verify: largest |logit difference| between the engines on a sample; null (NaN) "
            "where only one can run the network, or only one gives finite scores",
            optional=True,
            null=True,
        ),
    ] = None
    sufficient: Annotated[
        tuple[Sufficiency, ...] | None,
        Says("with --sufficient, one entry for each target", optional=True),
    ] = None
    activation: Annotated[Activation | None, OPTIONAL] = None
    reference: Annotated[
        Panel | None, Says("with --both: the reference image's own map", optional=True)
    ] = None
    measured: Hidden[Measurement] = ABSENT
    compared: Hidden[Score] = ABSENT
    folder: Hidden[str] = ABSENT

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels, by the name that Python code uses."""
        return self.targets

    @property
    def agreements(self) -> tuple[Agreement | None, ...]:
        """Each panel's agreement with the gradient."""
        return tuple(panel.agreement for panel in self.targets)

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """(H, W) of each panel: what is drawn and judged."""
        if self.method is MapKind.OCCLUSION:
            return tuple(panel.map_HW for panel in self.targets)
        return tuple(both.map_HW for both in self.agreements if both is not None)


def load_run(run: FinishedRun) -> tuple[OcclusionResult, ...]:
    """The images of a run of `occlude`; their measurements are read by `load`, image by image.

    Raises:
        CnnvizError: the summary holds something else.
    """
    return from_json(tuple[OcclusionResult, ...], run.summary.results)


def to_arrays(result: OcclusionResult) -> dict[str, np.ndarray]:
    """The arrays of `scores.npz`: the measurement, the maps and the sufficient regions."""
    shown = replace(result.measured, score=result.compared, upsample=result.upsample)
    regions = {}
    for entry in result.sufficient or ():
        regions[f"sufficient_{entry.index}"] = entry.region.cells_rc.numpy()
        if entry.losing is not None:
            regions[f"losing_{entry.index}"] = entry.losing.cells_rc.numpy()
    return {
        **shown.to_arrays(),
        "maps": torch.stack([panel.map_HW for panel in result.targets]).numpy(),
        "map_target": np.array([panel.index for panel in result.targets]),
        "map_mask": np.array([panel.mask for panel in result.targets]),
        **regions,
    }
