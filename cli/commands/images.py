"""Commands that study images one by one."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from cnnviz.cli.options import (
    IMAGES,
    ClusterOptions,
    Data,
    Expect,
    ModelOptions,
    OutputOptions,
    Resume,
    Share,
)
from cnnviz.core.choices import pixels
from cnnviz.core.options import Option
from cnnviz.core.output.options import Look
from cnnviz.filters.activations.options import ActivationsSpec
from cnnviz.gradients.options import SaliencySpec
from cnnviz.occlusion.options import OcclusionSpec, PanelSpec
from cnnviz.reasons.options import ReasonsSpec
from cnnviz.trust.options import MinTrust, Trust, TrustSpec


class Pictures(StrEnum):
    """What is drawn of each image."""

    ALL = "all"
    OVERLAY = "overlay"
    NONE = "none"


class Other(StrEnum):
    """What a saliency map can be compared with."""

    OCCLUSION = "occlusion"


@dataclass(frozen=True, kw_only=True)
class OccludeCommand:
    """Show which parts of an image carry the prediction.

    cnnviz occlude dog.jpg --model resnet18 --mask 15 --stride 10

    Writes overlay, heatmap, probability and label pictures and the raw scores, for each image.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        "targets", "boxes", "masks", "stride", "method", "expect", "trust",
    )  # fmt: skip

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    spec: OcclusionSpec
    look: Look
    expect: Expect = None
    both: Annotated[
        bool,
        Option("With --like: explain the reference image, too, by its similarity to each image."),
    ] = False
    min_inside: Annotated[
        float | None,
        Option(
            "With --expect: exit with status 3 if less than this share of the positive "
            "evidence lies on the object.",
            least=0,
            most=1,
        ),
    ] = None
    scores: Annotated[bool, Option("Write scores.npz (what render reads).")] = True
    pictures: Annotated[
        Pictures, Option("Pictures to draw; render draws the others from the scores.")
    ] = Pictures.ALL
    resume: Resume = False
    shard: Share = None
    trust: Trust = False
    min_trust: MinTrust = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class DetectCommand:
    """Draw and number the boxes that a detector finds.

    cnnviz detect street.jpg --model fasterrcnn_resnet50_fpn

    Writes a picture of the boxes, for each image; occlude --box N explains the N-th.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("threshold", "size")

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class RenderCommand:
    """Redraw an occlusion run: other classes, scores or colours.

    cnnviz render cnnviz-out/occlude/dog --target tabby --score loss --colormap jet

    Needs no model: the run keeps the scores of every class. What is not given is as in the run.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("targets", "boxes", "method", "score", "colormap")

    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What cnnviz occlude wrote for one image.")
    ]
    spec: PanelSpec
    look: Look
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class SaliencyCommand:
    """Trace a prediction back to the image: Grad-CAM and its relatives, gradients.

    cnnviz saliency dog.jpg --model resnet18 --layer layer4 --compare occlusion

    Writes overlay and heatmap pictures and the raw values, for each image.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("targets", "method", "layer", "compare", "trust")

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    spec: SaliencySpec
    look: Look
    compare: Annotated[
        Other | None, Option("Compare the map with one of another kind: occlusion (of the logit).")
    ] = None
    mask: Annotated[
        tuple[int, int] | None,
        Option("With --compare: side of the mask in pixels, or HxW.", parse=pixels),
    ] = None
    stride: Annotated[
        tuple[int, int] | int | None,
        Option("With --compare: pixels between mask positions, or HxW.", (), pixels, least=1),
    ] = None
    trust: Trust = False
    min_trust: MinTrust = None
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class TrustCommand:
    """Judge how far a heatmap of any tool can be trusted.

    cnnviz trust dog.jpg --model resnet18 --map theirs.npy --target beagle

    Writes the map over the image with its verdict, removal curves, and the scorecard.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("given", "targets", "expect", "min_trust")

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    spec: TrustSpec
    look: Look
    given: Annotated[
        Path | None,
        Option(
            "Map of the first target, rows x columns of the working image, positive where there is "
            "evidence for the class: a .npy file, or a folder with one named like each image. "
            "Default: occlusion's map.",
            ("--map",),
            lambda text, _option: Path(text),
            metavar="PATH",
        ),
    ] = None
    expect: Expect = None
    min_trust: MinTrust = None
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class ReasonsCommand:
    """Find how many reasons a prediction has, and which of them are needed.

    cnnviz reasons dog.jpg --model resnet18

    Writes the regions that each hold the class alone, over the image, and their numbers.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("targets", "cell", "most", "skip", "units", "expect")

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    spec: ReasonsSpec
    expect: Expect = None
    units: Annotated[
        Path | None,
        Option(
            "Finished run of max-patches of the same network: shows each filter's strongest "
            "patches. Default of --layer: those of the run.",
            metavar="RUN",
        ),
    ] = None
    data: Data = ()
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class ActivationsCommand:
    """Show what a layer responds to in an image: feature maps.

    cnnviz activations dog.jpg --model resnet18 --layer layer4 --top 64

    Writes a sheet of grey tiles for each layer, overlays for --filters, and the raw maps.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("layers", "filters", "top", "order")

    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES)]
    spec: ActivationsSpec
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions
