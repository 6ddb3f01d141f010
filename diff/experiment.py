"""Compares two runs of one command over the same data with two networks: what changed?"""

import numpy as np

from cnnviz.core.statistics import mean_of
from cnnviz.diff.classes import compare_classes
from cnnviz.diff.filters import compare_filters
from cnnviz.diff.images import compare_images, image_changes, moved_inside, predictions
from cnnviz.diff.options import NAMED, DiffSpec
from cnnviz.diff.results import (
    Agreement,
    ClassChange,
    DiffResult,
    ImageChange,
    Images,
    LayerChange,
)
from cnnviz.diff.sides import Side, aligned


def diff(a: Side, b: Side, spec: DiffSpec | None = None) -> DiffResult:
    """Compares two runs.

    Args:
        a: one of them.
        b: the other.
        spec: the options.

    Raises:
        UsageError: they cannot be compared; the message says in what they differ.
    """
    spec = spec or DiffSpec()
    a, b, left_out = aligned(a, b)
    images = compare_images(a, b, spec.neighbors)
    layers = compare_filters(a, b)
    classes: list[ClassChange] = []
    changes: list[ImageChange] = []
    if images is not None and a.answers is not None and b.answers is not None:
        order = images.worst(b.answers.probability_N - a.answers.probability_N)
        rows = image_changes(images, a.answers, b.answers)
        changes = [rows[row] for row in order.tolist()]
        classes = compare_classes(a.answers, images, spec.seed)
        classes.sort(key=lambda change: -(change.certainty or -1.0))
    count = len(changes)
    kept = images is not None and images.kept_N is not None and count > 1
    filters = [change for layer in layers for change in layer.changes]
    return DiffResult(
        sides=(a, b),
        columns=images,
        images=count,
        left_out=left_out,
        agreement=_agreement(images, layers, spec.seed),
        predictions=predictions(images) if images else None,
        inside=moved_inside(images, spec.seed) if images else None,
        by_chance=min(spec.neighbors, count - 1) / (count - 1) if kept else None,
        changed=tuple(c.class_ for c in classes if (c.certainty or 0.0) > NAMED),
        classes=tuple(classes),
        layers=layers,
        worst_images=tuple(changes),
        worst_filters=tuple(sorted(filters, key=lambda change: change.order)),
    )


def _agreement(
    images: Images | None, layers: tuple[LayerChange, ...], seed: int
) -> Agreement | None:
    """The one number of how far the two agree; None where the runs have nothing to compare."""
    candidates = {
        "rank correlation of the maps, mean over images": images and images.agreement_N,
        "share of the nearest images kept, mean over images": images and images.kept_N,
        "likeness of the filters, mean over filters": [
            change.likeness for layer in layers for change in layer.changes
        ],
        "rank correlation of the filters' harm, mean over layers": [
            layer.rank_correlation for layer in layers
        ],
    }
    for name, values in candidates.items():
        if values is not None and (mean := mean_of(np.array(values, np.float64), seed)):
            return Agreement(mean.value, mean.interval, mean.count, name)
    return None
