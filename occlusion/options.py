"""Options of `occlude` and `render`; imports nothing heavy."""

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
    """Score to compare before and after occlusion."""

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
    """Which map is drawn and judged."""

    OCCLUSION = "occlusion"
    AGREEMENT = "agreement"


class EngineChoice(StrEnum):
    """How the occluded images are run through the network."""

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
        Option("Map to draw over the image: occlusion's, or where Grad-CAM agrees with it."),
    ] = MapKind.OCCLUSION
    score: Annotated[
        Score | None,
        Option(
            "Score to compare before and after occlusion. Default: loss, or probability with a "
            "--mask or --stride."
        ),
    ] = None
    upsample: Annotated[
        Upsample | None,
        Option(
            "How pixels get values from positions: mean over the masks that cover them (coverage), "
            "sum over them divided by the largest number of masks (density), or interpolation. "
            "Default: density, or coverage with a --mask or --stride."
        ),
    ] = None
    label: Annotated[
        str | None,
        Option("True class, by name or index; 'folder': the name of each image's folder."),
    ] = None


@dataclass(frozen=True)
class OcclusionSpec(PanelSpec):
    """What `occlude` does; the defaults are those of the command line.

    `masks` are (rows, columns) in pixels; None for `stride` and `batch_size` is automatic. Without
    masks and stride, the defaults are the combination that points best (docs/truth.md): large masks
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
    layer: Annotated[str | None, Option("Layer whose strongest channel is recorded, too.")] = None
    engine: Annotated[
        EngineChoice,
        Option("full: whole passes; incremental: only what a mask can reach."),
    ] = EngineChoice.AUTO
    sufficient: Annotated[
        bool,
        Option(
            "Find the smallest part of the image that alone keeps 90 % of the class's "
            "probability, and the smallest whose occlusion loses the class (about 700 passes)."
        ),
    ] = False
    verify: Annotated[bool, Option("Repeat 32 positions with the other engine, and compare.")] = (
        False
    )
    batch_size: BatchSize = None
    seed: Seed = 0
