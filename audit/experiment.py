"""Where a network looks over a whole data set, class by class, and whether that is a shortcut.

All is said from the rows, one an image, and from the patches with the largest drops; the network is
asked again only when patches are pasted. An image belongs to the class that it is predicted as,
since that is what its map is evidence for.
Shapes: N images, R C rows and columns of the grid of positions.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnnviz.audit.choices import AuditSpec
from cnnviz.audit.groups import SMALLEST, Class, classes
from cnnviz.audit.paste import Open, Verdict, judge
from cnnviz.audit.rows import Rows
from cnnviz.core.models.load import Model
from cnnviz.core.statistics import against_others, percentile_interval, suspicions

RESAMPLES = 500
TINY = 0.02
"""Radians: differences of the arc sine of the root below this are none, however sure."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Starts a bar of so many steps; what it gives is called with the number of steps just done."""


def _silent(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _steps: None)


@dataclass(frozen=True)
class Concentration:
    """Over how much of the frame a class's mean evidence is spread.

    Attributes:
        area: effective area, a share of the positions: (Σm)² ÷ Σm² of the positive part of the mean
            map, over their number; 1 where it is the same everywhere. None where nothing is
            positive.
        interval: 95 % of it, by resampling images.
        others: median of the other classes; None where there are none.
    """

    area: float | None
    interval: tuple[float, float] | None
    others: float | None = None


@dataclass(frozen=True)
class Reliance:
    """Whether a class's evidence is everywhere, so that no patch matters: a tint, a texture.

    Attributes:
        mean: over its images, of the largest drop of the probability over the probability.
        others: median of the other classes; None where there are none.
        p: p-value of being no lower than the other classes'; None where too few are there.
        suspicion: see `suspicion`.
    """

    mean: float
    others: float | None
    p: float | None
    suspicion: float | None = None


@dataclass(frozen=True, eq=False)
class Audited:
    """One class.

    Attributes:
        of: its images and its groups.
        verdicts: one for each group; None where pasting was not possible.
        reliance: on single patches.
        mean_RC: mean of the images' maps, each over its largest value.
        concentration: of that.
        typicality_N: of each image, the correlation of its map with the mean of the others'; NaN
            where one of them is constant.
    """

    of: Class
    verdicts: tuple[Verdict | None, ...]
    reliance: Reliance
    mean_RC: NDArray[np.float64]
    concentration: Concentration
    typicality_N: NDArray[np.float64]

    @property
    def suspicion(self) -> float | None:
        """The largest of its groups' and its reliance's; None where none could be judged."""
        found = [self.reliance.suspicion, *(v.suspicion for v in self.verdicts if v is not None)]
        return max((value for value in found if value is not None), default=None)


@dataclass(frozen=True, eq=False)
class AuditResult:
    """What an audit found.

    Attributes:
        rows: one an image.
        classes: those predicted, in the model's order; images of small classes together, last.
        labels: the model's names of classes.
    """

    rows: Rows
    classes: tuple[Audited, ...]
    labels: tuple[str, ...]


def audit(
    model: Model,
    rows: Rows,
    boxes_P4: NDArray[np.int64],
    read: Open,
    spec: AuditSpec,
    progress: Progress = _silent,
) -> AuditResult:
    """Judges a data set whose images were studied.

    Args:
        model: borrowed.
        rows: one an image.
        boxes_P4: all positions of the mask (y0, x0, y1, x1).
        read: opens an image by its place in the data set.
        spec: what is asked.
        progress: how steps are shown.

    Raises:
        CnnvizError: an image can no longer be read, or one does not fit the memory.
    """
    found = list(classes(rows, spec.seed))
    places = rows.places_N.tolist()
    with progress("pasting", sum(len(entry.groups) for entry in found)) as advance:
        verdicts = judge(
            model,
            rows,
            found,
            boxes_P4,
            lambda row: read(places[row]),
            batch_size=spec.batch_size,
            seed=spec.seed,
            progress=advance,
        )
    relied = _reliances(rows, found)
    p_values = [None if v is None else v.p for of_groups in verdicts for v in of_groups]
    suspected = iter(suspicions([*p_values, *(own.p for own in relied)]))
    verdicts = [
        [_with(verdict, next(suspected)) for verdict in of_groups] for of_groups in verdicts
    ]
    relied = [replace(own, suspicion=next(suspected)) for own in relied]
    scaled_NRC = _scaled(rows.maps_NRC)
    draw = np.random.default_rng(spec.seed)
    spreads = [concentration(scaled_NRC[entry.members_N], draw) for entry in found]
    audited = []
    for number, (entry, of_groups) in enumerate(zip(found, verdicts, strict=True)):
        others = [s.area for i, s in enumerate(spreads) if i != number and s.area is not None]
        own = spreads[number]
        middle = float(np.median(others)) if others else None
        audited.append(
            Audited(
                entry,
                tuple(of_groups),
                relied[number],
                scaled_NRC[entry.members_N].mean(0),
                Concentration(own.area, own.interval, middle),
                typicality(scaled_NRC[entry.members_N]),
            )
        )
    return AuditResult(rows, tuple(audited), model.labels)


