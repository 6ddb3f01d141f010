"""What `summary.json` says of one picture's saliency: plain data, no NaN."""

from typing import Annotated, NotRequired

from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Box,
    Change,
    ClassEntry,
    Place,
    Read,
    Said,
    ScorecardEntry,
    Unsigned,
    add_reading,
    in_order,
    top_entries,
)
from cnnviz.core.output.numbers import digits
from cnnviz.gradients.options import Method
from cnnviz.gradients.comparison import Comparison
from cnnviz.gradients.experiment import ClassMap, SaliencyResult

_With = TypedDict("_With", {"with": str})


class ComparisonEntry(_With):
    """The map beside one of another kind."""

    rank_correlation: Annotated[
        Change | None, Said("Spearman's, over all pixels; null where a map is constant")
    ]
    seconds: Annotated[Unsigned, Said("of the saliency map")]
    other_seconds: Unsigned


class Target(ClassEntry):
    """The map of one class."""

    lowest: float
    highest: float
    peak: Annotated[Place, Said("row, column of the working image")]
    peak_original: Annotated[Box, Said("the same in the file's own pixels")]
    comparison: NotRequired[ComparisonEntry]
    trust: NotRequired[Annotated[ScorecardEntry, Said("the scorecard of this map")]]


class Entry(TypedDict):
    """One picture."""

    image: str
    method: Method
    layer: Annotated[str | None, Said("of Grad-CAM")]
    prediction: NotRequired[ClassEntry]
    top5: NotRequired[Annotated[list[ClassEntry], Said(minItems=1, maxItems=5)]]
    read: NotRequired[Read]
    targets: Annotated[list[Target], Said(minItems=1)]


def report(result: SaliencyResult, comparisons: tuple[Comparison, ...] = ()) -> Entry:
    """One entry of `results`."""
    readings_K = result.head.readings(result.logits_K)
    top = top_entries(result, readings_K)
    entries = [_map(result, found) for found in result.maps]
    for entry, compared in zip(entries, comparisons, strict=False):
        agreement = compared.rank_correlation
        entry["comparison"] = {
            "with": compared.other,
            "rank_correlation": None if agreement is None else digits(agreement),
            "seconds": round(compared.seconds, 4),
            "other_seconds": round(compared.other_seconds, 4),
        }
    found: Entry = {
        "image": result.image.path,
        "method": result.method,
        "layer": result.layer,
        "targets": entries,
    }
    if result.head.has_classes:
        found["prediction"], found["top5"] = top[0], top
    if result.reading:
        found["read"] = result.place or "own pixels"
    return in_order(Entry, found)


def _map(result: SaliencyResult, found: ClassMap) -> Target:
    row, column = divmod(int(found.map_HW.argmax()), found.map_HW.shape[1])
    entry: Target = {
        "class": result.labels[found.target],
        "index": found.target,
        "lowest": digits(float(found.map_HW.min())),
        "highest": digits(float(found.map_HW.max())),
        "peak": [row, column],
        "peak_original": list(result.image.to_original((row, column, row + 1, column + 1))),
    }
    add_reading(entry, result, found.probability)
    return in_order(Target, entry)
