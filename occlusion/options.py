"""What `occlude` lets its user choose; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import (
    At,
    BatchSize,
    Fill,
    Inside,
    Masks,
    Option,
    Seed,
    Spec,
    Stride,
    Targets,
)

FOLDER = "folder"
"""The label that stands for the name of each image's folder."""


class Border(StrEnum):
    """Which positions the masks take."""

    COVER = "cover"
    INSIDE = "inside"
    CENTER = "center"


class Score(StrEnum):
    """What is compared between the untouched and the covered image."""

    PROBABILITY = "probability"
    LOGIT = "logit"
    LOSS = "loss"


class Upsample(StrEnum):
    """How position values become pixel values."""

    COVERAGE = "coverage"
    DENSITY = "density"
    BILINEAR = "bilinear"
    NEAREST = "nearest"


class MapKind(StrEnum):
    """What is drawn and judged."""

    OCCLUSION = "occlusion"
    AGREEMENT = "agreement"


class EngineChoice(StrEnum):
    """How the covered images are run through the network."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, kw_only=True)
class PanelSpec(Spec):
    """Which maps are made of a measurement.

    Raises:
        UsageError: a number is out of range.
    """

    targets: Targets = ("predicted",)
    method: Annotated[
        MapKind,
        Option("Which map is drawn over the image: occlusion's, or where Grad-CAM agrees with it."),
    ] = MapKind.OCCLUSION
    score: Annotated[
        Score | None,
        Option(
            "What is compared between untouched and covered. Default: loss, or probability with "
            "a --mask or --stride; what the run shows, for render."
        ),
    ] = None
    upsample: Annotated[
        Upsample | None,
        Option(
            "From positions to pixels: mean over covering masks (coverage), their sum over the "
            "largest number of them (density), or interpolation. Default: density, or coverage "
            "with a --mask or --stride; what the run shows, for render."
        ),
    ] = None
    label: Annotated[
        str | None,
        Option("The true class, by name or index; 'folder': the name of each image's folder."),
    ] = None


@dataclass(frozen=True)
class OcclusionSpec(PanelSpec):
    """What `occlude` does; every default is the one of the command line.

    `masks` are (rows, columns) in pixels; of `stride` and `batch_size`, None is automatic. Neither
    masks nor stride: the setting that points best (docs/truth.md), measured as a whole: large masks
    close together, losses, densities. With either, the others are those of the literature.

    Raises:
        UsageError: a number is out of range.
    """

    masks: Masks = ()
    stride: Stride = None
    border: Annotated[
        Border,
        Option(
            "cover: the whole image, edge masks cut off; inside: whole masks only; center: "
            "centred on every S-th pixel."
        ),
    ] = Border.COVER
    fill: Fill = "mean"
    at: At = None
    inside: Inside = None
    layer: Annotated[str | None, Option("Also watch this layer's strongest map.")] = None
    engine: Annotated[
        EngineChoice,
        Option("full: whole passes; incremental: only what a mask can reach."),
    ] = EngineChoice.AUTO
    sufficient: Annotated[
        bool,
        Option(
            "Find the smallest part of the image that, kept alone, holds the class at 90 % of its "
            "probability, and the smallest that, covered, loses it (some 700 passes)."
        ),
    ] = False
    verify: Annotated[bool, Option("Have the other engine repeat 32 positions, and compare.")] = (
        False
    )
    batch_size: BatchSize = None
    seed: Seed = 0
