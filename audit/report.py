"""What an audit's `summary.json` and tables say: plain data, no NaN."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, NotRequired

import numpy as np
from typing_extensions import TypedDict

from cnnviz.audit.choices import ALARM
from cnnviz.audit.experiment import Audited, AuditResult
from cnnviz.audit.groups import REST
from cnnviz.audit.paste import Verdict
from cnnviz.audit.rows import UNKNOWN
from cnnviz.core.output.entries import (
    Box,
    Change,
    Count,
    DataEntry,
    Interval,
    Positive,
    Said,
    Share,
    Sides,
    data_entry,
)
from cnnviz.core.output.numbers import digits

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData

TABLE = "images.csv"


class Shown(TypedDict):
    """One image, and why it is shown."""

    image: str
    box: Annotated[Box, Said("of the largest drop: y0, x0, y1, x1 in the working image")]
    label: NotRequired[str]
    predicted: str
    probability: Share
    typicality: NotRequired[
        Annotated[Change, Said("correlation of its map with the mean of its class's others")]
    ]
    inside: NotRequired[Annotated[Share, Said("share of its positive evidence on the object")]]


class GroupEntry(TypedDict):
    """Evidence of one kind."""

    images: Positive
    share: Annotated[Share, Said("of the class's images")]
    mean_drop: Annotated[float, Said("mean of the largest drops, in the score's units")]
    accuracy: Annotated[Share | None, Said("of its labelled images; null where there are none")]
    accuracy_covered: Annotated[Share | None, Said("likewise with the patch covered")]
    pastes: Count
    carried: Annotated[Share | None, Said("pasted into others' images: they became its class")]
    carried_random: Annotated[Share | None, Said("likewise, patches from random places")]
    rise: Annotated[Change | None, Said("mean rise of the class's probability in them")]
    rise_random: Annotated[Change | None, Said("likewise, patches from random places")]
    lost: Annotated[Share | None, Said("its own images that change when the patch is covered")]
    lost_random: Annotated[Share | None, Said("likewise, any place covered")]
    p_random: Annotated[Share | None, Said("it raises the class no more than random patches")]
    p_others: Annotated[
        Share | None,
        Said("no more than other classes' evidence does; null where too few groups are there"),
    ]
    p_cover: Annotated[Share | None, Said("covering it costs no more than covering any place")]
    suspicion: Annotated[
        Share | None,
        Said("1 - q (Benjamini-Hochberg) of the largest of the three; null where not judged"),
    ]
    typical: Annotated[list[Shown], Said("images of its most typical patches")]


class ConcentrationEntry(TypedDict):
    """Over how much of the frame the class's mean evidence is spread."""

    area: Annotated[Share | None, Said("effective share of positions; null: no evidence at all")]
    interval: Annotated[Interval | None, Said("95 % by resampling images")]
    others: Annotated[Share | None, Said("median of the other classes")]


class RelianceEntry(TypedDict):
    """Whether the class's evidence is everywhere, so that no patch matters: a tint, a texture."""

    mean: Annotated[Share, Said("over its images: largest drop of the probability over it")]
    others: Annotated[Share | None, Said("median of the other classes")]
    p: Annotated[Share | None, Said("it is no lower than theirs; null where too few are there")]
    suspicion: Annotated[Share | None, Said("1 - q (Benjamini-Hochberg) of that")]


_Named = TypedDict("_Named", {"class": str, "index": Count | None})


class ClassAudit(_Named):
    """One class: the images that are predicted as it."""

    images: Positive
    accuracy: Annotated[Share | None, Said("share of them that are it; null without labels")]
    recall: Annotated[Share | None, Said("share of the images of it that are predicted as it")]
    reliance: RelianceEntry
    inside: Annotated[Share | None, Said("mean share of positive evidence on the object")]
    concentration: ConcentrationEntry
    suspicion: Annotated[Share | None, Said("the largest of its groups' and its reliance's")]
    groups: list[GroupEntry]
    elsewhere: Annotated[list[Shown], Said("whose evidence lies least where its class's does")]
    misled: Annotated[list[Shown], Said("wrong ones, the surest first")]
    wrong_reason: Annotated[
        list[Shown], Said("right ones whose evidence peaks off the object, least inside first")
    ]
    sheet: NotRequired[Annotated[str, Said("its picture")]]


