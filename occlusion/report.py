"""What `summary.json` says of one image: plain data, no NaN."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from cnnviz.core.maps import peak
from cnnviz.core.models.heads import Kind
from cnnviz.core.output.entries import (
    Box,
    Change,
    ClassEntry,
    Count,
    Judged,
    Named,
    Place,
    Pointing,
    Positive,
    Read,
    Said,
    ScorecardEntry,
    Share,
    Sides,
    Unsigned,
    add_reading,
    class_entry,
    in_order,
    top_entries,
)
from cnnviz.core.output.numbers import digits
from cnnviz.occlusion.agreement import Agreement
from cnnviz.occlusion.options import MapKind, Score, Upsample
from cnnviz.occlusion.expectation import Verdict
from cnnviz.occlusion.experiment import OcclusionResult
from cnnviz.occlusion.maps import class_scores
from cnnviz.occlusion.sufficient import RANKED_BY, Region, Sufficiency


class FlipEntry(Named):
    """A class that the prediction becomes where a mask lies."""

    positions: Positive


class Flips(TypedDict):
    """Where the prediction becomes another."""

    share: Share
    to: list[FlipEntry]


_With = TypedDict("_With", {"with": str})


class AgreementEntry(_With, Pointing):
    """The map together with a gradient method's of the same class."""

    rank_correlation: Annotated[Change | None, Said("of the two maps; null where one is constant")]
    peak: Annotated[Place, Said("row, column of the agreement map's largest value")]


class Target(ClassEntry, Judged):
    """The map of one class and one mask."""

    mask: Sides
    stride: Positive
    positions: Positive
    max_drop: Annotated[float, Said("largest position value, in the score's units")]
    max_drop_box: Annotated[Box, Said("y0, x0, y1, x1 in the working image")]
    mean_drop: Annotated[float, Said("mean position value, in the score's units")]
    reliance: NotRequired[
        Annotated[float, Said("largest drop of the probability over the probability", maximum=1)]
    ]
    flips: NotRequired[Flips]
    agreement: NotRequired[
        Annotated[
            AgreementEntry,
            Said("with a gradient method's map of the class, where the network has a gradient"),
        ]
    ]
    trust: NotRequired[Annotated[ScorecardEntry, Said("the scorecard of this map")]]


class RegionEntry(TypedDict):
    """Cells of the picture that hold a class, or lose it."""

    share: Annotated[Share, Said("of the picture's pixels")]
    cells: Count
    of_cells: Positive
    probability: Annotated[Share, Said("of the class with this region alone kept, or covered")]
    ranked_by: Annotated[str, Said(enum=list(RANKED_BY))]


class SufficiencyEntry(ClassEntry):
    """`--sufficient`, of one class."""

    cell: Annotated[Positive, Said("side of a cell in pixels of the working image")]
    region: Annotated[RegionEntry, Said("kept alone, holds the class at 90 % of its probability")]
    without: Annotated[Share, Said("probability with that region covered")]
    redundancy: Annotated[Share, Said("without, over the probability")]
    losing: Annotated[RegionEntry | None, Said("covered, loses the class; null where nothing does")]
    lost_when: str


class ActivationEntry(TypedDict):
    """`--layer` and `--channel`: the sum over the channel's map."""

    layer: str
    channel: Count
    sum: float
    sum_min: float
    sum_max: float


class Entry(TypedDict):
    """One picture."""

    image: str
    prediction: NotRequired[ClassEntry]
    top5: NotRequired[Annotated[list[ClassEntry], Said(minItems=1, maxItems=5)]]
    read: NotRequired[Read]
    score: Score | Literal["value"]
    upsample: Upsample
    fill: NotRequired[Annotated[str, Said("what was put over the places; absent with render")]]
    method: Annotated[MapKind, Said("which map is drawn and judged")]
    engine: Annotated[str, Said(enum=["full", "incremental", "none"])]
    targets: Annotated[list[Target], Said(minItems=1)]
    label: NotRequired[ClassEntry]
    correct: NotRequired[bool]
    incremental_given_up: NotRequired[
        Annotated[
            Unsigned | None,
            Said(
                "largest |difference| of a score to the full engine, beyond rounding, for which "
                "the incremental engine was given up; null where its scores were not finite; "
                "absent if it was not"
            ),
        ]
    ]
    verified_largest_difference: NotRequired[
        Annotated[
            Unsigned | None,
            Said(
                "with --verify: largest |logit difference| between the engines on a sample; null "
                "where only one can run the network, or one alone gives numbers that are not finite"
            ),
        ]
    ]
    sufficient: NotRequired[
        Annotated[list[SufficiencyEntry], Said("with --sufficient, one entry for each target")]
    ]
    activation: NotRequired[ActivationEntry]


def _agreement(found: Agreement, name: str, verdict: Verdict | None) -> AgreementEntry:
    correlation = found.rank_correlation
    entry: AgreementEntry = {
        "with": name,
        "rank_correlation": None if correlation is None else digits(correlation),
        "peak": list(peak(found.map_HW)),
    }
    if verdict is not None:
        _add_pointing(entry, verdict)
    return entry


