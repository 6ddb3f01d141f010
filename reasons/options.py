"""Options of `reasons`; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from cnnviz.core.options import At, BatchSize, Fill, Inside, Option, Seed, Spec, Targets


@dataclass(frozen=True)
class ReasonsSpec(Spec):
    """What `reasons` does; the defaults are those of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    targets: Targets = ("predicted",)
    cell: Annotated[
        int | None,
        Option("Side of a cell of the grid in pixels. Default: 7 % of the image's side.", least=1),
    ] = None
    most: Annotated[int, Option("Maximum number of reasons.", least=1, most=20)] = 4
    hold: Annotated[
        float,
        Option(
            "Share of the class's probability that a region kept alone must have; the class must "
            "be predicted, too, if it was. 0: the prediction is enough.",
            least=0,
            most=1,
        ),
    ] = 0.9
    fill: Fill = "mean"
    at: At = None
    inside: Inside = None
    batch_size: BatchSize = None
    seed: Seed = 0
