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
    segments: Annotated[
        str | None,
        Option(
            "Shapley values of these parts of the image: grid, slic (superpixels, needs "
            "scikit-image), or a label image (.npy or .png, of the file's size or of input.png's)."
        ),
    ] = None
    parts: Annotated[
        int, Option("Number of parts of grid and slic; up to 12 are exact.", least=2, most=400)
    ] = 12
    permutations: Annotated[
        int, Option("Random orders of more than 12 parts, an even number.", least=4, most=100_000)
    ] = 40
    fill: Fill = "mean"
    at: At = None
    inside: Inside = None
    batch_size: BatchSize = None
    seed: Seed = 0