def _with(verdict: Verdict | None, suspicion: float | None) -> Verdict | None:
    return None if verdict is None else replace(verdict, suspicion=suspicion)


def _reliances(rows: Rows, found: Sequence[Class]) -> list[Reliance]:
    """Of each class, against the others."""
    means = [float(rows.reliance_N[entry.members_N].clip(0, 1).mean()) for entry in found]
    judged = []
    for number, (entry, own) in enumerate(zip(found, means, strict=True)):
        others = [mean for other, mean in enumerate(means) if other != number]
        heights_N = np.arcsin(np.sqrt(rows.reliance_N[entry.members_N].clip(0, 1)))
        by_chance = float(heights_N.std() / np.sqrt(len(heights_N)))
        enough = len(entry.members_N) >= SMALLEST
        redundancies = [1 - mean for mean in others]
        p = against_others(1 - own, redundancies, max(by_chance, TINY)) if enough else None
        judged.append(Reliance(own, float(np.median(others)) if others else None, p))
    return judged


def _scaled(maps_NRC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each map over its largest value, so that no image outweighs the others; zeros stay zeros."""
    maps_NRC = maps_NRC.astype(np.float64)
    largest_N = maps_NRC.max((1, 2), keepdims=True)
    return np.where(largest_N > 0, maps_NRC / np.where(largest_N > 0, largest_N, 1), 0.0)


def _areas(means_BRC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective area of each map; NaN where nothing is positive."""
    positive = means_BRC.clip(min=0).reshape(len(means_BRC), -1)
    squares = (positive**2).sum(1)
    safe = np.where(squares > 0, squares, 1)
    areas = positive.sum(1) ** 2 / safe / positive.shape[1]
    return np.where(squares > 0, areas, np.nan)


def concentration(maps_NRC: NDArray[np.float64], draw: np.random.Generator) -> Concentration:
    """How far the mean of some maps is spread, and how sure that is."""
    area = float(_areas(maps_NRC.mean(0)[None])[0])
    if np.isnan(area):
        return Concentration(None, None)
    count = len(maps_NRC)
    flat = maps_NRC.reshape(count, -1)
    weights_BN = draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    resampled = _areas((weights_BN @ flat).reshape(RESAMPLES, *maps_NRC.shape[1:]))
    return Concentration(area, percentile_interval(resampled))


def typicality(maps_NRC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each map with the mean of the others; NaN where one of them is constant."""
    count = len(maps_NRC)
    if count < 2:
        return np.full(count, np.nan)
    flat_NP = maps_NRC.reshape(count, -1)
    others_NP = (flat_NP.sum(0) - flat_NP) / (count - 1)
    own_NP = flat_NP - flat_NP.mean(1, keepdims=True)
    others_NP = others_NP - others_NP.mean(1, keepdims=True)
    lengths_N = np.linalg.norm(own_NP, axis=1) * np.linalg.norm(others_NP, axis=1)
    safe_N = np.where(lengths_N > 1e-12, lengths_N, 1)
    correlation_N = (own_NP * others_NP).sum(1) / safe_N
    return np.where(lengths_N > 1e-12, correlation_N, np.nan)