def _add_pointing(entry: Pointing, verdict: Verdict) -> None:
    entry["pointing_game_hit"] = verdict.hit
    entry["inside"] = digits(verdict.inside)


def add_verdict(entry: Judged, verdict: Verdict) -> None:
    """Says of a map how it lies to the object that it was held against."""
    _add_pointing(entry, verdict)
    entry["object_share"] = digits(verdict.object_share)


def _panel(
    result: OcclusionResult,
    number: int,
    verdict: Verdict | None,
    agreement_verdict: Verdict | None,
) -> Target:
    panel = result.panels[number]
    positions = len(panel.values_P)
    labels = result.measured.labels
    entry: Target = {
        "class": labels[panel.target],
        "index": panel.target,
        "mask": list(panel.grid.mask),
        "stride": panel.grid.stride,
        "positions": positions,
        "max_drop": digits(panel.max_drop),
        "max_drop_box": list(panel.max_drop_box),
        "mean_drop": digits(panel.mean_drop),
    }
    add_reading(entry, result.measured, panel.probability)
    if panel.reliance is not None and panel.flips is not None:
        to: list[FlipEntry] = [
            {"class": labels[index], "index": index, "positions": n} for index, n in panel.flips_to
        ]
        entry["reliance"] = digits(panel.reliance)
        entry["flips"] = {"share": digits(panel.flips), "to": to}
    if verdict is not None:
        add_verdict(entry, verdict)
    found, gradient = result.agreements[number], result.measured.gradient
    if found is not None and gradient is not None:
        entry["agreement"] = _agreement(found, gradient.name, agreement_verdict)
    return in_order(Target, entry)


def _sufficiency(result: OcclusionResult, found: Sufficiency) -> SufficiencyEntry:
    return {
        **class_entry(result.measured, found.target, found.probability),
        "cell": found.cell,
        "region": _region(found.sufficient),
        "without": digits(found.without),
        "redundancy": digits(found.redundancy),
        "losing": _region(found.losing) if found.losing else None,
        "lost_when": found.lost_when,
    }


def _region(region: Region) -> RegionEntry:
    return {
        "share": digits(region.share),
        "cells": int(region.cells_rc.sum()),
        "of_cells": region.cells_rc.numel(),
        "probability": digits(region.probability),
        "ranked_by": region.ranked_by,
    }


def _finite(difference: float | None) -> float | None:
    return None if difference is None or math.isinf(difference) else digits(difference)


def _is_correct(result: OcclusionResult, label: int) -> bool:
    """Whether the label is the predicted class; of classes on their own, whether it holds."""
    logits_K, head = result.measured.base_logits_K, result.measured.head
    if head.kind is Kind.SIGMOID:
        return bool(head.holds(logits_K)[label])
    return int(logits_K.argmax()) == label


def report(
    result: OcclusionResult,
    verdicts: Sequence[Verdict] = (),
    agreement_verdicts: Sequence[Verdict | None] = (),
    *,
    fill: str | None = None,
) -> Entry:
    """One image's entry of `results`.

    Args:
        result: what `occlude` returned.
        verdicts: one per panel, where the user said what to expect; else empty.
        agreement_verdicts: of the agreement maps, likewise.
        fill: what was put over the places, if that is known.
    """
    measured = result.measured
    has_classes = measured.head.has_classes
    readings_K = class_scores(measured.base_logits_K, Score.PROBABILITY, measured.head)
    top = top_entries(measured, readings_K)
    count = len(result.panels)
    judged = zip(verdicts or (None,) * count, agreement_verdicts or (None,) * count, strict=True)
    entry: Entry = {
        "image": measured.image.path,
        "score": result.score if has_classes else "value",
        "upsample": result.upsample,
        "method": result.method,
        "engine": result.engine,
        "targets": [_panel(result, number, *pair) for number, pair in enumerate(judged)],
    }
    if fill is not None:
        entry["fill"] = fill
    if has_classes:
        entry["prediction"], entry["top5"] = top[0], top
    if measured.reading:
        entry["read"] = measured.place or "own pixels"
    if result.label is not None:
        entry["label"] = class_entry(measured, result.label, float(readings_K[result.label]))
        entry["correct"] = _is_correct(result, result.label)
    if result.given_up is not None:
        entry["incremental_given_up"] = _finite(result.given_up)
    if result.verified:
        entry["verified_largest_difference"] = _finite(result.largest_difference)
    if result.sufficiencies:
        entry["sufficient"] = [_sufficiency(result, found) for found in result.sufficiencies]
    if measured.activation:
        activation = measured.activation
        entry["activation"] = {
            "layer": activation.layer,
            "channel": activation.channel,
            "sum": digits(activation.base),
            "sum_min": digits(float(activation.sums_P.min())),
            "sum_max": digits(float(activation.sums_P.max())),
        }
    return in_order(Entry, entry)
