"""What drives each filter most: its strongest patches over a whole data set, in one pass.

Zeiler and Fergus 2014 ("Visualizing and Understanding Convolutional Networks", section 3) and
Girshick et al. 2014 ("Rich feature hierarchies", section 3.1) read a filter off the image regions
that make it fire. The scan (`scan`) finds the units; here each unit becomes a patch, cut by the
unit's exact receptive field, and each filter gets the numbers that say how it spreads its score.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cnnviz.core.data.datasets import ImageData, none_usable
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.models.load import Model
from cnnviz.filters.patches.boxes import Cutter, Winner
from cnnviz.filters.patches.choices import MaxPatchesSpec
from cnnviz.filters.patches.effective_field import Box
from cnnviz.filters.patches.images import PatchImages
from cnnviz.filters.patches.plan import ScanPlan, make_plan
from cnnviz.filters.patches.scan import Saving, default_batch_size, scan
from cnnviz.filters.patches.state import LayerState
from cnnviz.filters.patches.top_k import unpack

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the score that are reported."""


@dataclass(frozen=True)
class Patch:
    """One image region that drives a filter.

    Attributes:
        index: the image's place in the data set.
        image: its path.
        label: its class in the data set, if known.
        score: what ranked it.
        unit: (row, column) of the strongest unit in the filter's map.
        box: y0, x0, y1, x1 of the patch in the working image.
        box_original: the same in the file's own pixels.
    """

    index: int
    image: str
    label: str | None
    score: float
    unit: tuple[int, int]
    box: Box
    box_original: Box


@dataclass(frozen=True)
class FilterPatches:
    """What one filter answers to.

    Attributes:
        layer: the layer's name.
        filter: its output channel.
        patches: strongest first; fewer than asked for where the data set has fewer images.
        active_share: share of images with a unit above zero; 0 is a dead filter.
        mean: of the score over all images.
        lowest: of the scores.
        highest: of the scores.
        quantiles: at `LEVELS`, each within 1/16 of the exact one (`score_stats`).
        classes: how often each class occurs among the patches; None without labels.
    """

    layer: str
    filter: int
    patches: tuple[Patch, ...]
    active_share: float
    mean: float
    lowest: float
    highest: float
    quantiles: tuple[float, ...]
    classes: Mapping[str, int] | None

    @property
    def entropy(self) -> float | None:
        """Of the class mix, in bits: 0 is one class alone; None without labels."""
        if not self.classes:
            return None
        total = sum(self.classes.values())
        shares = [count / total for count in self.classes.values()]
        return abs(sum(share * math.log2(share) for share in shares))


@dataclass(frozen=True)
class MaxPatches:
    """The result of a scan.

    Attributes:
        plan: what was asked.
        images: how many counted.
        filters: in the order of the plan.
        errors: (image, message) of those that did not count.
    """

    plan: ScanPlan
    images: int
    filters: tuple[FilterPatches, ...]
    errors: tuple[tuple[str, str], ...]

    def of(self, layer: str) -> tuple[FilterPatches, ...]:
        """One layer's filters."""
        return tuple(entry for entry in self.filters if entry.layer == layer)

    @property
    def dead(self) -> tuple[FilterPatches, ...]:
        """The filters none of whose units was above zero on any image."""
        return tuple(entry for entry in self.filters if entry.active_share == 0)


def max_patches(
    model: Model,
    data: ImageData,
    spec: MaxPatchesSpec | None = None,
    *,
    saving: Saving | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> MaxPatches:
    """Finds the strongest patches of every filter asked for in one pass over the data.

    Args:
        model: from `cnnviz.core.load_model`.
        data: from `cnnviz.core.open_data`.
        spec: which filters, how many patches, ranked by what; None for the defaults.
        saving: where to write down how far the scan has come, and whether to go on from there.
        progress: called with the number of images just gone through.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or the numbers make no sense.
        CnnvizError: as `find_patches`.
    """
    plan = make_plan(model, spec or MaxPatchesSpec())
    return find_patches(model, data, plan, saving=saving, progress=progress)


def find_patches(
    model: Model,
    data: ImageData,
    plan: ScanPlan,
    *,
    saving: Saving | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> MaxPatches:
    """The same by a plan that is made already.

    Args:
        model: the network.
        data: the images.
        plan: which filters, how many patches, ranked by what.
        saving: where to write down how far the scan has come, and whether to go on from there.
        progress: called with the number of images just gone through.

    Raises:
        CnnvizError: no image could be used, the network's geometry is unknown (with
            `Crop.RECEPTIVE_FIELD`), or the journal belongs to another scan.
    """
    size = model.batch_size(plan.spec.batch_size) or default_batch_size(model.device)
    images = PatchImages(data, model.preprocess)
    cutter = Cutter(model, images, plan, size)
    state = scan(model, data, plan, batch_size=size, saving=saving, progress=progress)
    counted = next(iter(state.layers.values())).stats.count
    errors = tuple(
        (data.examples[place].path, state.errors[place]) for place in sorted(state.errors)
    )
    if not counted:
        raise none_usable(data, errors)
    filters: list[FilterPatches] = []
    for layer, layer_state in state.layers.items():
        winners = _winners(layer_state, plan, layer)
        boxes = cutter.boxes(layer, [winner for row in winners for winner in row])
        filters += _describe(layer, plan.filters[layer], layer_state, winners, boxes, images, data)
    return MaxPatches(plan, counted, tuple(filters), errors)


def _winners(state: LayerState, plan: ScanPlan, layer: str) -> list[list[Winner]]:
    """A layer's top k, per filter, strongest first; empty places left out."""
    scores_FK, tickets_FK = unpack(state.best.keys.cpu())
    table = zip(scores_FK.tolist(), tickets_FK.tolist(), state.best.units.tolist(), strict=True)
    columns = plan.layouts[layer].shape[2]
    return [
        [
            Winner(number, ticket // plan.spec.per_image, score, divmod(place, columns))
            for score, ticket, place in zip(*row, strict=True)
            if place >= 0
        ]
        for number, row in zip(plan.filters[layer], table, strict=True)
    ]


def _describe(
    layer: str,
    filters: Sequence[int],
    state: LayerState,
    winners: Sequence[Sequence[Winner]],
    boxes: Sequence[Box],
    images: PatchImages,
    data: ImageData,
) -> list[FilterPatches]:
    stats = state.stats
    count = stats.count
    means, quantiles = stats.mean().tolist(), stats.quantiles(LEVELS).tolist()
    active, lowest, highest = (
        values.tolist() for values in (stats.active, stats.lowest, stats.highest)
    )
    remaining = iter(boxes)
    described = []
    for place, row in enumerate(winners):
        found = images.fetch(winner.index for winner in row)
        patches = tuple(_patch(w, next(remaining), found[w.index], data) for w in row)
        labels = [patch.label for patch in patches if patch.label is not None]
        described.append(
            FilterPatches(
                layer,
                filters[place],
                patches,
                active[place] / count,
                means[place],
                lowest[place],
                highest[place],
                tuple(quantiles[place]),
                dict(Counter(labels).most_common()) if labels else None,
            )
        )
    return described


def _patch(winner: Winner, box: Box, image: WorkingImage, data: ImageData) -> Patch:
    label = data.examples[winner.index].label
    return Patch(
        winner.index,
        image.path,
        data.classes[label] if data.classes is not None and label is not None else None,
        winner.score,
        winner.unit,
        box,
        image.to_original(box),
    )
