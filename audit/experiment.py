"""Where a network looks over a whole data set, class by class, and whether that is a shortcut.

Everything follows from the rows, one per image, and from the patches with the largest drops; the
network runs again only to paste patches. An image belongs to the class it is predicted as, since
its map is evidence for that class.

Shapes: N images, R C rows and columns of the grid of positions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnnviz.audit import paste, residual
from cnnviz.audit.groups import ENOUGH, REST, Class, classes
from cnnviz.audit.hosts import Hosts
from cnnviz.audit.options import ALARM, AuditSpec
from cnnviz.audit.paste import Verdict
from cnnviz.audit.residual import Averages, Residual, average
from cnnviz.audit.results import (
    AuditResult,
    ClassAudit,
    Concentration,
    Group,
    Reliance,
    Shown,
    image_rows,
)
from cnnviz.audit.rows import Rows, columns
from cnnviz.audit.study import Auditor
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import Outlines
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import DataRecord
from cnnviz.core.statistics import (
    MINIMUM_OTHERS,
    against_others,
    percentile_interval,
    suspicions,
)

RESAMPLES = 500
PASTED, RELIANCE = "pasted", "reliance"
TINY = 0.02
"""Radians: smaller differences of the arc sine of the root do not count, however certain."""
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress bar of so many steps; its function takes the number of steps just done."""


def _silent(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _steps: None)


def audit(
    model: Model,
    data: ImageData,
    spec: AuditSpec | None = None,
    expectations: Outlines | None = None,
    *,
    progress: Progress = _silent,
) -> AuditResult:
    """Measures every image of a data set, and judges the classes.

    Args:
        model: borrowed.
        data: from `cnnviz.core.open_data`.
        spec: what to compute; None for the defaults.
        expectations: where the objects are.
        progress: opens progress bars.

    Raises:
        UsageError: the model, the classes of the data or the spec do not fit.
        CnnvizError: an image cannot be read.
    """
    auditor = Auditor(model, data, spec or AuditSpec(), expectations)
    with progress("occluding", len(data) * auditor.occluder.positions) as advance:
        rows = [
            auditor.row(example.path, data.working(place, model.preprocess), advance)
            for place, example in enumerate(data.examples)
        ]
    return judge_rows(auditor, columns(rows), progress)


def judge_rows(auditor: Auditor, rows: Rows, progress: Progress = _silent) -> AuditResult:
    """Judges a data set whose images were measured.

    Raises:
        CnnvizError: an image can no longer be read, or one does not fit the memory.
    """
    listed = list(classes(rows, auditor.spec.seed))
    tests = _test(auditor, rows, listed, progress)
    group_N, typicality_N = _of_images(rows, listed)
    audited = tuple(_classes(auditor, rows, listed, tests, typicality_N))
    return AuditResult(
        mask=auditor.occluder.grids[0].mask,
        stride=auditor.occluder.grids[0].stride,
        fill=auditor.spec.fill,
        score=auditor.occluder.score.value,
        images=len(rows),
        data=DataRecord.of(auditor.data, len(rows)),
        labelled=int(rows.known_N.sum()),
        accuracy=_mean(rows.right_N[rows.known_N]),
        inside=_mean(rows.inside_N),
        hits=_mean(rows.hit_N),
        labels_not_matched=auditor.labels_not_matched,
        suspicious=tuple(entry.class_ for entry in audited if (entry.suspicion or 0) > ALARM),
        verdict=verdict(audited),
        classes=audited,
        rows=rows,
        table=tuple(image_rows(rows, auditor.model.labels, group_N, typicality_N)),
    )


