"""The result of an ablation as records, and its files: written by `write`, read back by `load`.

Shapes: M images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.files import open_arrays, read_text, shown_path
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import (
    Change,
    Count,
    Positive,
    Record,
    Says,
    Share,
    from_json,
    from_table,
    table,
)
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.summary import DataRecord, FinishedRun, read_summary
from cnnviz.filters.ablation import evaluation
from cnnviz.filters.ablation.evaluation import (
    ClassChange,
    Confusion,
    Flips,
    McNemar,
    OneAccuracy,
)
from cnnviz.filters.ablation.measures import ERROR, PRECISION, Measured
from cnnviz.filters.ablation.options import Mode, RemovalOrder
from cnnviz.filters.ablation.sweep import Curve, CurvePoint, FilterEffect, points, ranked
from cnnviz.filters.ablation.tally import Counts

FLIPS = "flips.csv"
PREDICTIONS = "predictions.npz"
SWEEP = "sweep.csv"
CURVES = "cumulative.csv"
CONFUSIONS = 20
TOP = 20
ACCURACY = "accuracy"


@dataclass(frozen=True)
class FilterSet(Record):
    """The filters of a layer that are switched off together."""

    layer: str
    channels: Annotated[tuple[Count, ...], Says(minItems=1, uniqueItems=True)]
    of: Annotated[Positive, Says("channels of the layer")]


@dataclass(frozen=True)
class Engine(Record):
    """What ran the ablations."""

    name: Annotated[str, Says(enum=["replay", "full"])]
    reason: Annotated[str | None, Says("why every ablation was a whole pass")]


@dataclass(frozen=True)
class Accuracy(Record):
    """Before and after; null after if filters were not switched off together."""

    before: OneAccuracy
    after: OneAccuracy | None = None
    change: Change | None = None
    mcnemar: McNemar | None = None


@dataclass(frozen=True)
class Swept(Record):
    """A layer whose filters were switched off one by one."""

    layer: str
    filters: Positive


@dataclass(frozen=True)
class Sweep(Record):
    """`--sweep`."""

    layers: Annotated[tuple[Swept, ...], Says(minItems=1)]
    top: Annotated[tuple[FilterEffect, ...], Says("most harmful first", minItems=1)]


@dataclass(frozen=True, kw_only=True)
class Flip(Record):
    """An image whose prediction changed."""

    image: str
    label: str
    before: str
    after: str
    before_probability: Share
    after_probability: Share
    label_probability_before: Share
    label_probability_after: Share


@dataclass(frozen=True, kw_only=True, eq=False)
class AblationResult(Record):
    """The result of an ablation."""

    data: DataRecord
    filters: tuple[FilterSet, ...]
    mode: Mode
    engine: Engine
    measure: Annotated[
        str, Says("what evaluates the answers", enum=[ACCURACY, PRECISION.name, ERROR.name])
    ]
    measured: Annotated[Measured | None, Says("null where answers are right or wrong")]
    accuracy: Accuracy | None
    classes: tuple[ClassChange, ...]
    classes_without_images: tuple[str, ...]
    confusions: Annotated[tuple[Confusion, ...], Says("most grown first", maxItems=CONFUSIONS)]
    flips: Flips | None
    cumulative: tuple[Curve, ...]
    notes: tuple[str, ...]
    effects: Annotated[
        tuple[FilterEffect, ...], Says("of each swept filter, in network order", hidden=True)
    ]
    predictions: Annotated[
        Mapping[str, NDArray[Any]], Says("the arrays of `predictions.npz`", hidden=True)
    ]
    indices: Annotated[
        NDArray[np.int64], Says("(M,) indices in the data of the images that counted", hidden=True)
    ]
    counts: Annotated[
        Counts | None, Says("of the original, `--filters` if given, the sweep", hidden=True)
    ] = None
    errors: Annotated[
        tuple[tuple[str, str], ...], Says("path and message of images that failed", hidden=True)
    ] = ()
    top: Annotated[int, Says("filters of the sweep in the summary", hidden=True)] = TOP

    DERIVED = ("sweep",)

    @property
    def sweep(self) -> Sweep | None:
        """The swept layers and the most important filters."""
        if not self.effects:
            return None
        layers = Counter(effect.layer for effect in self.effects)
        swept = tuple(Swept(layer, count) for layer, count in layers.items())
        return Sweep(swept, ranked(self.effects)[: self.top])

    def flipped(self) -> tuple[Flip, ...]:
        """The images whose prediction changed, in order of the data."""
        if self.flips is None:
            return ()
        stored = self.predictions
        names = stored["classes"]
        return tuple(
            Flip(
                image=str(stored["paths"][row]),
                label=str(names[stored["labels"][row]]),
                before=str(names[stored["before"][row]]),
                after=str(names[stored["after"][row]]),
                before_probability=float(stored["before_probability"][row]),
                after_probability=float(stored["after_probability"][row]),
                label_probability_before=float(stored["before_label_probability"][row]),
                label_probability_after=float(stored["after_label_probability"][row]),
            )
            for row in np.flatnonzero(stored["before"] != stored["after"])
        )


def make_result(
    model: Model,
    data: ImageData,
    mode: Mode,
    *,
    filters: tuple[FilterSet, ...],
    engine: Engine,
    outcome: Counts | Measured,
    indices: NDArray[np.int64],
    effects: tuple[FilterEffect, ...],
    cumulative: tuple[Curve, ...],
    errors: tuple[tuple[str, str], ...],
) -> AblationResult:
    """Makes the result of what was counted or measured."""
    counts = outcome if isinstance(outcome, Counts) else None
    measured = outcome if isinstance(outcome, Measured) else None
    images_K = outcome.images if isinstance(outcome, Counts) else outcome.images_K
    without = tuple(name for name, n in zip(model.labels, images_K, strict=True) if not n)
    pair = None if counts is None else counts.pair
    labels = counts.labels if counts is not None else indices
    classes = _measured_classes(measured, model.labels) if measured is not None else ()
    return AblationResult(
        data=DataRecord.of(data, len(indices)),
        filters=filters,
        mode=mode,
        engine=engine,
        measure=ACCURACY if measured is None else measured.measure.name,
        measured=measured,
        accuracy=None if counts is None else _accuracy(counts, model.classes),
        classes=evaluation.per_class(*pair, labels, model.labels) if pair else classes,
        classes_without_images=without,
        confusions=evaluation.grown_confusions(*pair, labels, model.labels)[:CONFUSIONS]
        if pair
        else (),
        flips=evaluation.flips(*pair, labels) if pair else None,
        cumulative=cumulative,
        notes=tuple(_notes(data, filters, without, engine, effects, cumulative)),
        effects=effects,
        indices=indices,
        counts=counts,
        predictions={} if counts is None else _arrays(counts, model.labels, data, indices),
        errors=errors,
    )


def _accuracy(counts: Counts, classes: int) -> Accuracy:
    before, *rest = (evaluation.accuracy(p, counts.labels, classes) for p in counts.predictions)
    if counts.pair is None:
        return Accuracy(before)
    mcnemar = evaluation.paired(*counts.pair, counts.labels)
    return Accuracy(before, rest[0], rest[0].top1 - before.top1, mcnemar)


def _measured_classes(measured: Measured, names: Sequence[str]) -> tuple[ClassChange, ...]:
    """The classes that images have, or all values; empty if no filters were off together."""
    if measured.interval is None:
        return ()
    before_K, after_K = measured.each_VK[:2].tolist()
    return tuple(
        ClassChange(
            class_=names[k],
            index=k,
            count=count,
            before=before_K[k],
            after=after_K[k],
            change=after_K[k] - before_K[k],
            probability_change=None,
        )
        for k, count in enumerate(measured.images_K.tolist())
        if count
    )


def _notes(
    data: ImageData,
    filters: Sequence[FilterSet],
    without: Sequence[str],
    engine: Engine,
    effects: Sequence[FilterEffect],
    cumulative: Sequence[Curve],
) -> list[str]:
    """What the user should know before trusting the numbers."""
    notes = [
        f"all {off.of} filters of '{off.layer}' are off"
        for off in filters
        if len(off.channels) == off.of
    ]
    if len(data) < data.total:
        notes.append(f"a sample of {len(data)} of the {data.total} images")
    if without:
        shown = ", ".join(without[:5])
        shown += f" and {len(without) - 5} more" if len(without) > 5 else ""
        notes.append(f"no images of {shown}: left out of the mean over classes")
    if engine.reason:
        notes.append(f"every ablation was a whole pass: {engine.reason}")
    if cumulative:
        notes.append("orders by harm were found on the same images as the curves")
        by_norm = {c.layer for c in cumulative if c.order is RemovalOrder.SMALLEST_NORM}
        others = [
            layer for layer in dict.fromkeys(e.layer for e in effects) if layer not in by_norm
        ]
        if others:
            notes.append(f"no order by kernel norm for {', '.join(others)}: not convolutions")
    return notes


def _arrays(
    counts: Counts, names: Sequence[str], data: ImageData, indices: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """The arrays of `predictions.npz`: a row per image that counted, in order of the data."""
    arrays: dict[str, NDArray[Any]] = {
        "images": indices,
        "paths": np.array([shown_path(data.examples[i].path) for i in indices], np.str_),
        "classes": np.array(names, np.str_),
        "labels": counts.labels,
    }
    for when, answers in zip(("before", "after"), counts.predictions, strict=False):
        arrays |= {
            when: answers.predicted,
            f"{when}_probability": answers.probability,
            f"{when}_label_probability": answers.true_probability,
        }
    return arrays


def write(result: AblationResult, folder: RunFolder) -> None:
    """Writes the tables and arrays of a result."""
    if result.flips is not None:
        folder.write_csv(FLIPS, *table(Flip, result.flipped()))
    if result.effects:
        folder.write_csv(SWEEP, *table(FilterEffect, ranked(result.effects)))
    if result.cumulative:
        rows = [point for curve in result.cumulative for point in points(curve)]
        folder.write_csv(CURVES, *table(CurvePoint, rows))
    if result.predictions:
        folder.write_npz(PREDICTIONS, **result.predictions)


def load(folder: Path | FinishedRun) -> AblationResult:
    """Reads the result of a finished run.

    Raises:
        UsageError: there is no summary of cnnviz in the folder.
        CnnvizError: a file is missing or damaged.
    """
    run = read_summary(folder)
    content = dict(run.summary.results)
    predictions: dict[str, NDArray[Any]] = {}
    if content["accuracy"]:
        with open_arrays(run.file(PREDICTIONS)) as stored:
            predictions = {name: stored[name] for name in stored}
    measure = ERROR if content["measure"] == ERROR.name else PRECISION
    if content["measured"]:
        arrays = {"each_VK": np.zeros((0, 0)), "images_K": np.zeros(0, np.int64)}
        content["measured"] = {**content["measured"], "measure": measure, **arrays}
    effects: list[FilterEffect] = []
    if content["sweep"]:
        rows = from_table(FilterEffect, read_text(run.file(SWEEP)))
        effects = [replace(effect, harm=-measure.sign * effect.change) for effect in rows]
        order = [layer["layer"] for layer in content["sweep"]["layers"]]
        effects.sort(key=lambda effect: (order.index(effect.layer), effect.filter))
    indices = predictions.get("images", np.zeros(0, np.int64))
    hidden = {"effects": tuple(effects), "indices": indices, "predictions": predictions}
    return from_json(AblationResult, content, **hidden)
