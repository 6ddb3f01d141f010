"""Results of `cnnviz max-patches`: each filter's strongest patches and the spread of its score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from cnnviz.core.output.record import (
    HIDDEN,
    OPTIONAL,
    Box,
    Count,
    Place,
    Positive,
    Record,
    Says,
    Share,
    Unsigned,
    from_json,
)
from cnnviz.core.output.summary import DataRecord, FinishedRun, read_summary
from cnnviz.filters.patches.options import Crop, Ranking

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the score that are reported."""


@dataclass(frozen=True, kw_only=True)
class Patch(Record):
    """An image region that drives a filter: the strongest unit, and the pixels it sees."""

    image: str
    class_: Annotated[str | None, OPTIONAL] = None
    score: float
    unit: Place
    box: Box
    box_original: Annotated[Box, Says("the same in the file's own pixels")]
    index: Annotated[int, HIDDEN] = -1
    """Position of the image in the data set."""


@dataclass(frozen=True, kw_only=True)
class FilterPatches(Record):
    """One filter: its strongest patches, strongest first, and its score over all images."""

    DERIVED: ClassVar[tuple[str, ...]] = ("class_entropy_bits",)
    layer: str
    filter: Count
    active_share: Annotated[Share, Says("of the images, with a unit above 0; 0 is a dead filter")]
    mean: float
    lowest: float
    highest: float
    quantiles: Annotated[
        Mapping[str, float],
        Says("by level", required=[f"{level:g}" for level in LEVELS]),
    ]
    classes: Annotated[
        Mapping[str, Positive] | None,
        Says("how often each class occurs among the patches", optional=True),
    ] = None
    patches: Annotated[tuple[Patch, ...], Says(minItems=1)]

    @property
    def class_entropy_bits(self) -> Annotated[Unsigned | None, OPTIONAL]:
        """Entropy of the classes of the patches: 0 for one class alone; None without labels."""
        if not self.classes:
            return None
        total = sum(self.classes.values())
        shares = [count / total for count in self.classes.values()]
        return abs(sum(share * math.log2(share) for share in shares))

    @property
    def dead(self) -> bool:
        """Whether none of its units was above zero on any image."""
        return self.active_share == 0


@dataclass(frozen=True)
class LayerPatches(Record):
    """One layer that was watched."""

    layer: str
    map: Annotated[
        tuple[Positive, ...],
        Says("filters, rows, columns of the layer's output", minItems=3, maxItems=3),
    ]
    filters: Annotated[Positive, Says("how many were watched")]
    dead: Annotated[tuple[Count, ...], Says("filters without a unit above zero on any image")]
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaxPatches(Record):
    """The result of a scan; `errors` are (image, message) of images that could not be used."""

    images: Positive
    data: DataRecord
    score: Ranking
    top: Positive
    per_image: Positive
    crop: Crop
    quantile_relative_error: Annotated[float, Says(exclusiveMinimum=0)]
    layers: Annotated[tuple[LayerPatches, ...], Says(minItems=1)]
    filters: Annotated[tuple[FilterPatches, ...], Says(minItems=1)]
    errors: Annotated[tuple[tuple[str, str], ...], HIDDEN] = ()

    def of(self, layer: str) -> tuple[FilterPatches, ...]:
        """The filters of one layer."""
        return tuple(entry for entry in self.filters if entry.layer == layer)

    @property
    def dead(self) -> tuple[FilterPatches, ...]:
        """The filters none of whose units was above zero on any image."""
        return tuple(entry for entry in self.filters if entry.dead)

    def with_pictures(self, pictures: Mapping[str, Sequence[str]]) -> "MaxPatches":
        """The result with the files of each layer's sheets, relative to the run's folder."""
        layers = (replace(row, pictures=tuple(pictures.get(row.layer, ()))) for row in self.layers)
        return replace(self, layers=tuple(layers))


def load(folder: Path | FinishedRun) -> MaxPatches:
    """Reads the results of a finished run.

    Raises:
        CnnvizError: the folder does not hold a run of `cnnviz max-patches`.
    """
    return from_json(MaxPatches, read_summary(folder).content["results"])
