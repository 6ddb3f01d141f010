"""What a scan watches: which filters of which layers, settled against the network itself.

One forward pass on a blank image shows which layers run and what maps they put out; names and
numbers from the user are checked against that, before any data is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import note_repeats
from cnnviz.core.models.load import Model
from cnnviz.filters.channels.shapes import MapShape, choose_filters
from cnnviz.filters.patches.choices import Ranking


@dataclass(frozen=True)
class ScanPlan:
    """What is kept for which filters.

    Attributes:
        filters: layer name to filters, ascending.
        shapes: of the maps of each of these layers.
        top: patches kept per filter.
        score: what ranks the images.
        per_image: patches that one image may have among them.
    """

    filters: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, MapShape]
    top: int
    score: Ranking
    per_image: int


def make_plan(
    model: Model,
    *,
    layers: Sequence[str] = (),
    filters: Sequence[str] = ("all",),
    top: int = 9,
    score: Ranking = Ranking.MAX,
    per_image: int = 1,
    seed: int = 0,
) -> ScanPlan:
    """Settles what a scan watches.

    Args:
        model: the network.
        layers: names, or patterns with `*`; all convolutions that run if empty.
        filters: specifications (`channels.shapes.choose_filters`).
        top: patches kept per filter.
        score: what ranks the images.
        per_image: patches that one image may have among them.
        seed: of the random draw.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or the numbers make no sense.
    """
    _check(top, per_image, score)
    chosen, shapes = choose_filters(model, filters, layers, seed)
    note_repeats(model, list(chosen))
    return ScanPlan(chosen, shapes, top, score, per_image)


def _check(top: int, per_image: int, score: Ranking) -> None:
    if top < 1:
        raise UsageError(f"--top {top}: it takes a whole number from 1")
    if per_image < 1:
        raise UsageError(f"--per-image {per_image}: it takes a whole number from 1")
    if per_image > 1 and score is not Ranking.MAX:
        raise UsageError(
            f"--per-image {per_image} goes with --score max alone: "
            f"'{score}' ranks whole maps, and an image has one map per filter"
        )
