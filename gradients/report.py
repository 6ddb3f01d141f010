"""What `summary.json` says of one picture's saliency: plain data, no NaN."""

from typing import Any

from cnnviz.core.output.numbers import digits
from cnnviz.gradients.comparison import Comparison
from cnnviz.gradients.experiment import ClassMap, SaliencyResult

TOP = 5


def report(result: SaliencyResult, comparisons: tuple[Comparison, ...] = ()) -> dict[str, Any]:
    """One entry of `results`."""
    readings_K = result.head.readings(result.logits_K)
    best = result.ranking_K.argsort(descending=True, stable=True)[:TOP].tolist()
    if result.reading is not None:
        best = [index for index in best if result.reading.shares_K[index] > 0]
    top = [_class(result, index, float(readings_K[index])) for index in best]
    entries = [_map(result, found) for found in result.maps]
    for entry, compared in zip(entries, comparisons, strict=False):
        agreement = compared.rank_correlation
        entry["comparison"] = {
            "with": compared.other,
            "rank_correlation": None if agreement is None else digits(agreement),
            "seconds": round(compared.seconds, 4),
            "other_seconds": round(compared.other_seconds, 4),
        }
    return {
        "image": result.image.path,
        "method": str(result.method),
        "layer": result.layer,
        **({"prediction": top[0], "top5": top} if result.head.has_classes else {}),
        **({"read": result.place or "own pixels"} if result.reading else {}),
        "targets": entries,
    }


def _class(result: SaliencyResult, index: int, reading: float) -> dict[str, Any]:
    what = "probability" if result.head.has_classes else "value"
    named = {"class": result.labels[index], "index": index, what: digits(reading)}
    if result.reading is not None and result.head.has_classes:
        named["pixels"] = digits(float(result.reading.shares_K[index]))
    return named


def _map(result: SaliencyResult, found: ClassMap) -> dict[str, Any]:
    row, column = divmod(int(found.map_HW.argmax()), found.map_HW.shape[1])
    return _class(result, found.target, found.probability) | {
        "lowest": digits(float(found.map_HW.min())),
        "highest": digits(float(found.map_HW.max())),
        "peak": [row, column],
        "peak_original": list(result.image.to_original((row, column, row + 1, column + 1))),
    }
