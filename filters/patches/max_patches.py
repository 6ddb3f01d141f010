"""The strongest patches of each filter over a whole data set, found in one pass.

Filters are described by the image regions with their strongest activations, as by Zeiler and Fergus
2014 ("Visualizing and Understanding Convolutional Networks", section 3) and Girshick et al. 2014
("Rich feature hierarchies", section 3.1). `scan` finds the units; here each unit becomes a patch.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from cnnviz.core.data.datasets import ImageData, none_usable
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.labels import with_class_names
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import Elsewhere, alone
from cnnviz.core.output.summary import DataRecord
from cnnviz.filters.patches.boxes import Box, Cutter, PatchImages, Winner
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.results import (
    LEVELS,
    FilterPatches,
    LayerPatches,
    MaxPatches,
    Patch,
)
from cnnviz.filters.patches.scan import Saving, ScanPlan, default_batch_size, make_plan, scan
from cnnviz.filters.patches.state import RELATIVE_ERROR, LayerState
from cnnviz.filters.patches.top_k import unpack


def max_patches(
    model: Model,
    data: ImageData,
    spec: MaxPatchesSpec | None = None,
    *,
    saving: Saving | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> MaxPatches:
    """Finds the strongest patches of filters in one pass over the data.

    Args:
        model: from `cnnviz.core.load_model`.
        data: from `cnnviz.core.open_data`.
        spec: which filters, how many patches, how they are ranked; None for the defaults.
        saving: where to save the scan's journal, and whether to resume from it.
        progress: called with the number of images just finished.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or options contradict.
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
    spread: Elsewhere = alone,
) -> MaxPatches:
    """Does the work of `max_patches` for a plan from `make_plan`."""
    requested = model.batch_size(plan.spec.batch_size)
    size = requested or default_batch_size(model.device)
    images, named = PatchImages(data, model.preprocess), with_class_names(data, model)
    cutter = Cutter(model, images, plan, size)
    state = scan(
        model, data, plan, batch_size=requested, saving=saving, progress=progress, spread=spread
    )
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
        filters += _describe(layer, plan.filters[layer], layer_state, winners, boxes, images, named)
    layers = (
        LayerPatches(
            layer=layer,
            map=plan.layouts[layer].shape,
            filters=len(numbers),
            dead=tuple(row.filter for row in filters if row.layer == layer and row.dead),
        )
        for layer, numbers in plan.filters.items()
    )
    return MaxPatches(
        images=counted,
        data=DataRecord.of(data, counted),
        score=plan.spec.score,
        top=plan.spec.top,
        per_image=plan.spec.per_image,
        crop=plan.spec.crop,
        quantile_relative_error=RELATIVE_ERROR,
        layers=tuple(layers),
        filters=tuple(filters),
        errors=errors,
    )


def _winners(state: LayerState, plan: ScanPlan, layer: str) -> list[list[Winner]]:
    """A layer's top k, per filter, strongest first, without empty entries."""
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
    stats, levels = state.stats, [f"{level:g}" for level in LEVELS]
    means, quantiles = stats.mean().tolist(), stats.quantiles(LEVELS).tolist()
    active, lowest, highest = (
        values.tolist() for values in (stats.active, stats.lowest, stats.highest)
    )
    remaining = iter(boxes)
    described = []
    for place, row in enumerate(winners):
        read = images.fetch(winner.index for winner in row)
        patches = tuple(_patch(w, next(remaining), read[w.index], data) for w in row)
        labels = [patch.class_ for patch in patches if patch.class_ is not None]
        described.append(
            FilterPatches(
                layer=layer,
                filter=filters[place],
                active_share=active[place] / stats.count,
                mean=means[place],
                lowest=lowest[place],
                highest=highest[place],
                quantiles=dict(zip(levels, quantiles[place], strict=True)),
                classes=dict(Counter(labels).most_common()) if labels else None,
                patches=patches,
            )
        )
    return described


def _patch(winner: Winner, box: Box, image: WorkingImage, data: ImageData) -> Patch:
    label = data.examples[winner.index].label
    return Patch(
        image=image.path,
        class_=None if data.classes is None or label is None else data.classes[label],
        score=winner.score,
        unit=winner.unit,
        box=box,
        box_original=image.to_original(box),
        index=winner.index,
    )
