"""The results of `diff`: records that `summary.json`, `images.csv` and `filters.csv` are made of.

Shapes: N images, P positions of all masks one after the other, k neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.errors import UsageError
from cnnviz.core.output.record import (
    HIDDEN,
    Change,
    Count,
    Interval,
    Positive,
    Record,
    Says,
    Share,
)
from cnnviz.core.output.summary import FinishedRun, ModelRecord
from cnnviz.diff.options import NAMED
from cnnviz.diff.sides import Floats, Side

IMAGES, FILTERS = "images.csv", "filters.csv"


@dataclass(frozen=True, eq=False)
class Images:
    """Columns of what changed on each image from the first network to the second.

    Attributes:
        flipped_N: whether the prediction is another class.
        right_N2: whether each network is right; NaN without a label.
        reliance_N: second minus first; NaN where unknown.
        inside_N: share of the evidence on the object, second minus first; NaN where unknown.
        agreement_N: rank correlation of the maps, mean over masks; NaN where one is constant.
        moved_NP: evidence of sum 1, second minus first.
        kept_N: share of an image's nearest that stay among its nearest.
        near: rows (N, k) of the nearest in both networks, nearest first.
    """

    flipped_N: NDArray[np.bool_]
    right_N2: Floats
    reliance_N: Floats
    inside_N: Floats
    agreement_N: Floats | None = None
    moved_NP: NDArray[np.float32] | None = None
    kept_N: Floats | None = None
    near: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def worst(self, probability_N: Floats) -> NDArray[np.int64]:
        """The rows, most changed first: flipped ones, then the least alike, then by probability."""
        alike_N = self.kept_N if self.agreement_N is None else self.agreement_N
        if alike_N is None:
            alike_N = np.zeros(len(self.flipped_N))
        known_N = np.where(np.isnan(alike_N), np.inf, alike_N)
        change_N = np.nan_to_num(np.abs(probability_N))
        return np.lexsort((-change_N, known_N, ~self.flipped_N))


@dataclass(frozen=True, kw_only=True)
class ImageChange(Record):
    """An image and its predictions by both networks."""

    image: str
    label: Annotated[str | None, Says(optional=True)] = None
    a: Annotated[str, Says("class predicted by the first network")]
    b: str
    flipped: Annotated[bool, Says(only="csv")]
    probability_a: Annotated[Share | None, Says(optional=True)] = None
    probability_b: Annotated[Share | None, Says(optional=True)] = None
    agreement: Annotated[Change | None, Says("rank correlation of the maps", optional=True)] = None
    reliance: Annotated[float | None, Says("b minus a", only="csv")] = None
    inside: Annotated[
        Change | None, Says("share of the evidence on the object, b minus a", optional=True)
    ] = None
    kept: Annotated[Share | None, Says("share of its nearest images", optional=True)] = None


@dataclass(frozen=True, kw_only=True)
class Predictions(Record):
    """How the predictions changed."""

    flips: Annotated[Share, Says("share of images with another prediction")]
    flipped: Count
    labelled: Count
    accuracy_a: Share | None
    accuracy_b: Share | None
    lost: Annotated[Count | None, Says("right in a, wrong in b")] = None
    gained: Annotated[Count | None, Says("wrong in a, right in b")] = None
    p_value: Annotated[Share | None, Says("McNemar's exact test; null without labels")] = None


@dataclass(frozen=True)
class Agreement(Record):
    """How far the two runs agree in what their command measures."""

    mean: float
    interval: Annotated[Interval, Says("95 % by resampling")]
    count: Positive
    of: Annotated[str, Says("what is compared")]


@dataclass(frozen=True)
class Moved(Record):
    """Evidence that moved onto the object, or off it where negative."""

    mean: float
    interval: Annotated[Interval, Says("95 % by resampling")]
    count: Positive
    p_value: Annotated[Share | None, Says("Wilcoxon's signed-rank test; null: nothing changed")]


@dataclass(frozen=True)
class SignChange(Record):
    """The change of one measure in one class."""

    value: Share
    others: Annotated[Share | None, Says("median of the other classes")]
    p: Annotated[Share | None, Says("no more than in the other classes; null where not judged")]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassChange(Record):
    """The changes of one class; `members` are the rows of its images."""

    class_: str
    members: Annotated[NDArray[np.int64], HIDDEN]
    images: Positive
    flips: Share
    signs: Annotated[Mapping[str, SignChange], Says("by name")]
    certainty: Annotated[
        Share | None,
        Says("1 - q (Benjamini-Hochberg over classes) that it changed more than the others"),
    ]


@dataclass(frozen=True, kw_only=True)
class FilterChange(Record):
    """One filter in both networks."""

    layer: str
    filter: Count
    a: Annotated[float, Says("its norm, activity or harm in the first network")]
    b: float
    died: Annotated[bool, Says("active in a, inactive in b")]
    revived: bool
    likeness: Annotated[
        Change | None, Says("cosine of the kernels, or share of images in both top lists")
    ] = None
    nearest: Annotated[Count | None, Says("most similar filter of b")] = None
    nearest_likeness: Change | None = None

    @property
    def order(self) -> tuple[bool, float, float]:
        """A sort key: the most changed filter first."""
        gone = self.died or self.revived
        return not gone, 2.0 if self.likeness is None else self.likeness, -abs(self.b - self.a)


@dataclass(frozen=True, eq=False)
class LayerChange(Record):
    """One layer; `changes` are its filters in their order."""

    DERIVED = ("filters", "likeness", "died", "revived", "better_elsewhere")
    layer: str
    changes: Annotated[tuple[FilterChange, ...], HIDDEN]
    rank_correlation: Annotated[Change | None, Says("of norms, activity or harm")]

    @property
    def filters(self) -> Positive:
        """The number of filters."""
        return len(self.changes)

    @property
    def likeness(self) -> Annotated[Change | None, Says("mean over filters")]:
        """The mean over the filters that have one."""
        known = [change.likeness for change in self.changes if change.likeness is not None]
        return float(np.mean(known)) if known else None

    @property
    def died(self) -> tuple[Count, ...]:
        """Filters that are inactive in the second network alone."""
        return tuple(change.filter for change in self.changes if change.died)

    @property
    def revived(self) -> tuple[Count, ...]:
        """Filters that are inactive in the first network alone."""
        return tuple(change.filter for change in self.changes if change.revived)

    @property
    def better_elsewhere(self) -> Annotated[Count, Says("filters most similar to another of b")]:
        """The number of filters that are more similar to another filter of the second network."""
        return sum(change.nearest not in (None, change.filter) for change in self.changes)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiffResult(Record):
    """What changed from one run to the other; None and empty is what their command lacks."""

    sides: Annotated[tuple[Side, Side], HIDDEN]
    columns: Annotated[Images | None, HIDDEN]
    images: Annotated[Count, Says("images compared; 0 where the command has none")]
    left_out: Annotated[tuple[str, ...], Says("images that failed in one of the runs")]
    agreement: Agreement | None
    predictions: Predictions | None
    inside: Moved | None
    by_chance: Annotated[Share | None, Says("share of neighbours that chance would keep")]
    changed: Annotated[tuple[str, ...], Says(f"classes of a certainty above {NAMED:g}")]
    classes: Annotated[tuple[ClassChange, ...], Says("the most certain first")]
    layers: tuple[LayerChange, ...]
    worst_images: Annotated[tuple[ImageChange, ...], Says("the most changed first")]
    worst_filters: Annotated[tuple[FilterChange, ...], Says("the most changed first")]


@dataclass(frozen=True)
class RunRecord(Record):
    """One of the two runs."""

    folder: str
    model: ModelRecord
    version: Annotated[str, Says("of cnnviz")]

    @classmethod
    def of(cls, run: FinishedRun) -> "RunRecord":
        """Describes a finished run."""
        if run.summary.model is None:
            raise UsageError(f"{run.folder} is not a run of a network")
        return cls(str(run.folder), run.summary.model, run.summary.version)


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """The two runs of a comparison."""

    of: Annotated[str, Says("the command of both runs")]
    a: RunRecord
    b: RunRecord
    same_weights: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Results(DiffResult, Compared):
    """The `results` of the summary: the runs, and their comparison with its `--top` changes."""

    @classmethod
    def of_runs(
        cls, command: str, a: RunRecord, b: RunRecord, result: DiffResult, top: int
    ) -> "Results":
        """The results of two runs of a command."""
        shortened = {
            "worst_images": result.worst_images[:top],
            "worst_filters": result.worst_filters[:top],
        }
        same = a.model.weights_sha256 == b.model.weights_sha256
        return cls(of=command, a=a, b=b, same_weights=same, **(vars(result) | shortened))