def verdict(audited: Sequence[ClassAudit]) -> str:
    """The result in one sentence."""
    judged = [entry for entry in audited if entry.suspicion is not None]
    named = [entry.class_ for entry in judged if (entry.suspicion or 0) > ALARM]
    if not judged:
        reasons = sorted({str(entry.not_judged).partition(":")[0] for entry in audited})
        return f"no class could be judged: {', '.join(reasons)}"
    if not named:
        text = f"no class above the alarm level {ALARM:g}"
    else:
        of_them = "1 class" if len(named) == 1 else f"{len(named)} classes"
        text = f"{of_them} above the alarm level {ALARM:g}: {', '.join(named)}"
    silent = len(audited) - len(judged)
    return text + (f" ({silent} of {len(audited)} not judged)" if silent else "")


@dataclass(frozen=True)
class _Tests:
    """The results of all tests, in the order of the classes.

    `decisive` has the test with the smallest p-value and that p-value, times the number of the
    class's tests; None for classes that are not judged.
    """

    groups: tuple[tuple[Verdict, ...], ...]
    reliances: tuple[Reliance, ...]
    residuals: tuple[Residual, ...]
    averages: Averages
    decisive: tuple[tuple[str, float] | None, ...]
    suspicions: tuple[float | None, ...]


def _test(auditor: Auditor, rows: Rows, listed: Sequence[Class], progress: Progress) -> _Tests:
    """Runs the tests; the p-values of all classes are corrected together."""
    model, data, spec = auditor.model, auditor.data, auditor.spec
    places = rows.places_N.tolist()

    def read(row: int) -> WorkingImage:
        return data.working(places[row], model.preprocess)

    hosts = Hosts(model, rows, read, spec.batch_size, spec.seed)
    with progress("pasting", sum(len(entry.groups) for entry in listed)) as advance:
        boxes_P4 = auditor.occluder.grids[0].boxes_P4.numpy()
        verdicts = paste.judge(
            hosts, rows, listed, boxes_P4, read, seed=spec.seed, progress=advance
        )
    with progress("averaging", len(rows) + len(listed)) as advance:
        averages = average(listed, read, spec.seed, advance)
        residuals = residual.judge(hosts, averages, listed, seed=spec.seed, progress=advance)
    reliances = _reliances(rows, listed)
    verdict_of = iter(verdicts)
    groups = [tuple(next(verdict_of) for _ in entry.groups) for entry in listed]
    decisive = [
        _decisive(*tests) if entry.enough else None
        for entry, *tests in zip(listed, groups, reliances, residuals, strict=True)
    ]
    return _Tests(
        tuple(groups),
        tuple(reliances),
        tuple(residuals),
        averages,
        tuple(decisive),
        tuple(suspicions([found and found[1] for found in decisive])),
    )


def _decisive(
    verdicts: Sequence[Verdict], reliance: Reliance, residual: Residual
) -> tuple[str, float] | None:
    """The test that speaks most against a class, and its p-value, corrected (Bonferroni).

    The three ways to look count the same, and so do the tests of each.
    """
    kinds = [(PASTED, verdict.p) for verdict in verdicts]
    ways = [kinds, [(RELIANCE, reliance.p)], [(n, one.p) for n, one in residual.kinds.items()]]
    known = [[(name, p) for name, p in way if p is not None] for way in ways]
    known = [way for way in known if way]
    found = [(name, len(known) * len(way) * p) for way in known for name, p in way]
    name, p = min(found, key=lambda one: one[1], default=("", 1.0))
    return (name, min(1.0, p)) if found else None


