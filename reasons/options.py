"""Options of `reasons`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError
from cnnviz.core.options import At, BatchSize, Fill, Inside, Option, Seed, Spec, Targets


class Question(StrEnum):
    """A question that is asked besides the regions."""

    PAIRS = "pairs"
    """Which cells need each other, and which can replace each other?"""
    FILTERS = "filters"
    """Which filters carry the region whose occlusion hurts most?"""


def corners(text: str, option: str) -> tuple[int, int, int, int]:
    """`40,60,120,150` to rows and columns y0, x0, y1, x1, ends excluded."""
    found = [whole_number(part.strip()) for part in text.split(",")]
    if len(found) == 4 and None not in found:
        y0, x0, y1, x1 = (number or 0 for number in found)
        if y0 < y1 and x0 < x1:
            return y0, x0, y1, x1
    raise UsageError(
        f"invalid region '{text[:40]}'; {option} takes rows and columns of the working image as "
        "top,left,bottom,right: 40,60,120,150"
    )


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
    skip: Annotated[
        tuple[Question, ...],
        Option("Leave out a part: pairs (of cells), filters; repeatable."),
    ] = ()
    grid: Annotated[int, Option("Pairs: cells along each side of the image.", least=2, most=16)] = 7
    region: Annotated[
        tuple[int, int, int, int] | None,
        Option(
            "Filters: the region to occlude, in pixels of the working image, as "
            "top,left,bottom,right. Default: the mask whose occlusion hurts most.",
            parse=corners,
            metavar="TOP,LEFT,BOTTOM,RIGHT",
        ),
    ] = None
    layers: Annotated[
        tuple[str, ...],
        Option(
            "Filters: layer to look into; repeatable. Default: of the last four sizes of maps, the "
            "last layer that everything goes through.",
            ("--layer",),
        ),
    ] = ()
    group: Annotated[
        int, Option("Filters: neighbouring filters that are put together.", least=1)
    ] = 1
    fill: Fill = "mean"
    at: At = None
    inside: Inside = None
    batch_size: BatchSize = None
    seed: Seed = 0
