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
    box_name,
)

FOLDER = "folder"
"""The label that means the name of each image's folder."""


class Border(StrEnum):
    """Which positions the masks take."""

    COVER = "cover"
    INSIDE = "inside"
    CENTER = "center"


class Score(StrEnum):
    """Score to compare before and after occlusion."""

    LOG_ODDS = "log-odds"
    LOGIT = "logit"
    PROBABILITY = "probability"
    LOSS = "loss"


class Preset(StrEnum):
    """Settings other than the defaults."""

    CLASSIC = "classic"
    """Those of the literature, as in MATLAB's occlusionSensitivity."""


class Upsample(StrEnum):
    """How position values become pixel values."""

    DENSITY = "density"
    COVERAGE = "coverage"
    BICUBIC = "bicubic"
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
    boxes: Annotated[
        tuple[str, ...],
        Option(
            "Box of a detector to explain: a number as in boxes.png of cnnviz detect, a class "
            "(all boxes of it), the N-th of a class as dog@2, or all; repeatable.",
            ("--box",),
            box_name,
        ),
    ] = ()
    method: Annotated[
        MapKind,
        Option("Map to draw over the image: occlusion's, or where Grad-CAM agrees with it."),
    ] = MapKind.OCCLUSION
    score: Annotated[
        Score | None,
        Option(
            "Score to compare before and after occlusion. Default: log-odds, log p/(1 - p), which "
            "does not saturate; of independent classes this is their logit."
        ),
    ] = None
    upsample: Annotated[
        Upsample | None,
        Option(
            "How pixels get values from positions: sum over the masks that cover them, divided by "
            "the largest number of masks (density), mean over them (coverage), or interpolation. "
            "Default: density."
        ),
    ] = None
    label: Annotated[
        str | None,
        Option("True class, by name or index; 'folder': the name of each image's folder."),
    ] = None

    @property
    def requested(self) -> tuple[str, ...]:
        """The boxes, or the classes."""
        return self.boxes or self.targets


@dataclass(frozen=True)
class OcclusionSpec(PanelSpec):
    """What `occlude` does; the defaults are those of the command line.

    `masks` and `stride` are (rows, columns) in pixels, `stride` also one number for both; None for
    `stride` and `batch_size` is automatic. docs/truth.md measures the defaults: large masks close
    together, log-odds, densities. A preset changes those that are not given.

    Raises:
        UsageError: a number is out of range.
    """

    masks: Masks = ()
    stride: Stride = None
    preset: Annotated[
        Preset | None,
        Option(
            "classic: the literature's settings for what is not given: mask 20 % and stride 10 % "
            "of the shorter side, probability, coverage."
        ),
    ] = None
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
    cuda_graphs: Annotated[
        bool,
        Option(
            "On a GPU, let the incremental engine replay its launches as one CUDA graph, from the "
            "third image of a run on."
        ),
    ] = True
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
