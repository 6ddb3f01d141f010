"""Options of `ablate`; imports nothing heavy, so that `--help` is fast."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import BatchSize, Option, Seed, Spec

STATE = "tally.npz"
"""The journal's file, in the run's folder."""


class Mode(StrEnum):
    """What replaces the output of an ablated channel."""

    ZERO = "zero"
    """Zero in every unit of the channel."""
    MEAN = "mean"
    """The channel's mean over all images and positions of the data."""


class RemovalOrder(StrEnum):
    """The order in which the filters of a layer are removed, one more at a time."""

    RANDOM = "random"
    LEAST_HARM = "least harm first"
    MOST_HARM = "most harm first"
    SMALLEST_NORM = "smallest kernel norm first"
    WEAKEST = "weakest activation first"


@dataclass(frozen=True)
class AblationSpec(Spec):
    """The options of `ablate`, with the defaults of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    filters: Annotated[
        tuple[str, ...],
        Option(
            "Filters to switch off together: LAYER:3,7-12, LAYER:all, LAYER:all-but:3, "
            "LAYER:random:10, or random:10 from all convolutions; LAYER may be names joined by + "
            "and may contain *. Repeatable."
        ),
    ] = ()
    mode: Annotated[
        Mode,
        Option("What replaces a filter's output: zero, or its mean over the data."),
    ] = Mode.ZERO
    sweep: Annotated[
        tuple[str, ...],
        Option(
            "Switch off each filter of this layer alone and rank them; all: of every "
            "convolution. Repeatable."
        ),
    ] = ()
    cumulative: Annotated[
        bool,
        Option(
            "With --sweep: accuracy while the layer's filters are removed one after the "
            "other, in several orders."
        ),
    ] = False
    memory: Annotated[
        int | None,
        Option(
            "MiB for replaying the layers after an ablated one. Default: 256; on a GPU up to 8192.",
            least=1,
        ),
    ] = None
    batch_size: BatchSize = None
    seed: Seed = 0
