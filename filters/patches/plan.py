"""What a scan watches: which filters of which layers, settled against the network itself.

One forward pass on a blank image shows which layers run and what maps they put out; names and
numbers from the user are checked against that, before any data is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import Layout, note_repeats
from cnnviz.core.models.load import Model
from cnnviz.filters.channels.shapes import choose_filters
from cnnviz.filters.patches.choices import MaxPatchesSpec, Ranking


@dataclass(frozen=True)
class ScanPlan:
    """What is kept for which filters.

    Attributes:
        filters: layer name to filters, ascending.
        layouts: how what each of these layers puts out lies.
        spec: what was asked for.
    """

    filters: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, Layout]
    spec: MaxPatchesSpec


def make_plan(model: Model, spec: MaxPatchesSpec) -> ScanPlan:
    """Settles what a scan watches.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or the numbers make no sense.
    """
    if spec.per_image > 1 and spec.score is not Ranking.MAX:
        raise UsageError(
            f"--per-image {spec.per_image} goes with --score max alone: "
            f"'{spec.score}' ranks whole maps, and an image has one map per filter"
        )
    chosen, layouts = choose_filters(model, spec.filters, spec.layers, spec.seed)
    note_repeats(model, list(chosen))
    return ScanPlan(chosen, layouts, spec)