class Asked(TypedDict):
    """How the maps were made."""

    mask: Sides
    stride: Positive
    fill: Annotated[str, Said("what is put over a place")]
    score: Annotated[str, Said("whose drops the maps are")]


class Results(Asked):
    """The data set."""

    images: Positive
    data: DataEntry
    labelled: Count
    accuracy: Share | None
    inside: Annotated[Share | None, Said("mean share of positive evidence on the object")]
    hits: Annotated[Share | None, Said("share of maps that peak on the object")]
    suspicious: Annotated[list[str], Said(f"classes with a group of suspicion above {ALARM:g}")]
    classes: list[ClassAudit]


def name_of(result: AuditResult, entry: Audited) -> str:
    """The class's name; of small classes together, what they are called."""
    return REST if entry.of.index is None else result.labels[entry.of.index]


def _share(values: np.ndarray) -> float | None:
    return digits(float(values.mean())) if len(values) else None


def _known_mean(values: np.ndarray) -> float | None:
    return _share(values[~np.isnan(values)])


def shown(result: AuditResult, row: int, typicality: float = math.nan) -> Shown:
    """One image of a list."""
    rows = result.rows
    entry: Shown = {
        "image": rows.images[row],
        "box": rows.boxes_N4[row].tolist(),
        "predicted": result.labels[rows.predicted_N[row]],
        "probability": digits(float(rows.probability_N[row])),
    }
    if rows.labels_N[row] != UNKNOWN:
        entry["label"] = result.labels[rows.labels_N[row]]
    if not math.isnan(typicality):
        entry["typicality"] = digits(typicality)
    if not math.isnan(inside := float(rows.inside_N[row])):
        entry["inside"] = digits(inside)
    return entry


def elsewhere(entry: Audited, top: int) -> list[int]:
    """Rows of the images whose map is least like their class's, those below any likeness first."""
    known = np.flatnonzero(~np.isnan(entry.typicality_N))
    order = known[np.argsort(entry.typicality_N[known], kind="stable")]
    return [int(row) for row in entry.of.members_N[order[:top]]]


def misled(result: AuditResult, entry: Audited, top: int) -> list[int]:
    """Rows of the images that are of another class, the surest first."""
    rows, members_N = result.rows, entry.of.members_N
    wrong_N = members_N[rows.known_N[members_N] & ~rows.right_N[members_N]]
    return [int(r) for r in wrong_N[np.argsort(-rows.probability_N[wrong_N], kind="stable")][:top]]


def wrong_reason(result: AuditResult, entry: Audited, top: int) -> list[int]:
    """Rows of right images whose map peaks off the object, least evidence inside first."""
    rows, members_N = result.rows, entry.of.members_N
    off_N = members_N[rows.right_N[members_N] & (rows.hit_N[members_N] == 0)]
    return [int(row) for row in off_N[np.argsort(rows.inside_N[off_N], kind="stable")][:top]]


def _verdict(verdict: Verdict | None, name: str) -> float | None:
    return None if verdict is None else digits(getattr(verdict, name))


def _group(result: AuditResult, entry: Audited, number: int, top: int) -> GroupEntry:
    rows, part, verdict = result.rows, entry.of.groups[number], entry.verdicts[number]
    labelled = part[rows.known_N[part]]
    covered_right = rows.covered_N[labelled] == rows.labels_N[labelled]
    return {
        "images": len(part),
        "share": digits(len(part) / len(entry.of.members_N)),
        "mean_drop": digits(float(rows.max_drop_N[part].mean())),
        "accuracy": _share(rows.right_N[labelled]),
        "accuracy_covered": _share(covered_right),
        "pastes": verdict.pastes if verdict else 0,
        "carried": _verdict(verdict, "carried"),
        "carried_random": _verdict(verdict, "carried_random"),
        "rise": _verdict(verdict, "rise"),
        "rise_random": _verdict(verdict, "rise_random"),
        "lost": _verdict(verdict, "lost"),
        "lost_random": _verdict(verdict, "lost_random"),
        "p_random": _verdict(verdict, "p_random"),
        "p_others": _verdict(verdict, "p_others"),
        "p_cover": _verdict(verdict, "p_cover"),
        "suspicion": _verdict(verdict, "suspicion"),
        "typical": [shown(result, int(row)) for row in part[:top]],
    }