def _of_images(
    rows: Rows, listed: Sequence[Class]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The group of each image, and its typicality; NaN where it has none."""
    scaled_NRC = _scaled(rows.maps_NRC)
    group_N, typicality_N = np.full((2, len(rows)), np.nan)
    for entry in listed:
        typicality_N[entry.members_N] = typicality(scaled_NRC[entry.members_N])
        for number, members in enumerate(entry.groups):
            group_N[members] = number
    return group_N, typicality_N


def _classes(
    auditor: Auditor,
    rows: Rows,
    listed: Sequence[Class],
    tests: _Tests,
    typicality_N: NDArray[np.float64],
) -> Iterator[ClassAudit]:
    """The record of each class."""
    lists = _Lists(rows, auditor.model.labels, typicality_N, auditor.spec.top)
    scaled_NRC = _scaled(rows.maps_NRC)
    spreads = _spreads(scaled_NRC, listed, auditor.spec.seed)
    for number, (entry, spread) in enumerate(zip(listed, spreads, strict=True)):
        yield _class(lists, entry, number, tests, spread, scaled_NRC[entry.members_N].mean(0))


def _mean(values: NDArray[np.bool_] | NDArray[np.float64]) -> float | None:
    """The mean of the known values; None where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


class _Lists:
    """Makes the lists of images that are worth a look."""

    def __init__(
        self,
        rows: Rows,
        labels: tuple[str, ...],
        typicality_N: NDArray[np.float64],
        top: int,
    ) -> None:
        self.rows, self.labels, self.top = rows, labels, top
        self._typicality_N = typicality_N

    def shown(self, places: NDArray[np.int64], *, typicality: bool = False) -> tuple[Shown, ...]:
        """The first images at these places in the rows."""
        return tuple(self._one(row, typicality) for row in places[: self.top].tolist())

    def _one(self, row: int, typicality: bool) -> Shown:
        rows, inside = self.rows, float(self.rows.inside_N[row])
        y0, x0, y1, x1 = rows.boxes_N4[row].tolist()
        return Shown(
            image=rows.images[row],
            box=(y0, x0, y1, x1),
            label=self.labels[rows.labels_N[row]] if rows.known_N[row] else None,
            predicted=self.labels[rows.predicted_N[row]],
            probability=float(rows.probability_N[row]),
            typicality=float(self._typicality_N[row]) if typicality else None,
            inside=None if np.isnan(inside) else inside,
            row=row,
        )

    def elsewhere(self, members_N: NDArray[np.int64]) -> tuple[Shown, ...]:
        """Images whose map is least like those of their class."""
        known = members_N[~np.isnan(self._typicality_N[members_N])]
        order = np.argsort(self._typicality_N[known], kind="stable")
        return self.shown(known[order], typicality=True)

    def misled(self, members_N: NDArray[np.int64]) -> tuple[Shown, ...]:
        """Images of another class, the most confident predictions first."""
        rows = self.rows
        wrong = members_N[rows.known_N[members_N] & ~rows.right_N[members_N]]
        return self.shown(wrong[np.argsort(-rows.probability_N[wrong], kind="stable")])

    def wrong_reason(self, members_N: NDArray[np.int64]) -> tuple[Shown, ...]:
        """Right images whose map peaks off the object, least evidence inside first."""
        rows = self.rows
        off = members_N[rows.right_N[members_N] & (rows.hit_N[members_N] == 0)]
        return self.shown(off[np.argsort(rows.inside_N[off], kind="stable")])


def _group(lists: _Lists, verdict: Verdict, entry: Class, members: NDArray[np.int64]) -> Group:
    rows = lists.rows
    labelled = members[rows.known_N[members]]
    return Group(
        images=len(members),
        share=len(members) / len(entry.members_N),
        mean_drop=float(rows.max_drop_N[members].mean()),
        accuracy=_mean(rows.right_N[labelled]),
        accuracy_covered=_mean(rows.covered_N[labelled] == rows.labels_N[labelled]),
        typical=lists.shown(members),
        members=members,
        **vars(verdict),
    )


def _class(
    lists: _Lists,
    entry: Class,
    number: int,
    tests: _Tests,
    spread: Concentration,
    mean_RC: NDArray[np.float64],
) -> ClassAudit:
    rows, members_N = lists.rows, entry.members_N
    labelled = members_N[rows.known_N[members_N]]
    of_it = rows.labels_N == entry.index if entry.index is not None else np.zeros(len(rows), bool)
    decisive = tests.decisive[number]
    return ClassAudit(
        class_=REST if entry.index is None else lists.labels[entry.index],
        index=entry.index,
        images=len(members_N),
        accuracy=_mean(rows.right_N[labelled]),
        recall=_mean(rows.right_N[of_it]),
        reliance=tests.reliances[number],
        inside=_mean(rows.inside_N[members_N]),
        concentration=spread,
        residual=tests.residuals[number],
        suspicion=tests.suspicions[number],
        p=decisive and decisive[1],
        decisive=decisive and decisive[0],
        not_judged=None if decisive else _reason(entry),
        groups=tuple(
            _group(lists, verdict, entry, members)
            for verdict, members in zip(tests.groups[number], entry.groups, strict=True)
        ),
        elsewhere=lists.elsewhere(members_N),
        misled=lists.misled(members_N),
        wrong_reason=lists.wrong_reason(members_N),
        members_N=members_N,
        mean_RC=mean_RC,
        image_CYX=tests.averages.means[number],
        residual_CYX=tests.averages.residual(number),
    )


def _reason(entry: Class) -> str:
    """Why a class without suspicion was not judged."""
    if entry.enough:
        return f"too few other classes: {MINIMUM_OTHERS} with enough images are needed"
    few = "of each" if entry.index is None else str(len(entry.members_N))
    return f"too few images to judge: {few}, at least {ENOUGH} are needed"


def _reliances(rows: Rows, listed: Sequence[Class]) -> list[Reliance]:
    """The reliance of each class, compared with the others."""
    means = [float(rows.reliance_N[entry.members_N].clip(0, 1).mean()) for entry in listed]
    judged = []
    for number, (entry, mean) in enumerate(zip(listed, means, strict=True)):
        others = [other for i, other in enumerate(means) if i != number]
        heights_N = np.arcsin(np.sqrt(rows.reliance_N[entry.members_N].clip(0, 1)))
        by_chance = float(heights_N.std() / np.sqrt(len(heights_N)))
        redundancies = [1 - other for other in others]
        p = against_others(1 - mean, redundancies, max(by_chance, TINY)) if entry.enough else None
        judged.append(Reliance(mean, float(np.median(others)) if others else None, p))
    return judged


def _spreads(
    scaled_NRC: NDArray[np.float64], listed: Sequence[Class], seed: int
) -> Iterator[Concentration]:
    """The concentration of each class, with the median of the others."""
    draw = np.random.default_rng(seed)
    spreads = [concentration(scaled_NRC[entry.members_N], draw) for entry in listed]
    for number, spread in enumerate(spreads):
        others = [s.area for i, s in enumerate(spreads) if i != number and s.area is not None]
        yield replace(spread, others=float(np.median(others)) if others else None)


def _scaled(maps_NRC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Divides each map by its largest value, so that no image outweighs the others."""
    maps_NRC = maps_NRC.astype(np.float64)
    largest_N = maps_NRC.max((1, 2), keepdims=True)
    return np.where(largest_N > 0, maps_NRC / np.where(largest_N > 0, largest_N, 1), 0.0)


def _areas(means_BRC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective area of each map (see `Concentration`); NaN where nothing is positive."""
    positive = means_BRC.clip(min=0).reshape(len(means_BRC), -1)
    squares = (positive**2).sum(1)
    safe = np.where(squares > 0, squares, 1)
    areas = positive.sum(1) ** 2 / safe / positive.shape[1]
    return np.where(squares > 0, areas, np.nan)


def concentration(maps_NRC: NDArray[np.float64], draw: np.random.Generator) -> Concentration:
    """The effective area of the mean of some maps, and its interval."""
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
    self_NP = flat_NP - flat_NP.mean(1, keepdims=True)
    others_NP = others_NP - others_NP.mean(1, keepdims=True)
    lengths_N = np.linalg.norm(self_NP, axis=1) * np.linalg.norm(others_NP, axis=1)
    safe_N = np.where(lengths_N > 1e-12, lengths_N, 1)
    correlation_N = (self_NP * others_NP).sum(1) / safe_N
    return np.where(lengths_N > 1e-12, correlation_N, np.nan)
