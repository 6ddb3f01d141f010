"""Commands that look at a network's layers and weights."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from cnnviz.cli.options import SOURCES, ClusterOptions, Limit, ModelOptions, OutputOptions, Resume
from cnnviz.core.choices import Scaling, pixels
from cnnviz.core.options import Option


@dataclass(frozen=True, kw_only=True)
class ModelsCommand:
    """List the models you can name, and the weights on disk.

    cnnviz models resnet

    Besides these, --model takes timm:NAME, hf:FOLDER_OR_ID, and a network of your own:
    path/to/file.py:factory.
    """

    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="Only models with this in their name."),
    ] = None
    json: Annotated[bool, Option("Print the list as JSON and nothing else.")] = False


@dataclass(frozen=True, kw_only=True)
class LayersCommand:
    """List the layers: shapes, parameters, receptive fields.

    cnnviz layers --model resnet18 photos/ --gradients

    Writes the table as CSV and, with DATA, a picture of activations and gradients by layer.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("gradients", "limit")

    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]…",
            help=f"Also run on these images and report how values spread: {SOURCES}",
        ),
    ] = None
    image_size: Annotated[
        tuple[int, int] | None,
        Option("Image for shapes, MACs and receptive fields, as 224 or HxW.", parse=pixels),
    ] = None
    gradients: Annotated[
        bool, Option("With DATA: also report how the gradients of the loss spread.")
    ] = False
    limit: Limit = None
    resume: Resume = False
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class FiltersCommand:
    """Show a layer's filters: dead, duplicated or Gabor-like?

    cnnviz filters --model resnet18 --compare densenet121

    Writes a picture of the kernels of each layer, and of the Gabor fits of the first.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("layer",)

    layer: Annotated[str, Option("first (the first convolution), all, or a layer's name.")] = (
        "first"
    )
    normalize: Annotated[
        Scaling, Option("Black and white are the largest weight of each filter or of the layer.")
    ] = Scaling.FILTER
    compare: Annotated[
        tuple[str, ...],
        Option(
            "Another model to compare with, with its default weights or those of a file; "
            "repeatable. Its first convolution is shown.",
            metavar="MODEL[=CHECKPOINT]",
        ),
    ] = ()
    gabor: Annotated[bool, Option("Fit Gabor filters to the first layer.")] = True
    model: ModelOptions
    output: OutputOptions
