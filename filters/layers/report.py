"""What `summary.json` says of a network's layers: plain data, null in place of infinity."""

import math
from typing import Annotated, NotRequired

from typing_extensions import TypedDict

from cnnviz.core.graph.receptive_field import ReceptiveField
from cnnviz.core.output.entries import Box, Count, Positive, Said, Share, Sides, Unsigned
from cnnviz.core.output.numbers import fewer_digits
from cnnviz.filters.layers.inventory import Inventory, LayerRow
from cnnviz.filters.layers.spread import LOWEST_EXPONENT, Spread
from cnnviz.filters.layers.statistics import Statistics

Axes = Annotated[list[float | None], Said(minItems=2, maxItems=2)]
"""Vertical, horizontal; null stands for infinity, which JSON does not have."""


class Data(TypedDict):
    """The images that were run."""

    images: Positive
    labelled: Annotated[Count, Said("images whose loss was taken at the true class")]
    gradients: bool


class Field(TypedDict):
    """A receptive field."""

    size: Annotated[Axes, Said("pixels seen, padding included; null: all of them")]
    jump: Annotated[Axes, Said("pixels between neighbouring units' fields")]
    start: Annotated[Axes, Said("first pixel of unit (0, 0), negative where padding reaches out")]
    first_unit: Annotated[
        Box, Said("the pixels that unit (0, 0) really reads: y0, x0, y1, x1, ends excluded")
    ]


class Octaves(TypedDict):
    """A histogram of magnitudes."""

    first_exponent: int
    counts: Annotated[
        list[Count],
        Said("entry i counts magnitudes from 2^(first_exponent + i) up to twice that"),
    ]


class SpreadEntry(TypedDict):
    """How values are spread."""

    values: Count
    zeros: Share
    negative: Share
    not_finite: Count
    mean: float
    deviation: Unsigned
    lowest: float | None
    highest: float | None
    channels: Positive | None
    dead_channels: Annotated[
        list[Count] | None, Said("channels with one and the same value throughout")
    ]
    octaves: Octaves


class Layer(TypedDict):
    """One layer."""

    name: Annotated[str, Said("empty for the network itself, where it owns parameters")]
    type: str
    output_shape: Annotated[list[Count] | None, Said("without the batch")]
    parameters: Count
    macs: Count
    calls: Positive
    receptive_field: Annotated[Field | None, Said("null where the network cannot be traced")]
    activations: NotRequired[SpreadEntry | None]
    gradients: NotRequired[SpreadEntry | None]


class Results(TypedDict):
    """The `results` of the summary."""

    image_size: Sides
    parameters: Count
    parameters_unused: Annotated[Count, Said("of modules that do not run on an image")]
    macs: Count
    untraceable: Annotated[str | None, Said("why there are no receptive fields")]
    data: Data | None
    layers: Annotated[list[Layer], Said(minItems=1)]


def report(found: Inventory, statistics: Statistics | None = None) -> Results:
    """`results`."""
    return {
        "image_size": list(found.image_size),
        "parameters": found.parameters,
        "parameters_unused": found.unused,
        "macs": found.macs,
        "untraceable": found.untraceable,
        "data": None if statistics is None else _data(statistics),
        "layers": [_layer(row, statistics) for row in found.rows],
    }


def _data(statistics: Statistics) -> Data:
    return {
        "images": statistics.images,
        "labelled": statistics.labelled,
        "gradients": bool(statistics.gradients),
    }


def _layer(row: LayerRow, statistics: Statistics | None) -> Layer:
    entry: Layer = {
        "name": row.name,
        "type": row.kind,
        "output_shape": None if row.output_shape is None else list(row.output_shape),
        "parameters": row.parameters,
        "macs": row.macs,
        "calls": row.calls,
        "receptive_field": None if row.field is None else _field(row.field),
    }
    if statistics is not None:
        entry["activations"] = _spread(statistics.activations.get(row.name))
        entry["gradients"] = _spread(statistics.gradients.get(row.name))
    return entry


def _field(field: ReceptiveField) -> Field:
    return {
        "size": [_finite(value) for value in field.size],
        "jump": [_finite(value) for value in field.jump],
        "start": [_finite(value) for value in field.start],
        "first_unit": list(field.box(0, 0, clipped_to=field.input_size)),
    }


def _finite(value: float) -> float | None:
    if math.isinf(value):
        return None
    return int(value) if float(value).is_integer() else value


def _spread(spread: Spread | None) -> SpreadEntry | None:
    if spread is None:
        return None
    taken = spread.octaves_B.nonzero().flatten().tolist()
    first, last = (taken[0], taken[-1] + 1) if taken else (0, 0)
    count = max(1, spread.count)
    channels = None if spread.lows_C is None else len(spread.lows_C)
    return {
        "values": spread.count,
        "zeros": fewer_digits(spread.zeros / count),
        "negative": fewer_digits(spread.negative / count),
        "not_finite": spread.not_finite,
        "mean": fewer_digits(spread.mean),
        "deviation": fewer_digits(spread.deviation),
        "lowest": None if spread.lowest is None else fewer_digits(spread.lowest),
        "highest": None if spread.highest is None else fewer_digits(spread.highest),
        "channels": channels,
        "dead_channels": spread.dead,
        "octaves": {
            "first_exponent": LOWEST_EXPONENT + first - 1,
            "counts": spread.octaves_B[first:last].tolist(),
        },
    }
