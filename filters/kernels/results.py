"""Results of `cnnviz filters`: norms, duplicates, colour and Gabor fits of a layer's kernels."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.files import open_arrays
from cnnviz.core.models.load import Model
from cnnviz.core.output.notebook import Displayed
from cnnviz.core.output.record import (
    HIDDEN,
    Change,
    Count,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    Unsigned,
    from_json,
)
from cnnviz.core.output.summary import FinishedRun, ModelRecord, read_summary

KERNELS = "kernels.npz"
"""The kernels (F, C, H, W) of each layer, as `kernels.<layer>`."""
DEAD_BELOW = 1e-3
DUPLICATE_ABOVE = 0.95
GABOR_LIKE = 0.7


@dataclass(frozen=True)
class GaborFit(Record):
    """The Gabor function nearest to a kernel.

    If the wavelength is near its maximum, twice the kernel's longer side, the kernel is a blob and
    its orientation means little. A phase of 0 is a bright line, of 180 a dark one, of 90 or 270 an
    edge; it is that of the strongest channel, whose amplitude is positive.
    """

    DIGITS: ClassVar[int] = 6
    r2: Annotated[Share, Says("share of the kernel's variance explained")]
    orientation: Annotated[
        float, Says("degrees, across the stripes, counter-clockwise", minimum=0, maximum=180)
    ]
    wavelength: Annotated[float, Says("pixels", minimum=2)]
    phase: Annotated[float, Says("degrees", minimum=0, maximum=360)]
    centre: Annotated[
        tuple[float, ...], Says("right, up of the kernel's middle, pixels", minItems=2, maxItems=2)
    ]
    window: Annotated[
        tuple[Annotated[float, Says(exclusiveMinimum=0)], ...],
        Says("standard deviations across and along the stripes, pixels", minItems=2, maxItems=2),
    ]
    amplitudes: Annotated[tuple[float, ...], Says("one per input channel")]


Fits = tuple[GaborFit | None, ...]


@dataclass(frozen=True)
class GaborStats(Record):
    """How much of a layer looks like Gabor functions.

    The fits to kernels with shuffled pixels, `shuffled_fits`, show what is due to chance.
    """

    DIGITS: ClassVar[int] = 6
    share: Annotated[Share, Says("of the filters with R² above like_above")]
    share_by_chance: Annotated[Share, Says("the same with each kernel's pixels shuffled")]
    fits: Annotated[Fits, Says("one per filter; null for dead and constant ones")]
    shuffled_fits: Annotated[Fits, HIDDEN] = ()
    like_above: float = GABOR_LIKE


@dataclass(frozen=True)
class Duplicate(Record):
    """Two filters with nearly the same direction, or (cosine below 0) nearly opposite ones."""

    DIGITS: ClassVar[int] = 6
    filters: Annotated[tuple[Count, ...], Says(minItems=2, maxItems=2)]
    cosine: Change


@dataclass(frozen=True, eq=False, kw_only=True)
class KernelStats(Displayed, Record):
    """One layer's kernels and what they measure.

    `kernels` is (F, C, H, W) float32: filters, input channels of their group, rows, columns.
    Duplicates read the same input channels. The chromaticity, for 3 input channels, is 0 for grey
    and dead filters, 2/3 on average for random ones, and 1 where the channels sum to zero.
    """

    DIGITS: ClassVar[int] = 6
    layer: str
    type_: str
    filters: Positive
    channels: Positive
    kernel: Sides
    groups: Positive
    largest_weight: Unsigned
    norms: tuple[Unsigned, ...]
    dead: tuple[Count, ...]
    dead_below: Annotated[float, Says("share of the layer's largest norm")] = DEAD_BELOW
    duplicates: tuple[Duplicate, ...]
    duplicates_above: Annotated[float, Says("|cosine|")] = DUPLICATE_ABOVE
    chromaticity: (
        tuple[Annotated[Share, Says("share of the filter's energy that is colour")], ...] | None
    )
    gabor: GaborStats | None
    kernels: Annotated[NDArray[np.float32], HIDDEN] = field(
        default_factory=lambda: np.empty((0, 0, 0, 0), np.float32), repr=False
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Compared(KernelStats):
    """The first layer of another network."""

    model: ModelRecord

    @classmethod
    def of(cls, model: Model, stats: KernelStats) -> "Compared":
        """Adds the network to the measures of its layer."""
        return cls(model=ModelRecord.of(model), **vars(stats))


@dataclass(frozen=True, eq=False)
class FilterResults(Record):
    """The `results` of the summary."""

    layers: Annotated[tuple[KernelStats, ...], Says(minItems=1)]
    compared: tuple[Compared, ...] = ()


def load(folder: Path | FinishedRun) -> FilterResults:
    """Reads the results of a finished run, with the kernels of its layers.

    Raises:
        CnnvizError: the folder does not hold a run of `cnnviz filters`.
        Exception: errors of `cnnviz.core.files.DAMAGE` if the kernels are damaged.
    """
    run = read_summary(folder)
    results = from_json(FilterResults, run.content["results"])
    with open_arrays(run.file(KERNELS)) as stored:
        layers = [
            replace(layer, kernels=np.asarray(stored[f"kernels.{layer.layer}"], np.float32))
            for layer in results.layers
        ]
    return replace(results, layers=tuple(layers))
