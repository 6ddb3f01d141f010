"""Options of `cnnviz max-patches`; imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import BatchSize, Option, Seed, Spec

STATE = "scan-state.npz"
"""The journal's file, in the run's folder."""


class Ranking(StrEnum):
    """How images are ranked for a filter, by the filter's map on each."""

    MAX = "max"
    """The largest unit."""
    NORM = "norm"
    """The Frobenius norm of the map."""
    MEAN = "mean"
    """The mean over the map."""


class Crop(StrEnum):
    """The part of the image that is a unit's patch."""

    RECEPTIVE_FIELD = "receptive-field"
    """All pixels that the unit can see."""
    EFFECTIVE = "effective"
    """If that is most of the image: the box with 90 % of the unit's input-gradient energy."""


@dataclass(frozen=True)
class MaxPatchesSpec(Spec):
    """Which filters `max-patches` watches, and how patches are ranked and cut.

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
        Ranking, Option("Rank images by the map's largest unit, Frobenius norm or mean.")
    ] = Ranking.MAX
    crop: Annotated[
        Crop,
        Option(
            "The patch: the unit's receptive field or, if that is most of the image, the box with "
            "90 % of its input gradient."
        ),
    ] = Crop.EFFECTIVE
    per_image: Annotated[
        int,
        Option("Maximum number of patches of one image among a filter's top.", least=1, most=1000),
    ] = 1
    batch_size: BatchSize = None
    seed: Seed = 0
