"""What a diff's `summary.json` and tables say: plain data, no NaN."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Change,
    Count,
    Interval,
    ModelEntry,
    Positive,
    Said,
    Share,
)
from cnnviz.core.output.numbers import digits
from cnnviz.core.statistics import Mean, mean_of, signed_rank
from cnnviz.diff.choices import NAMED
from cnnviz.diff.classes import Change as SignChange
from cnnviz.diff.classes import ClassChange
from cnnviz.diff.experiment import DiffResult
from cnnviz.diff.filters import FilterChange, LayerChange
from cnnviz.diff.images import mcnemar

IMAGES, FILTERS = "images.csv", "filters.csv"


class RunEntry(TypedDict):
    """One of the runs."""

    folder: str
    model: ModelEntry
    version: Annotated[str, Said("of cnnviz that made it")]


class MeanEntry(TypedDict):
    """A mean and how sure it is."""

    mean: float
    interval: Annotated[Interval, Said("95 % by resampling")]
    count: Positive


class AgreementEntry(MeanEntry):
    """How far the two agree in what the command is about."""

    of: Annotated[str, Said("what that is")]


class PredictionsEntry(TypedDict):
    """What the networks say."""

    flips: Annotated[Share, Said("share of images with another prediction")]
    flipped: Count
    labelled: Count
    accuracy_a: Share | None
    accuracy_b: Share | None
    lost: Annotated[Count | None, Said("right in a, wrong in b")]
    gained: Annotated[Count | None, Said("wrong in a, right in b")]
    p_value: Annotated[Share | None, Said("McNemar's exact test; null without labels")]


class InsideEntry(MeanEntry):
    """Evidence that moved onto the object, or off it where negative."""

    p_value: Annotated[Share | None, Said("Wilcoxon's signed-rank test; null: nothing changed")]


class SignEntry(TypedDict):
    """What can be seen to change in a class."""

    value: Share
    others: Annotated[Share | None, Said("median of the other classes")]
    p: Annotated[Share | None, Said("no more than in the other classes; null where not judged")]


_Named = TypedDict("_Named", {"class": str})


class ClassDiff(_Named):
    """One class."""

    images: Positive
    flips: Share
    signs: Annotated[dict[str, SignEntry], Said("by name")]
    certainty: Annotated[
        Share | None,
        Said("1 - q (Benjamini-Hochberg over classes) that it changed more than the others"),
    ]


class LayerDiff(TypedDict):
    """One layer."""

    layer: str
    filters: Positive
    likeness: Annotated[Change | None, Said("mean over filters: cosine, or share of images")]
    rank_correlation: Annotated[Change | None, Said("of norms, activity or harm")]
    died: list[Count]
    revived: list[Count]
    better_elsewhere: Annotated[Count, Said("filters more like another one of b than their own")]


class WorstImage(TypedDict):
    """An image that changed much."""

    image: str
    label: NotRequired[str]
    a: Annotated[str, Said("predicted by the first")]
    b: str
    probability_a: NotRequired[Share]
    probability_b: NotRequired[Share]
    agreement: NotRequired[Annotated[Change, Said("rank correlation of the maps")]]
    inside: NotRequired[Annotated[Change, Said("of the evidence, b minus a")]]
    kept: NotRequired[Annotated[Share, Said("of its nearest images")]]


class WorstFilter(TypedDict):
    """A filter that changed much."""

    layer: str
    filter: Count
    a: Annotated[float, Said("its norm, activity or harm in the first")]
    b: float
    died: bool
    revived: bool
    likeness: Change | None
    nearest: Annotated[Count | None, Said("the most alike filter of b")]
    nearest_likeness: Change | None


class Results(TypedDict):
    """What changed."""

    of: Annotated[str, Said("the command of both runs")]
    a: RunEntry
    b: RunEntry
    same_weights: bool
    images: Annotated[Count, Said("that both could study; 0 where the command tells of none")]
    left_out: Annotated[list[str], Said("images that one could not study")]
    agreement: AgreementEntry | None
    predictions: PredictionsEntry | None
    inside: InsideEntry | None
    by_chance: Annotated[Share | None, Said("share of neighbours that chance would keep")]
    changed: Annotated[list[str], Said(f"classes of a certainty above {NAMED:g}")]
    classes: list[ClassDiff]
    layers: list[LayerDiff]
    worst_images: list[WorstImage]
    worst_filters: list[WorstFilter]


def _mean(found: Mean) -> MeanEntry:
    return {
        "mean": digits(found.value),
        "interval": [digits(end) for end in found.interval],
        "count": found.count,
    }


def _predictions(result: DiffResult) -> PredictionsEntry | None:
    images = result.images
    if images is None:
        return None
    known = ~np.isnan(images.right_N2[:, 0])
    tested = mcnemar(images.right_N2)
    accuracy = (
        [digits(float(images.right_N2[known, side].mean())) for side in (0, 1)]
        if known.any()
        else [None, None]
    )
    lost, gained, p = tested or (None, None, None)
    return {
        "flips": digits(float(images.flipped_N.mean())),
        "flipped": int(images.flipped_N.sum()),
        "labelled": int(known.sum()),
        "accuracy_a": accuracy[0],
        "accuracy_b": accuracy[1],
        "lost": lost,
        "gained": gained,
        "p_value": None if p is None else digits(p),
    }


def _inside(result: DiffResult, seed: int) -> InsideEntry | None:
    if result.images is None or (mean := mean_of(result.images.inside_N, seed)) is None:
        return None
    p = signed_rank(result.images.inside_N)
    return {**_mean(mean), "p_value": None if p is None else digits(p)}


def _sign(found: SignChange) -> SignEntry:
    return {
        "value": digits(found.value),
        "others": None if found.others is None else digits(found.others),
        "p": None if found.p is None else digits(found.p),
    }


def _class(result: DiffResult, own: ClassChange) -> ClassDiff:
    assert result.images is not None  # noqa: S101 (there are classes)
    return {
        "class": own.name,
        "images": len(own.members),
        "flips": digits(float(result.images.flipped_N[own.members].mean())),
        "signs": {name: _sign(found) for name, found in own.signs.items()},
        "certainty": None if own.certainty is None else digits(own.certainty),
    }


def _layer(own: LayerChange) -> LayerDiff:
    elsewhere = [f for f in own.filters if f.nearest not in (None, f.filter)]
    rank = own.rank_correlation
    return {
        "layer": own.layer,
        "filters": len(own.filters),
        "likeness": None if own.likeness is None else digits(own.likeness),
        "rank_correlation": None if rank is None else digits(rank),
        "died": [f.filter for f in own.filters if f.died],
        "revived": [f.filter for f in own.filters if f.revived],
        "better_elsewhere": len(elsewhere),
    }


def worst_image(result: DiffResult, row: int) -> WorstImage:
    """One image that both could study."""
    images, a, b = result.images, result.a.answers, result.b.answers
    assert images is not None and a is not None and b is not None  # noqa: S101, PT018
    entry: WorstImage = {
        "image": a.images[row],
        "a": a.predicted[row],
        "b": b.predicted[row],
    }
    if a.labels[row]:
        entry["label"] = a.labels[row]
    numbers: dict[str, float] = {
        "probability_a": float(a.probability_N[row]),
        "probability_b": float(b.probability_N[row]),
        "inside": float(images.inside_N[row]),
    }
    if images.agreement_N is not None:
        numbers["agreement"] = float(images.agreement_N[row])
    if images.kept_N is not None:
        numbers["kept"] = float(images.kept_N[row])
    known: Any = {name: digits(v) for name, v in numbers.items() if not math.isnan(v)}
    return {**entry, **known}


def worst_filters(result: DiffResult) -> list[FilterChange]:
    """All filters, the most changed first."""
    found = [change for own in result.layers for change in own.filters]
    return sorted(found, key=lambda change: change.changed)


def _filter(own: FilterChange) -> WorstFilter:
    return {
        "layer": own.layer,
        "filter": own.filter,
        "a": digits(own.was),
        "b": digits(own.now),
        "died": own.died,
        "revived": own.revived,
        "likeness": None if own.likeness is None else digits(own.likeness),
        "nearest": own.nearest,
        "nearest_likeness": None if own.nearest_likeness is None else digits(own.nearest_likeness),
    }


def _run(summary: Mapping[str, Any], name: str) -> RunEntry:
    return {"folder": name, "model": summary["model"], "version": summary["version"]}


def report(
    result: DiffResult,
    summaries: tuple[Mapping[str, Any], Mapping[str, Any]],
    top: int,
    neighbors: int,
    seed: int,
) -> Results:
    """The `results` of a summary.

    Args:
        result: what `diff` returned.
        summaries: of the two runs.
        top: images and filters listed.
        neighbors: how many nearest images were compared, at most.
        seed: of the resampling.
    """
    a, b = summaries
    count = len(result.worst_N)
    kept = result.images is not None and result.images.kept_N is not None and count > 1
    agreed = result.agreement
    weights = [summary["model"]["weights_sha256"] for summary in summaries]
    return {
        "of": str(a["command"]),
        "a": _run(a, result.a.name),
        "b": _run(b, result.b.name),
        "same_weights": weights[0] == weights[1],
        "images": count,
        "left_out": list(result.lost),
        "agreement": None if agreed is None else {**_mean(agreed), "of": result.agreement_of},
        "predictions": _predictions(result),
        "inside": _inside(result, seed),
        "by_chance": digits(min(neighbors, count - 1) / (count - 1)) if kept else None,
        "changed": result.named,
        "classes": [
            _class(result, own)
            for own in sorted(result.classes, key=lambda own: -(own.certainty or -1.0))
        ],
        "layers": [_layer(own) for own in result.layers],
        "worst_images": [worst_image(result, int(row)) for row in result.worst_N[:top]],
        "worst_filters": [_filter(own) for own in worst_filters(result)[:top]],
    }


IMAGES_HEADER = (
    *("image", "label", "a", "b", "flipped", "probability_a", "probability_b"),
    *("agreement", "reliance", "inside", "kept"),
)
FILTERS_HEADER = (
    *("layer", "filter", "a", "b", "died", "revived", "likeness", "nearest", "nearest_likeness"),
)


def image_rows(result: DiffResult) -> Iterator[tuple[object, ...]]:
    """`images.csv`, the most changed first; an empty cell where something is not known."""
    assert result.images is not None  # noqa: S101 (the caller has looked)
    for row in map(int, result.worst_N):
        entry: Mapping[str, Any] = worst_image(result, row)
        reliance = float(result.images.reliance_N[row])
        yield (
            entry["image"],
            entry.get("label", ""),
            entry["a"],
            entry["b"],
            int(result.images.flipped_N[row]),
            entry.get("probability_a", ""),
            entry.get("probability_b", ""),
            entry.get("agreement", ""),
            "" if math.isnan(reliance) else digits(reliance),
            entry.get("inside", ""),
            entry.get("kept", ""),
        )


def filter_rows(result: DiffResult) -> Iterator[tuple[object, ...]]:
    """`filters.csv`, the most changed first."""
    for own in worst_filters(result):
        entry = _filter(own)
        values = [entry[key] for key in FILTERS_HEADER]  # type: ignore[literal-required]
        yield tuple(
            "" if value is None else int(value) if isinstance(value, bool) else value
            for value in values
        )
