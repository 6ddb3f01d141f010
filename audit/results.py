"""The results of `cnnviz audit`: what its summary and its table contain, and how to read them back.

Shapes: N images, R C rows and columns of the grid of positions.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.audit.options import ALARM
from cnnviz.audit.paste import Verdict
from cnnviz.audit.rows import Rows, columns
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE, read_text
from cnnviz.core.output.journal import LINES
from cnnviz.core.output.record import (
    HIDDEN,
    OPTIONAL,
    Box,
    Change,
    Count,
    Interval,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    from_json,
    from_table,
)
from cnnviz.core.output.summary import DataRecord, read_summary

TABLE = "images.csv"


def _nowhere() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Shown(Record):
    """An image that is listed; `row` is its place in the rows."""

    image: str
    box: Annotated[Box, Says("of the largest drop: y0, x0, y1, x1 in the working image")]
    label: Annotated[str | None, OPTIONAL] = None
    predicted: str
    probability: Share
    typicality: Annotated[
        Change | None,
        Says("correlation of its map with the mean of its class's others", optional=True),
    ] = None
    inside: Annotated[
        Share | None, Says("share of its positive evidence on the object", optional=True)
    ] = None
    row: Annotated[int, HIDDEN] = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Group(Verdict):
    """Evidence of one kind; `members` are places in the rows, most typical first."""

    images: Positive
    share: Annotated[Share, Says("of the class's images")]
    mean_drop: Annotated[float, Says("mean of the largest drops, in the score's units")]
    accuracy: Annotated[Share | None, Says("of its labelled images; null where there are none")]
    accuracy_covered: Annotated[Share | None, Says("the same with the patch covered")]
    typical: Annotated[tuple[Shown, ...], Says("images of its most typical patches")]
    members: Annotated[NDArray[np.int64], HIDDEN] = field(default_factory=_nowhere)


@dataclass(frozen=True)
class Concentration(Record):
    """How much of the frame the class's mean evidence covers."""

    area: Annotated[
        Share | None,
        Says(
            "effective share of positions, (Σm)² ÷ Σm² of the mean map's positive part over their "
            "number; null: no evidence at all"
        ),
    ]
    interval: Annotated[Interval | None, Says("95 % by resampling images")]
    others: Annotated[Share | None, Says("median of the other classes")] = None


@dataclass(frozen=True)
class Reliance(Record):
    """Whether the class's evidence is everywhere, so that no patch matters: a tint, a texture."""

    mean: Annotated[
        Share, Says("over its images: largest drop of the probability over the probability")
    ]
    others: Annotated[Share | None, Says("median of the other classes")]
    p: Annotated[
        Share | None, Says("p-value: it is no lower than theirs; null with too few of them")
    ]
    suspicion: Annotated[Share | None, Says("1 - q (Benjamini-Hochberg) of that")] = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassAudit(Record):
    """A class: the images that are predicted as it.

    Not in the summary: their places in the rows, and the mean of their maps, each over its largest
    value.
    """

    class_: str
    index: Annotated[Count | None, Says("null for all small classes together")]
    images: Positive
    accuracy: Annotated[Share | None, Says("share whose label it is; null without labels")]
    recall: Annotated[Share | None, Says("share of the images of it that are predicted as it")]
    reliance: Reliance
    inside: Annotated[Share | None, Says("mean share of positive evidence on the object")]
    concentration: Concentration
    suspicion: Annotated[Share | None, Says("the largest of its groups' and its reliance's")]
    groups: tuple[Group, ...]
    elsewhere: Annotated[
        tuple[Shown, ...], Says("whose evidence is least where that of the class is")
    ]
    misled: Annotated[tuple[Shown, ...], Says("wrong predictions, most confident first")]
    wrong_reason: Annotated[
        tuple[Shown, ...],
        Says("right predictions whose evidence peaks off the object, least inside first"),
    ]
    sheet: Annotated[str | None, Says("its picture", optional=True)] = None
    members_N: Annotated[NDArray[np.int64], HIDDEN] = field(default_factory=_nowhere)
    mean_RC: Annotated[NDArray[np.float64], HIDDEN] = field(
        default_factory=lambda: np.empty((0, 0))
    )


