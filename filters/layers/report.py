"""What `summary.json` says of a network's layers: plain data, null in place of infinity."""

import math
from typing import Any

from cnnviz.core.graph.receptive_field import ReceptiveField
from cnnviz.core.output.numbers import fewer_digits
from cnnviz.filters.layers.inventory import Inventory, LayerRow
from cnnviz.filters.layers.spread import LOWEST_EXPONENT, Spread
from cnnviz.filters.layers.statistics import Statistics


def report(found: Inventory, statistics: Statistics | None = None) -> dict[str, Any]:
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


def _data(statistics: Statistics) -> dict[str, Any]:
    return {
        "images": statistics.images,
        "labelled": statistics.labelled,
        "gradients": bool(statistics.gradients),
    }


def _layer(row: LayerRow, statistics: Statistics | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
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


def _field(field: ReceptiveField) -> dict[str, Any]:
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


def _spread(spread: Spread | None) -> dict[str, Any] | None:
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
