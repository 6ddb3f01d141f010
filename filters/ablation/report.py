"""What `summary.json` and the CSV files say of an ablation: plain data, class names, no NaN."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnviz.core.files import shown_path
from cnnviz.core.output.entries import data_entry
from cnnviz.core.output.numbers import digits
from cnnviz.filters.ablation import evaluation
from cnnviz.filters.ablation.choices import RemovalOrder
from cnnviz.filters.ablation.entries import (
    CONFUSIONS,
    Accuracy,
    Answers,
    ClassChange,
    Confusion,
    CurveEntry,
    Flips,
    Measured,
    OneAccuracy,
    Results,
    Sweep,
)
from cnnviz.filters.ablation.sweep import Curve, FilterEffect, ranked

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.models.load import Model
    from cnnviz.filters.ablation.ablation import AblationResult
    from cnnviz.filters.ablation.tally import Counts

FLIPS = "flips.csv"
FLIPS_HEADER = (
    "image", "label", "before", "after", "before_probability", "after_probability",
    "label_probability_before", "label_probability_after",
)  # fmt: skip
PREDICTIONS = "predictions.npz"
SWEEP = "sweep.csv"
SWEEP_HEADER = (
    "layer", "filter", "correct", "accuracy", "change", "lost", "gained", "p_value",
    "probability_change", "hurts", "hurts_change", "hurts_probability_change",
)  # fmt: skip
CURVES = "cumulative.csv"
CURVES_HEADER = ("layer", "order", "removed", "share", "accuracy", "lowest", "highest")


def report(result: "AblationResult", model: "Model", data: "ImageData", top: int) -> Results:
    """The `results` of the summary.

    Args:
        result: what `ablate` returned.
        model: whose labels name the classes.
        data: the images.
        top: how many filters of the sweep to list; the CSV has all.
    """
    return {
        "data": data_entry(data, len(result.indices)),
        "filters": [
            {"layer": layer, "channels": list(off), "of": result.plan.counts[layer]}
            for layer, off in result.plan.channels.items()
        ],
        "mode": result.mode,
        "engine": {"name": result.engine, "reason": result.reason},
        "measure": measure_name(result),
        "measured": _measured(result),
        "accuracy": _accuracy(result, model.classes),
        "classes": _measured_classes(result, model) or _classes(result, model),
        "classes_without_images": without_images(result, model),
        "confusions": _confusions(result, model),
        "flips": _flip_counts(result),
        "sweep": _sweep(result, model, top),
        "cumulative": [_curve(curve) for curve in result.curves],
        "notes": notes(result, model, data),
    }


def measure_name(result: "AblationResult") -> str:
    """What judges the answers."""
    return "accuracy" if result.measured is None else result.measured.measure.name


def without_images(result: "AblationResult", model: "Model") -> list[str]:
    """Classes that no image has."""
    found = result.measured
    images_K = counted(result).images if found is None else found.images_K
    return [label for label, count in zip(model.labels, images_K, strict=True) if not count]


def _measured(result: "AblationResult") -> Measured | None:
    found = result.measured
    if found is None:
        return None
    if found.interval is None:
        return {"before": digits(found.mean_V[0]), "after": None, "change": None, "interval": None}
    return {
        "before": digits(found.mean_V[0]),
        "after": digits(found.mean_V[1]),
        "change": digits(found.change(1)),
        "interval": [digits(end) for end in found.interval],
    }


def _measured_classes(result: "AblationResult", model: "Model") -> list[ClassChange]:
    """The classes or values that something is known of; empty where answers are counted."""
    found = result.measured
    if found is None or found.interval is None:
        return []
    return [
        {
            "class": model.labels[k],
            "index": k,
            "count": int(found.images_K[k]),
            "before": digits(found.each_VK[0, k]),
            "after": digits(found.each_VK[1, k]),
            "change": digits(found.each_VK[1, k] - found.each_VK[0, k]),
            "probability_change": None,
        }
        for k in range(model.classes)
        if found.images_K[k]
    ]


def counted(result: "AblationResult") -> "Counts":
    """The counts of a result whose answers are right or wrong."""
    assert result.counts is not None  # noqa: S101 (the caller has looked)
    return result.counts


def both(result: "AblationResult") -> tuple[evaluation.Predictions, evaluation.Predictions] | None:
    """The answers before and after; None where they are measured, or filters do not go together."""
    if result.counts is None or len(result.counts.predictions) == 1:
        return None
    before, after = result.counts.predictions
    return before, after


def notes(result: "AblationResult", model: "Model", data: "ImageData") -> list[str]:
    """What the user should know before believing the numbers."""
    found = [
        f"all {result.plan.counts[layer]} filters of '{layer}' are off"
        for layer in result.plan.silenced
    ]
    if len(data) < data.total:
        found.append(f"a sample of {len(data)} of the {data.total} images")
    empty = without_images(result, model)
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        found.append(f"no images of {shown}: left out of the mean over classes")
    if result.reason:
        found.append(f"every ablation was a whole pass: {result.reason}")
    if result.curves:
        found.append("orders by harm were found on the same images as the curves")
    ordered = {curve.layer for curve in result.curves if curve.order is RemovalOrder.SMALLEST_NORM}
    unordered = [layer for layer in result.plan.swept if result.curves and layer not in ordered]
    if unordered:
        found.append(f"no order by kernel norm for {', '.join(unordered)}: not convolutions")
    return found


def _accuracy(result: "AblationResult", classes: int) -> Accuracy | None:
    if result.counts is None:
        return None
    labels, answers = result.counts.labels, result.counts.predictions
    entries = [_one_accuracy(own, labels, classes) for own in answers]
    before = entries[0]
    if len(answers) == 1:
        return {"before": before, "after": None, "change": None, "mcnemar": None}
    pair = evaluation.paired(answers[0], answers[1], labels)
    return {
        "before": before,
        "after": entries[1],
        "change": digits(entries[1]["top1"] - before["top1"]),
        "mcnemar": {"lost": pair.lost, "gained": pair.gained, "p_value": digits(pair.p_value)},
    }


def _one_accuracy(answers: evaluation.Predictions, labels: Any, classes: int) -> OneAccuracy:
    found = evaluation.accuracy(answers, labels, classes)
    own = evaluation.per_class(answers, answers, labels, range(classes))
    return {
        "top1": digits(found.top1),
        "top5": None if found.top5 is None else digits(found.top5),
        "correct": found.correct,
        "count": found.count,
        "interval": [digits(end) for end in found.interval],
        "mean_over_classes": digits(evaluation.mean_class_accuracy(own)[0]),
        "label_probability": digits(float(answers.true_probability.mean())),
    }


def class_changes(result: "AblationResult", classes: int) -> tuple[evaluation.ClassChange, ...]:
    """The change of every class that has images; empty where no filters went together."""
    if (answers := both(result)) is None:
        return ()
    changes = evaluation.per_class(*answers, counted(result).labels, range(classes))
    return tuple(change for change in changes if change.count)


def _classes(result: "AblationResult", model: "Model") -> list[ClassChange]:
    return [
        {
            "class": model.labels[change.index],
            "index": change.index,
            "count": change.count,
            "before": change.before,
            "after": change.after,
            "change": digits(change.change),
            "probability_change": digits(change.probability_change),
        }
        for change in class_changes(result, model.classes)
    ]


def grown_confusions(result: "AblationResult") -> tuple[evaluation.Confusion, ...]:
    """Confusions that became more frequent, most grown first; empty with a sweep alone."""
    answers = both(result)
    return evaluation.grown_confusions(*answers, counted(result).labels) if answers else ()


def _confusions(result: "AblationResult", model: "Model") -> list[Confusion]:
    return [
        {
            "label": model.labels[pair.label],
            "predicted": model.labels[pair.predicted],
            "before": pair.before,
            "after": pair.after,
        }
        for pair in grown_confusions(result)[:CONFUSIONS]
    ]


def flips(result: "AblationResult") -> list[int]:
    """FullRows of the images whose prediction changed, in order of the data."""
    answers = both(result)
    found: list[int] = evaluation.flipped(*answers).tolist() if answers else []
    return found


def _flip_counts(result: "AblationResult") -> Flips | None:
    if (answers := both(result)) is None:
        return None
    before, after = answers
    labels = counted(result).labels
    flipped = before.predicted != after.predicted
    return {
        "count": int(flipped.sum()),
        "right_to_wrong": int((flipped & (before.predicted == labels)).sum()),
        "wrong_to_right": int((flipped & (after.predicted == labels)).sum()),
        "wrong_to_wrong": int(
            (flipped & (before.predicted != labels) & (after.predicted != labels)).sum()
        ),
    }


def flip_rows(
    result: "AblationResult", model: "Model", data: "ImageData"
) -> Iterator[tuple[object, ...]]:
    """FullRows of `flips.csv`."""
    if (answers := both(result)) is None:
        return
    before, after = answers
    for row in flips(result):
        yield (
            data.examples[int(result.indices[row])].path,
            model.labels[counted(result).labels[row]],
            model.labels[before.predicted[row]],
            model.labels[after.predicted[row]],
            *(
                digits(float(values[row]))
                for values in (
                    before.probability,
                    after.probability,
                    before.true_probability,
                    after.true_probability,
                )
            ),
        )


def prediction_arrays(
    result: "AblationResult", model: "Model", data: "ImageData"
) -> dict[str, Any]:
    """Arrays of `predictions.npz`: a row per image that counted, in order of the data."""
    paths = [shown_path(data.examples[i].path) for i in result.indices]
    arrays: dict[str, Any] = {"images": result.indices, "paths": np.array(paths, np.str_)}
    if result.counts is None:
        return arrays
    arrays |= {"classes": np.array(model.labels, np.str_), "labels": result.counts.labels}
    for when, own in zip(("before", "after"), result.counts.predictions, strict=False):
        arrays |= {
            when: own.predicted,
            f"{when}_probability": own.probability,
            f"{when}_label_probability": own.true_probability,
        }
    return arrays


def _hurt(effect: FilterEffect, model: "Model") -> str | None:
    return None if effect.hurts is None else model.labels[effect.hurts]


def _sweep(result: "AblationResult", model: "Model", top: int) -> Sweep | None:
    if not result.sweep:
        return None
    return {
        "layers": [
            {"layer": layer, "filters": count} for layer, count in result.plan.swept.items()
        ],
        "top": [
            {
                "layer": effect.layer,
                "filter": effect.filter,
                "change": digits(effect.change),
                "hurts": _hurt(effect, model),
                "hurts_change": digits(effect.hurts_change),
                **_answers(effect),
            }
            for effect in ranked(result.sweep)[:top]
        ],
    }


def _answers(effect: FilterEffect) -> Answers:
    """What is counted; nothing where it is measured."""
    found = effect.answers
    if found is None:
        return {
            "correct": None,
            "lost": None,
            "gained": None,
            "p_value": None,
            "probability_change": None,
            "hurts_probability_change": None,
        }
    return {
        "correct": found.correct,
        "lost": found.lost,
        "gained": found.gained,
        "p_value": digits(found.p_value),
        "probability_change": digits(found.probability_change),
        "hurts_probability_change": digits(found.hurts_probability),
    }


def sweep_rows(result: "AblationResult", model: "Model") -> Iterator[tuple[object, ...]]:
    """FullRows of `sweep.csv`: every filter, most harmful loss first."""
    images = len(result.indices)
    level = 0.0 if result.measured is None else float(result.measured.mean_V[0])
    for effect in ranked(result.sweep):
        counted = {key: "" if v is None else v for key, v in _answers(effect).items()}
        found = effect.answers
        yield (
            effect.layer,
            effect.filter,
            counted["correct"],
            digits(found.correct / images if found else level + effect.change),
            digits(effect.change),
            counted["lost"],
            counted["gained"],
            counted["p_value"],
            counted["probability_change"],
            _hurt(effect, model) or "",
            digits(effect.hurts_change),
            counted["hurts_probability_change"],
        )


def _curve(curve: Curve) -> CurveEntry:
    return {
        "layer": curve.layer,
        "order": curve.order,
        "removed": list(curve.removed),
        "accuracy": _rounded(curve.accuracy),
        "lowest": _rounded(curve.low),
        "highest": _rounded(curve.high),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [digits(value) for value in values]


def curve_rows(result: "AblationResult") -> Iterator[tuple[object, ...]]:
    """FullRows of `cumulative.csv`."""
    for curve in result.curves:
        levels = zip(curve.removed, curve.accuracy, curve.low, curve.high, strict=True)
        for removed, *accuracies in levels:
            share = removed / curve.removed[-1]
            yield curve.layer, curve.order.value, removed, digits(share), *_rounded(accuracies)
