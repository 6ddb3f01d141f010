"""What `summary.json` says of a scan: plain data, no NaN."""

from collections.abc import Mapping, Sequence
from typing import Any

from cnnviz.core.output.numbers import digits
from cnnviz.filters.patches.max_patches import LEVELS, FilterPatches, MaxPatches, Patch
from cnnviz.filters.patches.score_stats import RELATIVE_ERROR


def _patch(patch: Patch) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "image": patch.image,
        "score": digits(patch.score),
        "unit": list(patch.unit),
        "box": list(patch.box),
        "box_original": list(patch.box_original),
    }
    return entry if patch.label is None else entry | {"class": patch.label}


def _filter(entry: FilterPatches) -> dict[str, Any]:
    levels = (f"{level:g}" for level in LEVELS)
    quantiles = (digits(value) for value in entry.quantiles)
    said: dict[str, Any] = {
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
    *,
    copies: Sequence[tuple[str, str]] = (),
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The `results` of a scan.

    Args:
        result: what `max_patches` returned.
        copies: (copy, original) of the files that `--distinct-files` dropped.
        pictures: per layer, the pages written, relative to the run folder.
    """
    plan = result.plan
    dead: dict[str, list[int]] = {layer: [] for layer in plan.filters}
    for entry in result.dead:
        dead[entry.layer].append(entry.filter)
    return {
        "images": result.images,
        "score": plan.spec.score.value,
        "top": plan.spec.top,
        "per_image": plan.spec.per_image,
        "crop": result.plan.spec.crop.value,
        "quantile_relative_error": RELATIVE_ERROR,
        "copies": [{"image": copy, "same_as": original} for copy, original in copies],
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
