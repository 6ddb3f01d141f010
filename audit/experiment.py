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
from cnnviz.audit.residual import Pictures, Residual, average
from cnnviz.audit.results import (
    TESTS,
    AuditResult,
    ClassAudit,
    Concentration,
    Group,
    Reliance,
    Shown,
    image_rows,
)
from cnnviz.audit.rows import Floats, Rows, Whole, columns
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
    """Measures every image of a data set (`cnnviz.core.open_data`), and judges the classes.

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
    scaled_NRC = _scaled(rows.maps_NRC)
    group_N, typicality_N = np.full((2, len(rows)), np.nan)
    for entry in listed:
        typicality_N[entry.members_N] = typicality(scaled_NRC[entry.members_N])
        for number, members in enumerate(entry.groups):
            group_N[members] = number
    lists = _Lists(rows, auditor.model.labels, typicality_N, auditor.spec.top)
    suspected = suspicions([test.decisive and test.decisive[1] for test in tests])
    spreads = _spreads(scaled_NRC, listed, auditor.spec.seed)
    audited = tuple(
        _class(lists, *parts, scaled_NRC[parts[0].entry.members_N].mean(0))
        for parts in zip(tests, suspected, spreads, strict=True)
    )
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
    above = [entry for entry in judged if (entry.suspicion or 0) > ALARM]
    named = [f"{entry.class_} ({TESTS[entry.decisive or 'pasted']})" for entry in above]
    if not judged:
        return f"no class could be judged: {_reasons(audited)}"
    if not named:
        text = f"no class above the alarm level {ALARM:g}"
    else:
        of_them = "1 class" if len(named) == 1 else f"{len(named)} classes"
        text = f"{of_them} above the alarm level {ALARM:g}: {', '.join(named)}"
    silent = [entry for entry in audited if entry.suspicion is None]
    if silent:
        text += f" ({len(silent)} of {len(audited)} not judged: {_reasons(silent)})"
    return text


def _reasons(silent: Sequence[ClassAudit]) -> str:
    """Why classes were not judged, without their numbers."""
    return ", ".join(sorted({str(entry.not_judged).partition(":")[0] for entry in silent}))


@dataclass(frozen=True, eq=False)
class _Tested:
    """A class with the results of its tests, its mean image and its mean residual.

    `decisive` is as `_decisive` returns it; None if the class is not judged. `untold` is why not
    even a perfect shortcut's patches raise an alarm; it is judged if another test raises one.
    """

    entry: Class
    groups: tuple[Verdict, ...]
    reliance: Reliance
    residual: Residual
    image_CYX: Pictures
    residual_CYX: Pictures
    decisive: tuple[str, float] | None
    untold: str | None


def _test(
    auditor: Auditor, rows: Rows, listed: Sequence[Class], progress: Progress
) -> list[_Tested]:
    """Runs the tests."""
    model, data, spec = auditor.model, auditor.data, auditor.spec
    places = rows.places_N.tolist()

    def read(row: int) -> WorkingImage:
        return data.working(places[row], model.preprocess)

    hosts = Hosts(model, rows, read, spec.batch_size, spec.seed)
    with progress("pasting", sum(len(entry.groups) for entry in listed)) as advance:
        boxes_P4 = auditor.occluder.grids[0].boxes_P4.numpy()
        verdicts = iter(paste.judge(hosts, rows, listed, boxes_P4, read, spec.seed, advance))
    with progress("averaging", len(rows) + len(listed)) as advance:
        averages = average(listed, read, spec.seed, advance)
        residuals = residual.judge(hosts, averages, listed, spec.seed, advance)
    tested = []
    judged = sum(entry.enough for entry in listed)
    pairs = zip(listed, _reliances(rows, listed), residuals, strict=True)
    for number, (entry, reliance, added) in enumerate(pairs):
        groups = tuple(next(verdicts) for _ in entry.groups)
        decisive = _decisive(groups, reliance, added) if entry.enough else None
        pictures = averages.means[number], averages.residual(number)
        others = sum(len(other.groups) for other in listed) - len(groups)
        untold = paste.too_few_others(len(groups), others, judged) if decisive else None
        tested.append(_Tested(entry, groups, reliance, added, *pictures, decisive, untold))
    return tested


def _decisive(
    verdicts: Sequence[Verdict], reliance: Reliance, residual: Residual
) -> tuple[str, float] | None:
    """The test that speaks most against a class, and its p-value, corrected (Bonferroni).

    The three ways to look count the same, and so do the tests of each.
    """
    kinds = [("pasted", verdict.p) for verdict in verdicts]
    ways = [kinds, [("reliance", reliance.p)], [(n, one.p) for n, one in residual.kinds.items()]]
    known = [[(name, p) for name, p in way if p is not None] for way in ways]
    known = [way for way in known if way]
    found = [(name, len(known) * len(way) * p) for way in known for name, p in way]
    name, p = min(found, key=lambda one: one[1], default=("", 1.0))
    return (name, min(1.0, p)) if found else None


def _mean(values: NDArray[np.bool_] | Floats) -> float | None:
    """The mean of the known values; None where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


