"""`cnnviz audit`: where does the network look over a whole data set, and is that a shortcut?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cnnviz.audit.experiment import judge_rows
from cnnviz.audit.figures import draw_class, draw_overview
from cnnviz.audit.results import TABLE, AuditResult, ImageRow
from cnnviz.audit.rows import Row, columns
from cnnviz.audit.study import Auditor
from cnnviz.cli.commands.datasets import AuditCommand
from cnnviz.cli.per_image import ImageRun, ImageStudy
from cnnviz.core.data.datasets import none_usable
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import read_outlines
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.files import safe_name
from cnnviz.core.output.record import table, to_json

SHOWN = 20
COLUMNS = ("class", "suspicion", "images", "precision", "reliance", "spread", "groups", "residual")


class _Study(ImageStudy[Row, Row]):
    """Measures each image; it writes no files."""

    kind, work = Row, "occluding"

    def __init__(self, auditor: Auditor) -> None:
        self._auditor, self.steps = auditor, auditor.occluder.positions

    def one(self, image: WorkingImage, path: str, advance: Callable[[int], None]) -> Row:
        return self._auditor.row(path, image, advance)

    def entry(self, result: Row) -> Row:
        return result

    def check(self, entry: Row) -> None:
        self._auditor.check(entry)


def audit(given: AuditCommand) -> None:
    """Runs `cnnviz audit`."""
    if given.min_inside is not None and given.expect is None:
        raise UsageError("--min-inside needs --expect, which tells where the object is")
    run, seed = ImageRun("audit", given.output, folders=False), given.model.seed
    images = run.data(given.data, given.limit, seed)
    paths = run.take(images, given.shard)
    expectations = read_outlines(given.expect) if given.expect else None
    model = run.load(given.model)
    auditor = Auditor(model, images, given.spec, expectations, run.console.note)
    depends = {
        "options": given.spec,
        "--expect": given.expect,
        "--limit": given.limit,
        "data": images.fingerprint,
        "features": auditor.layer,
    }
    study = _Study(auditor)
    run.open_for(paths, model, depends, study, resume=given.resume)
    run.go_through(study, model)
    if run.shard:
        run.finish_images(model, seed=seed, show="overview.png", results=None)
        return
    if not len(run.entries):
        raise none_usable(images, run.errors)
    result = judge_rows(auditor, columns(run.entries), run.console.progress)
    run.folder.write_csv(TABLE, *table(ImageRow, result.table))
    if given.pictures:
        result = _draw(run, result, auditor)
    run.console.table("Classes", COLUMNS, _rows(result))
    run.console.sentence(result.verdict[0].upper() + result.verdict[1:])
    checks: list[Callable[[], None]] = []
    if given.max_suspicion is not None:
        checks.append(partial(_check_suspicion, result, given.max_suspicion))
    if given.min_inside is not None:
        checks.append(partial(_check_inside, result, given.min_inside))
    run.finish_images(model, seed=seed, show="overview.png", checks=checks, results=to_json(result))


def _draw(run: ImageRun, result: AuditResult, auditor: Auditor) -> AuditResult:
    """Writes the sheets of the classes and the overview; the result with the sheets' names."""
    data, preprocess = auditor.data, auditor.model.preprocess
    places = result.rows.places_N.tolist()

    def read(rows: Sequence[int]) -> dict[int, WorkingImage]:
        return {row: data.working(places[row], preprocess) for row in rows}

    names = _file_names([entry.class_ for entry in result.classes])
    with run.console.progress("drawing", len(result.classes) + 1) as advance:
        run.folder.write_figure("overview.png", draw_overview(result))
        advance(1)
        for entry in result.ranked:
            name = names[result.classes.index(entry)]
            run.folder.write_figure(name, draw_class(entry, read))
            advance(1)
    sheets = [Path(name).with_suffix(f".{run.folder.figures}").name for name in names]
    drawn = zip(result.classes, sheets, strict=True)
    return replace(result, classes=tuple(replace(entry, sheet=sheet) for entry, sheet in drawn))


def _file_names(labels: Sequence[str]) -> list[str]:
    """`class_<name>.png` for each, safe and all different, also if case is ignored."""
    names: list[str] = []
    taken: set[str] = set()
    for label in labels:
        base = name = f"class_{safe_name(label).replace(' ', '_')}"
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def _rows(result: AuditResult) -> list[tuple[object, ...]]:
    """Rows of the terminal's table, the most suspicious classes first."""

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.0%}"

    return [
        (
            entry.class_,
            "not judged" if entry.suspicion is None else f"{entry.suspicion:.2f}",
            entry.images,
            percent(entry.accuracy),
            f"{entry.reliance.mean:.2f}",
            percent(entry.concentration.area),
            len(entry.groups),
            percent(entry.residual.became),
        )
        for entry in result.ranked[:SHOWN]
    ]


def _check_suspicion(result: AuditResult, maximum: float) -> None:
    known = {e.class_: e.suspicion for e in result.classes if e.suspicion is not None}
    high = {
        f"class {name}": f"suspicion {suspicion:.3f}"
        for name, suspicion in known.items()
        if suspicion > maximum
    }
    if high:
        name = next(iter(high))
        raise CheckFailed(
            f"{len(high)} of {len(result.classes)} classes have a suspicion above {maximum:g}; "
            f"the first is {name}: {high[name]}",
            high,
        )
    if not known:
        raise CheckFailed(
            result.verdict,
            {
                f"class {entry.class_}": f"not judged: {entry.not_judged}"
                for entry in result.classes
            },
        )


def _check_inside(result: AuditResult, minimum: float) -> None:
    if result.inside is None or result.inside < minimum:
        share = "no positive evidence" if result.inside is None else f"{result.inside:.3f}"
        raise CheckFailed(
            f"less than {minimum:g} of the positive evidence is on the objects: {share}",
            {"inside": share},
        )
