"""Commands that go through a whole data set."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from cnnviz.audit.options import AuditSpec
from cnnviz.cli.options import (
    SOURCES,
    ClusterOptions,
    Expect,
    Limit,
    ModelOptions,
    OutputOptions,
    Resume,
    Share,
)
from cnnviz.core.options import Option
from cnnviz.embeddings.options import EmbeddingSpec
from cnnviz.filters.ablation.options import AblationSpec
from cnnviz.filters.patches.options import MaxPatchesSpec


@dataclass(frozen=True, kw_only=True)
class MaxPatchesCommand:
    """Find the image patches that activate each filter most.

    cnnviz max-patches photos/ --model resnet18 --layer layer3.0.conv2 --filters random:10

    Writes for each layer sheets of patches and of whole images with the patch as a white box.
    """

    FIRST: ClassVar[tuple[str, ...]] = (
        *("layers", "filters", "top", "crop", "evidence", "limit", "resume"),
    )

    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"Images: {SOURCES}",
        ),
    ]
    spec: MaxPatchesSpec
    limit: Limit = None
    pictures: Annotated[bool, Option("Draw the sheets.")] = True
    evidence: Annotated[
        bool,
        Option(
            "Also save and draw what in each patch drives the filter: its gradient, and guided "
            "back-projection."
        ),
    ] = False
    resume: Resume = False
    shard: Share = None
    save_every: Annotated[int, Option("Save the scan's state after every N batches.", least=1)] = 20
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class AblateCommand:
    """Switch filters off and measure what the network loses.

    cnnviz ablate photos/ --filters layer4.1.conv2:3,7-12 --sweep layer4.1.conv2

    Writes accuracy per class, confusions and flipped images, and the rank of each swept filter.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("filters", "sweep", "cumulative", "mode", "limit")

    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"Labelled images: {SOURCES}",
        ),
    ]
    spec: AblationSpec
    top: Annotated[int, Option("Filters of the sweep to show; sweep.csv has all.", least=1)] = 20
    limit: Limit = None
    min_accuracy: Annotated[
        float | None,
        Option(
            "Exit with status 3 if the accuracy left after --filters is below this.",
            least=0,
            most=1,
        ),
    ] = None
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """Check a data set for shortcuts: where does the network look?

    cnnviz audit photos/ --model resnet18 --limit 1000

    Writes, for each class, where its evidence is, what it is, and whether it carries over when
    pasted into images of other classes.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("max_suspicion", "expect", "top", "limit")

    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help=f"Images, labelled or not: {SOURCES}"),
    ]
    spec: AuditSpec
    expect: Expect = None
    max_suspicion: Annotated[
        float | None,
        Option(
            "Exit with status 3 if the suspicion of any class is above this.",
            least=0,
            most=1,
        ),
    ] = None
    min_inside: Annotated[
        float | None,
        Option(
            "With --expect: exit with status 3 if less than this share of the positive evidence "
            "is on the objects, on average.",
            least=0,
            most=1,
        ),
    ] = None
    limit: Limit = None
    pictures: Annotated[bool, Option("Draw the sheets.")] = True
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class TsneCommand:
    """Map a data set as the network sees it (t-SNE).

    cnnviz tsne photos/ --model resnet18 --perplexity 30

    Writes maps of points, of the images themselves and of a grid, the features, and how far the
    map can be trusted. Features of an earlier run in the same folder are used again if they fit.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("layer", "perplexities", "limit")

    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"Images: {SOURCES}",
        ),
    ]
    spec: EmbeddingSpec
    limit: Limit = None
    pictures: Annotated[bool, Option("Draw the maps.")] = True
    resume: Resume = False
    shard: Share = None
    cluster: ClusterOptions
    model: ModelOptions
    output: OutputOptions
