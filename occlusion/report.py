"""What `summary.json` says of one image: plain data, no NaN."""

from collections.abc import Sequence
from typing import Any

from cnnviz.core.maps import peak
from cnnviz.core.models.heads import Kind
from cnnviz.core.output.numbers import digits
from cnnviz.occlusion.agreement import Agreement
from cnnviz.occlusion.choices import Score
from cnnviz.occlusion.expectation import Verdict
from cnnviz.occlusion.experiment import OcclusionResult
from cnnviz.occlusion.maps import class_scores
from cnnviz.occlusion.sufficient import Region, Sufficiency

TOP = 5


def _class(result: OcclusionResult, index: int, reading: float | None = None) -> dict[str, Any]:
    named: dict[str, Any] = {"class": result.measured.labels[index], "index": index}
    if reading is None:
        return named
    what = "probability" if result.measured.head.has_classes else "value"
    named[what] = digits(reading)
    if result.measured.reading is not None and result.measured.head.has_classes:
        named["pixels"] = digits(float(result.measured.reading.shares_K[index]))
    return named


def _agreement(found: Agreement, name: str, verdict: Verdict | None) -> dict[str, Any]:
    correlation = found.rank_correlation
    entry: dict[str, Any] = {
        "with": name,
        "rank_correlation": None if correlation is None else digits(correlation),
        "peak": list(peak(found.map_HW)),
    }
    if verdict is not None:
        entry |= judged(verdict)
        del entry["object_share"]  # the target's own entry has it
    return entry


def judged(verdict: Verdict) -> dict[str, Any]:
    """What a summary says of a map that was held against an object."""
    return {
        "pointing_game_hit": verdict.hit,
        "inside": None if verdict.inside is None else digits(verdict.inside),
        "object_share": digits(verdict.object_share),
    }


def _panel(
    result: OcclusionResult,
    number: int,
    verdict: Verdict | None,
    agreement_verdict: Verdict | None,
) -> dict[str, Any]:
    panel = result.panels[number]
    positions = len(panel.values_P)
    entry = _class(result, panel.target, panel.probability) | {
        "mask": list(panel.grid.mask),
        "stride": panel.grid.stride,
        "positions": positions,
        "max_drop": digits(panel.max_drop),
        "max_drop_box": list(panel.max_drop_box),
        "mean_drop": digits(panel.mean_drop),
    }
    if panel.reliance is not None and panel.flips is not None:
        to = [_class(result, index) | {"positions": n} for index, n in panel.flips_to]
        entry["reliance"] = digits(panel.reliance)
        entry["flips"] = {"share": digits(panel.flips), "to": to}
    if verdict is not None:
        entry |= judged(verdict)
    found, gradient = result.agreements[number], result.measured.gradient
    if found is not None and gradient is not None:
        entry["agreement"] = _agreement(found, gradient.name, agreement_verdict)
    return entry


def _sufficiency(result: OcclusionResult, found: Sufficiency) -> dict[str, Any]:
    return _class(result, found.target, found.probability) | {
        "cell": found.cell,
        "region": _region(found.sufficient),
        "without": digits(found.without),
        "redundancy": digits(found.redundancy),
        "losing": _region(found.losing) if found.losing else None,
        "lost_when": found.lost_when,
    }


def _region(region: Region) -> dict[str, Any]:
    return {
        "share": digits(region.share),
        "cells": int(region.cells_rc.sum()),
        "of_cells": region.cells_rc.numel(),
        "probability": digits(region.probability),
        "ranked_by": region.ranked_by,
    }


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
) -> dict[str, Any]:
    """One image's entry of `results`.

    Args:
        result: what `occlude` returned.
        verdicts: one per panel, where the user said what to expect; else empty.
        agreement_verdicts: of the agreement maps, likewise.
    """
    measured = result.measured
    has_classes = measured.head.has_classes
    readings_K = class_scores(measured.base_logits_K, Score.PROBABILITY, measured.head)
    best = measured.ranking_K.argsort(descending=True, stable=True)[:TOP].tolist()
    if measured.reading is not None:
        best = [index for index in best if measured.reading.shares_K[index] > 0]
    top = [_class(result, index, float(readings_K[index])) for index in best]
    count = len(result.panels)
    judged = zip(verdicts or (None,) * count, agreement_verdicts or (None,) * count, strict=True)
    entry: dict[str, Any] = {
        "image": measured.image.path,
        **({"prediction": top[0], "top5": top} if has_classes else {}),
        **({"read": measured.place or "own pixels"} if measured.reading else {}),
        "score": result.score.value if has_classes else "value",
        "upsample": result.upsample.value,
        "method": result.method.value,
        "engine": result.engine,
        "targets": [_panel(result, number, *pair) for number, pair in enumerate(judged)],
    }
    if result.label is not None:
        entry["label"] = _class(result, result.label, float(readings_K[result.label]))
        entry["correct"] = _is_correct(result, result.label)
    if result.given_up is not None:
        entry["incremental_given_up"] = digits(result.given_up)
    if result.verified:
        difference = result.largest_difference
        entry["verified_largest_difference"] = None if difference is None else digits(difference)
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
    return entry
