"""What `summary.json` says of a layer's kernels: plain data, no NaN."""

from typing import Annotated

import numpy as np
from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Change,
    Count,
    ModelEntry,
    Positive,
    Said,
    Share,
    Sides,
    Unsigned,
)
from cnnviz.core.output.numbers import fewer_digits
from cnnviz.filters.kernels.gabor import GABOR_LIKE, GaborFit
from cnnviz.filters.kernels.weights import DEAD_BELOW, DUPLICATE_ABOVE, GaborStats, KernelStats

KERNELS = "kernels.npz"
"""Every layer's kernels (F, C, H, W), as `kernels.<layer>`."""


class Duplicate(TypedDict):
    """Two filters of nearly the same direction."""

    filters: Annotated[list[Count], Said(minItems=2, maxItems=2)]
    cosine: Change


class Fit(TypedDict):
    """The Gabor function nearest to a kernel."""

    r2: Share
    orientation: Annotated[
        float, Said("degrees, across the stripes, counter-clockwise", minimum=0, maximum=180)
    ]
    wavelength: Annotated[float, Said("pixels", minimum=2)]
    phase: Annotated[float, Said("degrees", minimum=0, maximum=360)]
    centre: Annotated[
        list[float], Said("right, up of the kernel's middle, pixels", minItems=2, maxItems=2)
    ]
    window: Annotated[
        list[Annotated[float, Said(exclusiveMinimum=0)]],
        Said("standard deviations across and along the stripes, pixels", minItems=2, maxItems=2),
    ]
    amplitudes: Annotated[list[float], Said("one per input channel")]


class Gabor(TypedDict):
    """How much of a layer looks like Gabor functions."""

    like_above: float
    share: Annotated[Share, Said("of the filters with R² above like_above")]
    share_by_chance: Annotated[Share, Said("the same with each kernel's pixels shuffled")]
    fits: Annotated[list[Fit | None], Said("one per filter; null for dead and constant ones")]


class Layer(TypedDict):
    """One layer's kernels."""

    layer: str
    type: str
    filters: Positive
    channels: Positive
    kernel: Sides
    groups: Positive
    largest_weight: Unsigned
    norms: list[Unsigned]
    dead: list[Count]
    dead_below: Annotated[float, Said("share of the layer's largest norm")]
    duplicates: list[Duplicate]
    duplicates_above: Annotated[float, Said("|cosine|")]
    chromaticity: list[Annotated[Share, Said("share of the filter's energy that is colour")]] | None
    gabor: Gabor | None


class Compared(Layer):
    """The first layer of another network."""

    model: ModelEntry


class Results(TypedDict):
    """The `results` of the summary."""

    layers: Annotated[list[Layer], Said(minItems=1)]
    compared: list[Compared]


def report(found: KernelStats) -> Layer:
    """One entry of `results.layers`."""
    count, channels, height, width = found.kernels.shape
    chroma = found.chromaticity
    return {
        "layer": found.layer,
        "type": found.kind,
        "filters": count,
        "channels": channels,
        "kernel": [height, width],
        "groups": found.groups,
        "largest_weight": fewer_digits(float(np.abs(found.kernels).max(initial=0))),
        "norms": [fewer_digits(float(norm)) for norm in found.norms],
        "dead": list(found.dead),
        "dead_below": DEAD_BELOW,
        "duplicates": [
            {"filters": [pair.first, pair.second], "cosine": fewer_digits(pair.cosine)}
            for pair in found.duplicates
        ],
        "duplicates_above": DUPLICATE_ABOVE,
        "chromaticity": None
        if chroma is None
        else [fewer_digits(float(value)) for value in chroma],
        "gabor": None if found.gabor is None else _gabor(found.gabor),
    }


def _gabor(gabor: GaborStats) -> Gabor:
    return {
        "like_above": GABOR_LIKE,
        "share": fewer_digits(gabor.share),
        "share_by_chance": fewer_digits(gabor.shuffled_share),
        "fits": [None if fit is None else _fit(fit) for fit in gabor.fits],
    }


def _fit(fit: GaborFit) -> Fit:
    return {
        "r2": fewer_digits(fit.r2),
        "orientation": fewer_digits(fit.orientation),
        "wavelength": fewer_digits(fit.wavelength),
        "phase": fewer_digits(fit.phase),
        "centre": [fewer_digits(value) for value in fit.centre],
        "window": [fewer_digits(value) for value in fit.window],
        "amplitudes": [fewer_digits(value) for value in fit.amplitudes],
    }