def _class(result: AuditResult, entry: Audited, top: int, sheet: str | None) -> ClassAudit:
    rows, members_N, index = result.rows, entry.of.members_N, entry.of.index
    labelled = members_N[rows.known_N[members_N]]
    of_it = rows.labels_N == index if index is not None else np.zeros(len(rows), bool)
    place_of = {int(row): place for place, row in enumerate(members_N)}
    spread = entry.concentration
    found: ClassAudit = {
        "class": name_of(result, entry),
        "index": index,
        "images": len(members_N),
        "accuracy": _share(rows.right_N[labelled]),
        "recall": _share(rows.right_N[of_it]),
        "reliance": {
            "mean": digits(entry.reliance.mean),
            "others": digits(entry.reliance.others),
            "p": digits(entry.reliance.p),
            "suspicion": digits(entry.reliance.suspicion),
        },
        "inside": _known_mean(rows.inside_N[members_N]),
        "concentration": {
            "area": digits(spread.area),
            "interval": [digits(end) for end in spread.interval] if spread.interval else None,
            "others": digits(spread.others),
        },
        "suspicion": digits(entry.suspicion),
        "groups": [_group(result, entry, number, top) for number in range(len(entry.of.groups))],
        "elsewhere": [
            shown(result, row, float(entry.typicality_N[place_of[row]]))
            for row in elsewhere(entry, top)
        ],
        "misled": [shown(result, row) for row in misled(result, entry, top)],
        "wrong_reason": [shown(result, row) for row in wrong_reason(result, entry, top)],
    }
    if sheet is not None:
        found["sheet"] = sheet
    return found


def report(
    result: AuditResult,
    data: "ImageData",
    asked: Asked,
    top: int,
    sheets: Sequence[str | None] = (),
) -> Results:
    """The `results` of a summary.

    Args:
        result: what was found.
        data: what was gone through.
        asked: how the maps were made.
        top: images named of each kind.
        sheets: the picture of each class, where there is one.
    """
    rows = result.rows
    drawn = sheets or (None,) * len(result.classes)
    entries = [
        _class(result, entry, top, sheet)
        for entry, sheet in zip(result.classes, drawn, strict=True)
    ]
    return {
        **asked,
        "images": len(rows),
        "data": data_entry(data, len(rows)),
        "labelled": int(rows.known_N.sum()),
        "accuracy": _share(rows.right_N[rows.known_N]),
        "inside": _known_mean(rows.inside_N),
        "hits": _known_mean(rows.hit_N),
        "suspicious": [entry["class"] for entry in entries if (entry["suspicion"] or 0) > ALARM],
        "classes": entries,
    }


HEADER = (
    *("image", "label", "predicted", "probability", "max_drop", "y0", "x0", "y1", "x1"),
    *("reliance", "flips", "covered", "inside", "hit", "group", "typicality"),
    *("label_probability", "label_max_drop", "label_y0", "label_x0", "label_y1", "label_x1"),
)


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else digits(float(value))


def table(result: AuditResult) -> Iterator[tuple[object, ...]]:
    """A row an image, for `HEADER`; an empty cell where something is not known."""
    rows, labels = result.rows, result.labels
    group: dict[int, int] = {}
    typicality: dict[int, float] = {}
    for entry in result.classes:
        typicality |= dict(zip(entry.of.members_N.tolist(), entry.typicality_N, strict=True))
        for number, part in enumerate(entry.of.groups):
            group |= dict.fromkeys(part.tolist(), number)

    for row in range(len(rows)):
        hit = rows.hit_N[row]
        yield (
            rows.images[row],
            "" if rows.labels_N[row] == UNKNOWN else labels[rows.labels_N[row]],
            labels[rows.predicted_N[row]],
            _cell(rows.probability_N[row]),
            _cell(rows.max_drop_N[row]),
            *rows.boxes_N4[row].tolist(),
            _cell(rows.reliance_N[row]),
            _cell(rows.flips_N[row]),
            labels[rows.covered_N[row]],
            _cell(rows.inside_N[row]),
            "" if math.isnan(hit) else int(hit),
            group.get(row, ""),
            _cell(typicality.get(row, math.nan)),
            *map(_cell, rows.of_label_N6[row, :2]),
            *("" if math.isnan(edge) else int(edge) for edge in rows.of_label_N6[row, 2:]),
        )
