"""Results of `cnnviz layers`: every layer's shape, cost and receptive field, and values on data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnnviz.core.graph.receptive_field import ReceptiveField
from cnnviz.core.output.record import (
    Box,
    Count,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    Unsigned,
    from_json,
)
from cnnviz.core.output.summary import FinishedRun, read_summary

Pair = Annotated[tuple[float | None, ...], Says(minItems=2, maxItems=2, digits=17)]
"""Vertical, horizontal; None for infinity, which JSON does not have."""
Rounded = Annotated[float, Says(digits=6)]


@dataclass(frozen=True)
class FieldRecord(Record):
    """A receptive field."""

    size: Annotated[Pair, Says("pixels seen, padding included; null: all of them")]
    jump: Annotated[Pair, Says("pixels between neighbouring units' fields")]
    start: Annotated[Pair, Says("first pixel of unit (0, 0), negative where padding reaches out")]
    first_unit: Annotated[
        Box, Says("the pixels that unit (0, 0) really reads: y0, x0, y1, x1, ends excluded")
    ]

    @classmethod
    def of(cls, field: ReceptiveField) -> "FieldRecord":
        """Describes a receptive field."""
        size, jump, start = (
            tuple(map(_finite, pair)) for pair in (field.size, field.jump, field.start)
        )
        return cls(size, jump, start, field.box(0, 0, clipped_to=field.input_size))

    @property
    def texts(self) -> tuple[str, ...]:
        """Size, jump and start, each vertical and horizontal, as text."""
        ends = ("inf", "inf", "-inf")
        pairs = zip((self.size, self.jump, self.start), ends, strict=True)
        return tuple(
            end if value is None else f"{value:g}" for pair, end in pairs for value in pair
        )


def _finite(value: float) -> float | None:
    if math.isinf(value):
        return None
    return int(value) if float(value).is_integer() else value


@dataclass(frozen=True)
class Octaves(Record):
    """A histogram of magnitudes."""

    first_exponent: int
    counts: Annotated[
        tuple[Count, ...],
        Says("entry i counts magnitudes from 2^(first_exponent + i) up to twice that"),
    ]


@dataclass(frozen=True, kw_only=True)
class SpreadRecord(Record):
    """How values are spread."""

    values: Count
    zeros: Annotated[Share, Says(digits=6)]
    negative: Annotated[Share, Says(digits=6)]
    not_finite: Count
    mean: Rounded
    deviation: Annotated[Unsigned, Says(digits=6)]
    lowest: Rounded | None
    highest: Rounded | None
    channels: Positive | None
    dead_channels: Annotated[
        tuple[Count, ...] | None,
        Says("channels with one and the same value throughout; null with one value each"),
    ]
    octaves: Octaves


@dataclass(frozen=True, kw_only=True)
class LayerRow(Record):
    """One layer."""

    name: Annotated[str, Says("empty for the network itself, where it owns parameters")]
    type_: str
    output_shape: Annotated[tuple[Count, ...] | None, Says("without the batch, of the last run")]
    parameters: Annotated[
        Count, Says("that are read, without modules inside with a row; a shared one counts once")
    ]
    macs: Annotated[Count, Says("of all runs, without modules inside that have their own row")]
    calls: Annotated[Positive, Says("runs in one forward pass")]
    receptive_field: Annotated[FieldRecord | None, Says("null where the network cannot be traced")]

    @property
    def shape(self) -> str:
        """The output shape as text, `64x112x112`."""
        return "-" if self.output_shape is None else "x".join(map(str, self.output_shape))


@dataclass(frozen=True, kw_only=True)
class MeasuredLayer(LayerRow):
    """One layer and its values on data; null if it does not output a tensor."""

    activations: SpreadRecord | None
    gradients: Annotated[SpreadRecord | None, Says("null without --gradients")]


@dataclass(frozen=True)
class DataStats(Record):
    """The images that the network was run on."""

    images: Positive
    labelled: Annotated[Count, Says("images whose loss was taken at the true class")]
    gradients: bool


@dataclass(frozen=True, kw_only=True)
class Inventory(Record):
    """All layers of a network, in order of execution (of their last run).

    `parameters` are those of the whole network, `macs` those of one pass over one image.
    """

    image_size: Sides
    parameters: Count
    parameters_unused: Annotated[Count, Says("that no operation reads on an image")]
    macs: Count
    untraceable: Annotated[str | None, Says("why there are no receptive fields")]
    data: DataStats | None = None
    layers: Annotated[tuple[MeasuredLayer | LayerRow, ...], Says(minItems=1)]

    @property
    def measured(self) -> list[MeasuredLayer]:
        """The layers whose values on data were measured."""
        rows = [row for row in self.layers if isinstance(row, MeasuredLayer)]
        return [row for row in rows if row.activations is not None]


def load(folder: Path | FinishedRun) -> Inventory:
    """Reads the results of a finished run.

    Raises:
        CnnvizError: the folder does not hold a run of `cnnviz layers`.
    """
    return from_json(Inventory, read_summary(folder).content["results"])


TABLE = "layers.csv"
TABLE_HEADER = (
    "layer", "type", "output_shape", "parameters", "macs", "calls", "size_y", "size_x",
    "jump_y", "jump_x", "start_y", "start_x",
)  # fmt: skip


def table_rows(layers: Sequence[LayerRow]) -> Iterator[tuple[object, ...]]:
    """The rows of `layers.csv`."""
    for row in layers:
        pairs = ("",) * 6 if row.receptive_field is None else row.receptive_field.texts
        yield row.name, row.type_, row.shape, row.parameters, row.macs, row.calls, *pairs
