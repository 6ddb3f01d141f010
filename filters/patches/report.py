"""What `summary.json` says of a scan: plain data, no NaN."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NotRequired

from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Box,
    Count,
    DataEntry,
    Place,
    Positive,
    Said,
    Share,
    Unsigned,
    data_entry,
)
from cnnviz.core.output.numbers import digits
from cnnviz.filters.patches.choices import Crop, Ranking
from cnnviz.filters.patches.max_patches import LEVELS, FilterPatches, MaxPatches, Patch
from cnnviz.filters.patches.score_stats import RELATIVE_ERROR

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData


class Layer(TypedDict):
    """One layer that was watched."""

    layer: str
    map: Annotated[
        list[Positive],
        Said("filters, rows, columns of the layer's output", minItems=3, maxItems=3),
    ]
    filters: Annotated[Positive, Said("how many were watched")]
    dead: Annotated[list[Count], Said("filters without a unit above zero on any image")]
    pictures: list[str]


_Class = TypedDict("_Class", {"class": NotRequired[str]})


class PatchEntry(_Class):
    """A place that a filter responds to."""

    image: str
    score: float
    unit: Place
    box: Box
    box_original: Annotated[Box, Said("the same in the file's own pixels")]


class Filter(TypedDict):
    """One filter."""

    layer: str
    filter: Count
    active_share: Share
    mean: float
    lowest: float
    highest: float
    quantiles: Annotated[
        dict[str, float],
        Said("by level", required=[f"{level:g}" for level in LEVELS]),
    ]
    classes: NotRequired[
        Annotated[dict[str, Positive], Said("how often each class occurs among the patches")]
    ]
    class_entropy_bits: NotRequired[Unsigned]
    patches: Annotated[list[PatchEntry], Said(minItems=1)]


class Results(TypedDict):
    """The `results` of the summary."""

    images: Positive
    data: DataEntry
    score: Ranking
    top: Positive
    per_image: Positive
    crop: Crop
    quantile_relative_error: Annotated[float, Said(exclusiveMinimum=0)]
    layers: Annotated[list[Layer], Said(minItems=1)]
    filters: Annotated[list[Filter], Said(minItems=1)]


def _patch(patch: Patch) -> PatchEntry:
    entry: PatchEntry = {
        "image": patch.image,
        "score": digits(patch.score),
        "unit": list(patch.unit),
        "box": list(patch.box),
        "box_original": list(patch.box_original),
    }
    if patch.label is not None:
        entry["class"] = patch.label
    return entry


def _filter(entry: FilterPatches) -> Filter:
    levels = (f"{level:g}" for level in LEVELS)
    quantiles = (digits(value) for value in entry.quantiles)
    said: Filter = {
        "layer": entry.layer,
        "filter": entry.filter,
        "active_share": digits(entry.active_share),
        "mean": digits(entry.mean),
        "lowest": digits(entry.lowest),
        "highest": digits(entry.highest),
        "quantiles": dict(zip(levels, quantiles, strict=True)),
        "patches": [_patch(patch) for patch in entry.patches],
    }
    if entry.classes is not None and entry.entropy is not None:
        said["classes"] = dict(entry.classes)
        said["class_entropy_bits"] = digits(entry.entropy)
    return said


def report(
    result: MaxPatches,
    data: "ImageData",
    *,
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> Results:
    """The `results` of a scan.

    Args:
        result: what `max_patches` returned.
        data: what it went through.
        pictures: per layer, the pages written, relative to the run folder.
    """
    plan = result.plan
    dead: dict[str, list[int]] = {layer: [] for layer in plan.filters}
    for entry in result.dead:
        dead[entry.layer].append(entry.filter)
    return {
        "images": result.images,
        "data": data_entry(data, result.images),
        "score": plan.spec.score,
        "top": plan.spec.top,
        "per_image": plan.spec.per_image,
        "crop": plan.spec.crop,
        "quantile_relative_error": RELATIVE_ERROR,
        "layers": [
            {
                "layer": layer,
                "map": list(plan.layouts[layer].shape),
                "filters": len(filters),
                "dead": dead[layer],
                "pictures": list((pictures or {}).get(layer, ())),
            }
            for layer, filters in plan.filters.items()
        ],
        "filters": [_filter(entry) for entry in result.filters],
    }