@dataclass(frozen=True, kw_only=True)
class ImageRow(Record):
    """An image in `images.csv`; the names are those of `rows.Row`."""

    image: str
    label: str
    predicted: str
    probability: float
    max_drop: float
    y0: int
    x0: int
    y1: int
    x1: int
    reliance: float
    flips: float
    covered: str
    inside: float | None
    hit: bool | None
    group: Annotated[int | None, Says("of its class's evidence, from 0")]
    typicality: float | None
    label_probability: float | None
    label_max_drop: float | None
    label_y0: int | None
    label_x0: int | None
    label_y1: int | None
    label_x1: int | None


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditResult(Record):
    """An audit: how the maps were made, and what they show of the data set and its classes.

    Not in the summary: the columns of all images, and their rows in `images.csv`.
    """

    mask: Sides
    stride: Positive
    fill: Annotated[str, Says("what replaces occluded pixels")]
    score: Annotated[str, Says("whose drops the maps show")]
    images: Positive
    data: DataRecord
    labelled: Count
    accuracy: Share | None
    inside: Annotated[Share | None, Says("mean share of positive evidence on the object")]
    hits: Annotated[Share | None, Says("share of maps that peak on the object")]
    suspicious: Annotated[tuple[str, ...], Says(f"classes with a suspicion above {ALARM:g}")]
    classes: tuple[ClassAudit, ...]
    rows: Annotated[Rows, HIDDEN]
    table: Annotated[tuple[ImageRow, ...], HIDDEN]


def image_rows(
    rows: Rows, labels: tuple[str, ...], group_N: NDArray[np.int64], typicality_N: NDArray[Any]
) -> Iterator[ImageRow]:
    """The rows of `images.csv`.

    Args:
        rows: of all images.
        labels: the model's class names.
        group_N: group of each image in its class; -1 where it has none.
        typicality_N: NaN where it is not defined.
    """
    for n, image in enumerate(rows.images):
        y0, x0, y1, x1 = rows.boxes_N4[n].tolist()
        probability, drop, *edges = _known(rows.of_label_N6[n])
        inside, hit, typicality = _known([rows.inside_N[n], rows.hit_N[n], typicality_N[n]])
        label_y0, label_x0, label_y1, label_x1 = (None if e is None else int(e) for e in edges)
        yield ImageRow(
            image=image,
            label=labels[rows.labels_N[n]] if rows.known_N[n] else "",
            predicted=labels[rows.predicted_N[n]],
            probability=float(rows.probability_N[n]),
            max_drop=float(rows.max_drop_N[n]),
            y0=y0,
            x0=x0,
            y1=y1,
            x1=x1,
            reliance=float(rows.reliance_N[n]),
            flips=float(rows.flips_N[n]),
            covered=labels[rows.covered_N[n]],
            inside=inside,
            hit=None if hit is None else bool(hit),
            group=None if group_N[n] < 0 else int(group_N[n]),
            typicality=typicality,
            label_probability=probability,
            label_max_drop=drop,
            label_y0=label_y0,
            label_x0=label_x0,
            label_y1=label_y1,
            label_x1=label_x1,
        )


def _known(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def load(folder: Path) -> AuditResult:
    """Reads the results of a finished run of `cnnviz audit`.

    Raises:
        UsageError: the folder does not hold one, or only a share of one.
        CnnvizError: a file of the run is missing or damaged.
    """
    run = read_summary(folder)
    if run.summary.results is None:
        raise UsageError(f"{folder} is a share; cnnviz merge joins the shares to a run")
    try:
        lines = read_text(run.file(LINES)).splitlines()
        rows = columns(json.loads(line) for line in lines)
    except DAMAGE as error:
        raise CnnvizError(f"'{run.file(LINES)}' is damaged: {one_line(error)}") from error
    table = tuple(from_table(ImageRow, read_text(run.file(TABLE))))
    if rows.images != tuple(row.image for row in table):
        raise CnnvizError(f"{TABLE} and {LINES} in {folder} are not of the same images")
    return from_json(AuditResult, run.summary.results, rows=rows, table=table)