class _Lists:
    """Makes the lists of images that are worth a look."""

    def __init__(self, rows: Rows, labels: tuple[str, ...], typicality_N: Floats, top: int) -> None:
        self.rows, self.labels, self.typicality_N, self.top = rows, labels, typicality_N, top

    def shown(self, places: Whole, *, typicality: bool = False) -> tuple[Shown, ...]:
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
            typicality=float(self.typicality_N[row]) if typicality else None,
            inside=None if np.isnan(inside) else inside,
            row=row,
        )

    def of(self, members_N: Whole) -> Iterator[tuple[Shown, ...]]:
        """The lists of a class: `elsewhere`, `misled` and `wrong_reason` of `ClassAudit`."""
        rows, right_N = self.rows, self.rows.right_N[members_N]

        def first(chosen_N: NDArray[np.bool_], by_N: Floats, **more: bool) -> tuple[Shown, ...]:
            chosen = members_N[chosen_N]
            return self.shown(chosen[np.argsort(by_N[chosen], kind="stable")], **more)

        elsewhere_N = ~np.isnan(self.typicality_N[members_N])
        yield first(elsewhere_N, self.typicality_N, typicality=True)
        yield first(rows.known_N[members_N] & ~right_N, -rows.probability_N)
        yield first(right_N & (rows.hit_N[members_N] == 0), rows.inside_N)

    def group(self, verdict: Verdict, entry: Class, members: Whole) -> Group:
        """The record of a group."""
        rows = self.rows
        labelled = members[rows.known_N[members]]
        return Group(
            images=len(members),
            share=len(members) / len(entry.members_N),
            mean_drop=float(rows.max_drop_N[members].mean()),
            accuracy=_mean(rows.right_N[labelled]),
            accuracy_covered=_mean(rows.covered_N[labelled] == rows.labels_N[labelled]),
            typical=self.shown(members),
            members=members,
            **vars(verdict),
        )


def _class(
    lists: _Lists,
    tested: _Tested,
    suspicion: float | None,
    spread: Concentration,
    mean_RC: Floats,
) -> ClassAudit:
    rows, entry, members_N = lists.rows, tested.entry, tested.entry.members_N
    labelled = members_N[rows.known_N[members_N]]
    of_it = rows.labels_N == entry.index if entry.index is not None else np.zeros(len(rows), bool)
    decisive, p = tested.decisive or (None, None)
    untold = None if decisive else _reason(entry)
    if tested.untold and (suspicion or 0) <= ALARM:
        decisive = p = suspicion = None
        untold = tested.untold
    elsewhere, misled, wrong_reason = lists.of(members_N)
    return ClassAudit(
        class_=REST if entry.index is None else lists.labels[entry.index],
        index=entry.index,
        images=len(members_N),
        accuracy=_mean(rows.right_N[labelled]),
        recall=_mean(rows.right_N[of_it]),
        reliance=tested.reliance,
        inside=_mean(rows.inside_N[members_N]),
        concentration=spread,
        residual=tested.residual,
        suspicion=suspicion,
        p=p,
        decisive=decisive,
        not_judged=untold,
        groups=tuple(map(lists.group, tested.groups, (entry,) * len(entry.groups), entry.groups)),
        elsewhere=elsewhere,
        misled=misled,
        wrong_reason=wrong_reason,
        members_N=members_N,
        mean_RC=mean_RC,
        image_CYX=tested.image_CYX,
        residual_CYX=tested.residual_CYX,
    )


