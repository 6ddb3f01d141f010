"""The results of `cnnviz audit`: what its summary and its table contain, and how to read them back.

Shapes: N images, R C rows and columns of the grid of positions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.audit.options import ALARM
from cnnviz.audit.paste import Verdict
from cnnviz.audit.residual import Pictures, Residual
from cnnviz.audit.rows import UNKNOWN, Floats, Rows, columns
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE, read_text
from cnnviz.core.output.lines import LINES, read_lines
from cnnviz.core.output.notebook import Displayed
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
from cnnviz.core.output.summary import DataRecord, FinishedRun, read_summary
from cnnviz.occlusion.results import Stride

TABLE = "images.csv"
TESTS = {
    "pasted": "its patches flip others to it",
    "reliance": "its evidence is everywhere",
    "plain": "its mean image flips others to it",
    "high_passed": "fine structure of its mean image flips others to it",
    "colour": "the colour of its mean image flips others to it",
    "recoded": "storing others as JPEG flips them to it",
}
"""What a test that raises an alarm has found of the class."""


def _nothing() -> NDArray[Any]:
    return np.empty(0)


@dataclass(frozen=True, kw_only=True)
class Shown(Record):
    """An image that is listed; `row` is its place in the rows."""

    image: str
    box: Annotated[Box, Says("of its evidence: y0, x0, y1, x1 in the working image")]
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
    accuracy_covered: Annotated[Share | None, Says("the same with the patch occluded")]
    typical: Annotated[tuple[Shown, ...], Says("images of its most typical patches")]
    members: Annotated[NDArray[np.int64], HIDDEN] = field(default_factory=_nothing)


@dataclass(frozen=True)
class Concentration(Record):
    """How much of the frame the class's mean evidence covers."""

    area: Annotated[
        Share | None, Says("(Σm)² ÷ Σm² of its positive part ÷ positions; null: no evidence at all")
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


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassAudit(Record):
    """A class: the images that are predicted as it.

    Not in the summary: their places in the rows, the mean of their maps, each over its largest
    value, their mean image, and that minus the mean of the others' images.
    """

    class_: str
    index: Annotated[Count | None, Says("null for all small classes together")]
    images: Positive
    accuracy: Annotated[Share | None, Says("share whose label it is; null without labels")]
    recall: Annotated[Share | None, Says("share of the images of it that are predicted as it")]
    reliance: Reliance
    inside: Annotated[Share | None, Says("mean share of positive evidence on the object")]
    concentration: Concentration
    residual: Residual
    suspicion: Annotated[
        Share | None, Says("1 - q (Benjamini-Hochberg) of `p` among the classes; null: not judged")
    ]
    p: Annotated[Share | None, Says("its smallest p-value, times their number (Bonferroni)")]
    decisive: Annotated[str | None, Says(f"the test with it: {', '.join(TESTS)}")]
    not_judged: Annotated[str | None, Says("why there is no suspicion", optional=True)] = None
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
    members_N: Annotated[NDArray[np.int64], HIDDEN] = field(default_factory=_nothing)
    mean_RC: Annotated[Floats, HIDDEN] = field(default_factory=_nothing)
    image_CYX: Annotated[Pictures, HIDDEN] = field(default_factory=_nothing)
    residual_CYX: Annotated[Pictures, HIDDEN] = field(default_factory=_nothing)


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
class AuditResult(Displayed, Record):
    """An audit: how the maps were made, and what they show of the data set and its classes.

    Not in the summary: the columns of all images, and their rows in `images.csv`.
    """

    mask: Sides
    stride: Stride
    fill: Annotated[str, Says("what replaces occluded pixels")]
    score: Annotated[str, Says("whose drops the maps show")]
    images: Positive
    data: DataRecord
    labelled: Count
    accuracy: Share | None
    inside: Annotated[Share | None, Says("mean share of positive evidence on the object")]
    hits: Annotated[Share | None, Says("share of maps that peak on the object")]
    labels_not_matched: Annotated[
        str | None, Says("why the labels are not used", optional=True)
    ] = None
    suspicious: Annotated[tuple[str, ...], Says(f"classes with a suspicion above {ALARM:g}")]
    verdict: Annotated[str, Says("the result in one sentence")]
    classes: tuple[ClassAudit, ...]
    rows: Annotated[Rows, HIDDEN]
    table: Annotated[tuple[ImageRow, ...], HIDDEN]

    @property
    def ranked(self) -> list[ClassAudit]:
        """The classes, the most suspicious first, those that are not judged last."""
        return sorted(self.classes, key=lambda entry: (entry.suspicion is None, entry.p or 0.0))


def image_rows(
    rows: Rows, labels: tuple[str, ...], group_N: Floats, typicality_N: Floats
) -> Iterator[ImageRow]:
    """The rows of `images.csv`; numbers that are not known are NaN."""

    def named(classes_N: NDArray[np.int64]) -> list[str]:
        return ["" if index == UNKNOWN else labels[index] for index in classes_N.tolist()]

    measured = ("probability", "max_drop", "reliance", "flips", "inside", "hit")
    edges = ("y0", "x0", "y1", "x1")
    of_label = [f"label_{name}" for name in ("probability", "max_drop", *edges)]
    columns = {
        "image": rows.images,
        "label": named(rows.labels_N),
        "predicted": named(rows.predicted_N),
        "covered": named(rows.covered_N),
        "group": group_N.tolist(),
        "typicality": typicality_N.tolist(),
        **{name: getattr(rows, f"{name}_N").tolist() for name in measured},
        **dict(zip(edges, rows.boxes_N4.T.tolist(), strict=True)),
        **dict(zip(of_label, rows.of_label_N6.T.tolist(), strict=True)),
    }
    for values in zip(*columns.values(), strict=True):
        known = [None if isinstance(v, float) and math.isnan(v) else v for v in values]
        yield from_json(ImageRow, dict(zip(columns, known, strict=True)))


def load(folder: Path | FinishedRun) -> AuditResult:
    """Reads the results of a finished run of `cnnviz audit`.

    Raises:
        UsageError: the folder does not hold one, or only a share of one.
        CnnvizError: a file of the run is missing or damaged.
    """
    run = read_summary(folder)
    if run.summary.results is None:
        raise UsageError(f"{folder} is a share; cnnviz merge joins the shares to a run")
    try:
        rows = columns(entry for entry, _files in read_lines(run.file(LINES)))
    except DAMAGE as error:
        raise CnnvizError(f"'{run.file(LINES)}' is damaged: {one_line(error)}") from error
    table = tuple(from_table(ImageRow, read_text(run.file(TABLE))))
    if rows.images != tuple(row.image for row in table):
        raise CnnvizError(f"{TABLE} and {LINES} in {folder} are not of the same images")
    return from_json(AuditResult, run.summary.results, rows=rows, table=table)
