"""Choices of `max-patches`; imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import BatchSize, Option, Seed, Spec

STATE = "scan-state.npz"
"""The journal's file, in the run's folder."""


class Ranking(StrEnum):
    """What ranks the images for a filter, given the filter's map on each."""

    MAX = "max"
    """The largest unit."""
    NORM = "norm"
    """The Frobenius norm of the map."""
    MEAN = "mean"
    """The mean over the map."""


class Crop(StrEnum):
    """Which part of the image is the patch of a unit."""

    RECEPTIVE_FIELD = "receptive-field"
    """All pixels that the unit can see."""
    EFFECTIVE = "effective"
    """Where that is most of the image: the box with 90 % of the unit's input-gradient energy."""


@dataclass(frozen=True)
class MaxPatchesSpec(Spec):
    """What `max-patches` does; every default is the one of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    layers: Annotated[
        tuple[str, ...],
        Option(
            "Layer to watch, or a pattern with *; repeatable. Default: all convolutions.",
            ("--layer",),
        ),
    ] = ()
    filters: Annotated[
        tuple[str, ...],
        Option(
            "all, 3,7-12 (in each layer), random:10 (from the layers together), or "
            "LAYER:3,7; repeatable. Default: all."
        ),
    ] = ("all",)
    top: Annotated[int, Option("Patches per filter.", least=1, most=10_000)] = 9
    score: Annotated[
        Ranking, Option("What ranks the images: largest unit, Frobenius norm or mean of the map.")
    ] = Ranking.MAX
    crop: Annotated[
        Crop,
        Option(
            "The patch: all that the unit sees, or, where that is most of the image, the box "
            "with 90 % of its input gradient."
        ),
    ] = Crop.RECEPTIVE_FIELD
    per_image: Annotated[
        int,
        Option("Patches that one image may have among a filter's top.", least=1, most=1000),
    ] = 1
    batch_size: BatchSize = None
    seed: Seed = 0
