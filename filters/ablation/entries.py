"""What `summary.json` says of an ablation, as types; `report.py` fills them in."""

from typing import Annotated

from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Change,
    Count,
    DataEntry,
    Interval,
    Named,
    Positive,
    Said,
    Share,
)
from cnnviz.filters.ablation.choices import Mode, RemovalOrder

CONFUSIONS = 20


class FilterSet(TypedDict):
    """Which filters of a layer are off."""

    layer: str
    channels: Annotated[list[Count], Said(minItems=1, uniqueItems=True)]
    of: Positive


class Engine(TypedDict):
    """What ran."""

    name: Annotated[str, Said(enum=["replay", "full"])]
    reason: Annotated[str | None, Said("why every ablation was a whole pass")]


class Measured(TypedDict):
    """Of classes on their own, or of values."""

    before: float
    after: float | None
    change: float | None
    interval: Annotated[Interval | None, Said("95 % of the change, by resampling images")]


class OneAccuracy(TypedDict):
    """How many answers are right."""

    top1: Share
    top5: Annotated[Share | None, Said("null for five classes or fewer")]
    correct: Count
    count: Positive
    interval: Annotated[list[Share], Said("Wilson's, 95 %", minItems=2, maxItems=2)]
    mean_over_classes: Share
    label_probability: Share


class McNemar(TypedDict):
    """McNemar's exact test of the two runs."""

    lost: Count
    gained: Count
    p_value: Share


class Accuracy(TypedDict):
    """Before and after; null after where filters were not switched off together."""

    before: OneAccuracy
    after: OneAccuracy | None
    change: Change | None
    mcnemar: McNemar | None


class ClassChange(Named):
    """What one class, or value, loses."""

    count: Positive
    before: float
    after: float
    change: float
    probability_change: Change | None


class Confusion(TypedDict):
    """Images of one class taken for another."""

    label: str
    predicted: str
    before: Count
    after: Count


class Flips(TypedDict):
    """Predictions that changed."""

    count: Count
    right_to_wrong: Count
    wrong_to_right: Count
    wrong_to_wrong: Count


class Swept(TypedDict):
    """A layer whose filters were switched off one by one."""

    layer: str
    filters: Positive


class Answers(TypedDict):
    """What is counted of one filter; null where answers are measured."""

    correct: Count | None
    lost: Count | None
    gained: Count | None
    p_value: Share | None
    probability_change: Change | None
    hurts_probability_change: Change | None


class Effect(Answers):
    """What one filter does."""

    layer: str
    filter: Count
    change: float
    hurts: Annotated[str | None, Said("the class whose accuracy fell most")]
    hurts_change: float


class Sweep(TypedDict):
    """`--sweep`."""

    layers: Annotated[list[Swept], Said(minItems=1)]
    top: Annotated[list[Effect], Said(minItems=1)]


class CurveEntry(TypedDict):
    """`--cumulative`: accuracy, or what else is measured, while filters are removed."""

    layer: str
    order: RemovalOrder
    removed: list[Count]
    accuracy: Annotated[list[float], Said("mean over the orders drawn")]
    lowest: list[float]
    highest: list[float]


class Results(TypedDict):
    """The `results` of the summary."""

    data: DataEntry
    filters: list[FilterSet]
    mode: Mode
    engine: Engine
    measure: Annotated[
        str,
        Said(
            "what judges the answers",
            enum=["accuracy", "mean average precision", "mean absolute error"],
        ),
    ]
    measured: Annotated[Measured | None, Said("null where answers are right or wrong")]
    accuracy: Accuracy | None
    classes: list[ClassChange]
    classes_without_images: list[str]
    confusions: Annotated[list[Confusion], Said(maxItems=CONFUSIONS)]
    flips: Flips | None
    sweep: Sweep | None
    cumulative: list[CurveEntry]
    notes: list[str]