def _reason(entry: Class) -> str:
    """Why a class without suspicion was not judged."""
    if entry.enough:
        return f"too few other classes ({MINIMUM_OTHERS} with enough images are needed)"
    few = "" if entry.index is None else f": {len(entry.members_N)}"
    return f"too few images to judge (a class needs {ENOUGH}){few}"


def _reliances(rows: Rows, listed: Sequence[Class]) -> list[Reliance]:
    """The reliance of each class, compared with the others."""
    shares = [rows.reliance_N[entry.members_N].clip(0, 1) for entry in listed]
    judged = []
    for number, (entry, share_N) in enumerate(zip(listed, shares, strict=True)):
        others = [float(other_N.mean()) for i, other_N in enumerate(shares) if i != number]
        by_chance = float(np.arcsin(np.sqrt(share_N)).std() / np.sqrt(len(share_N)))
        mean, lost = float(share_N.mean()), [1 - other for other in others]
        p = against_others(1 - mean, lost, max(by_chance, TINY)) if entry.enough else None
        judged.append(Reliance(mean, float(np.median(others)) if others else None, p))
    return judged


def _spreads(scaled_NRC: Floats, listed: Sequence[Class], seed: int) -> Iterator[Concentration]:
    """The concentration of each class, with the median of the others."""
    draw = np.random.default_rng(seed)
    spreads = [concentration(scaled_NRC[entry.members_N], draw) for entry in listed]
    for number, spread in enumerate(spreads):
        others = [s.area for i, s in enumerate(spreads) if i != number and s.area is not None]
        yield replace(spread, others=float(np.median(others)) if others else None)


def _scaled(maps_NRC: NDArray[np.float32]) -> Floats:
    """Divides each map by its largest value, so that no image outweighs the others."""
    maps_NRC = maps_NRC.astype(np.float64)
    largest_N = maps_NRC.max((1, 2), keepdims=True)
    zero_NRC = np.zeros_like(maps_NRC)
    return np.asarray(np.divide(maps_NRC, largest_N, out=zero_NRC, where=largest_N > 0))


def _areas(means_BRC: Floats) -> Floats:
    """Effective area of each map (see `Concentration`); NaN where nothing is positive."""
    positive = means_BRC.clip(min=0).reshape(len(means_BRC), -1)
    sums, squares = positive.sum(1), (positive**2).sum(1)
    areas = np.divide(sums**2, squares, out=np.full_like(sums, np.nan), where=squares > 0)
    return np.asarray(areas / positive.shape[1])


def concentration(maps_NRC: Floats, draw: np.random.Generator) -> Concentration:
    """The effective area of the mean of some maps, and its interval."""
    area = float(_areas(maps_NRC.mean(0)[None])[0])
    if np.isnan(area):
        return Concentration(None, None)
    count = len(maps_NRC)
    flat = maps_NRC.reshape(count, -1)
    weights_BN = draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
    resampled = _areas((weights_BN @ flat).reshape(RESAMPLES, *maps_NRC.shape[1:]))
    return Concentration(area, percentile_interval(resampled))


def typicality(maps_NRC: Floats) -> Floats:
    """Correlation of each map with the mean of the others; NaN where one of them is constant."""
    count = len(maps_NRC)
    if count < 2:
        return np.full(count, np.nan)
    flat_NP = maps_NRC.reshape(count, -1)
    others_NP = (flat_NP.sum(0) - flat_NP) / (count - 1)
    self_NP = flat_NP - flat_NP.mean(1, keepdims=True)
    others_NP = others_NP - others_NP.mean(1, keepdims=True)
    lengths_N = np.linalg.norm(self_NP, axis=1) * np.linalg.norm(others_NP, axis=1)
    shared_N, unknown_N = (self_NP * others_NP).sum(1), np.full(count, np.nan)
    return np.asarray(np.divide(shared_N, lengths_N, out=unknown_N, where=lengths_N > 1e-12))
