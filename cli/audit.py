"""`cnnviz audit`: where does the network look over a whole data set, and is that a shortcut?"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.audit.choices import AuditSpec
from cnnviz.cli.commands.datasets import AuditCommand
from cnnviz.cli.image_run import ImageRun
from cnnviz.core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from cnnviz.audit.experiment import AuditResult
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.models.load import Model
    from cnnviz.occlusion.options import OcclusionSpec

SHOWN = 20


def audit(given: AuditCommand) -> None:
    """Runs `cnnviz audit`."""
    if given.min_inside is not None and given.expect is None:
        raise UsageError("--min-inside needs --expect, which says where the object is")
    run = ImageRun("audit", given.output, folders=False)
    from cnnviz.audit.experiment import audit as judge
    from cnnviz.audit.report import HEADER, TABLE, Asked, report, table
    from cnnviz.audit.rows import columns
    from cnnviz.cli.audit_study import AuditStudy
    from cnnviz.core.data.datasets import none_usable
    from cnnviz.core.data.outlines import read_outlines
    from cnnviz.occlusion.experiment import Occluder

    images = run.data(given.data, given.limit, given.model.seed)
    paths = run.take(images, given.shard)
    expectations = read_outlines(given.expect) if given.expect else None
    loaded = run.load(given.model)
    _check(loaded)
    occluder = Occluder(loaded, _occlusion(given.spec))
    if occluder.note:
        run.console.note(occluder.note)
    study = AuditStudy(loaded, occluder, given.spec, expectations, images, run.console.note)
    asked = {
        "options": given.spec,
        "--expect": given.expect,
        "--limit": given.limit,
        "data": images.fingerprint,
        "features": study.features.layer,
    }
    run.open_for(paths, loaded, asked, resume=given.resume)
    run.study("occluding", loaded, study, occluder.positions)
    if run.shard:
        run.finish_images(loaded, seed=given.model.seed, show="overview.png", results=None)
        return
    if not len(run.entries):
        raise none_usable(images, run.errors)
    grid = occluder.grids[0]
    rows = columns(run.entries)
    result = judge(
        loaded,
        rows,
        grid.boxes_P4.numpy(),
        lambda place: images.working(place, loaded.preprocess),
        given.spec,
        run.console.progress,
    )
    run.folder.write_csv(TABLE, HEADER, table(result))
    sheets = _draw(run, result, images, loaded, given.spec) if given.pictures else ()
    maps: Asked = {
        "mask": list(grid.mask),
        "stride": grid.stride,
        "fill": given.spec.fill,
        "score": occluder.score.value,
    }
    results = report(result, images, maps, given.spec.top, sheets)
    run.console.table("Classes", *_table(results))
    checks: list[Callable[[], None]] = []
    if given.max_suspicion is not None:
        checks.append(partial(_check_suspicion, results, given.max_suspicion))
    if given.min_inside is not None:
        checks.append(partial(_check_inside, results, given.min_inside))
    run.finish_images(
        loaded, seed=given.model.seed, show="overview.png", checks=checks, results=results
    )


def _check(model: "Model") -> None:
    """Refuses networks whose answer is no class."""
    from cnnviz.core.models.heads import Kind

    if model.unjudged:
        raise UsageError(f"audit wants one class a picture; {model.unjudged}")
    if model.head.kind is Kind.SIGMOID:
        raise UsageError(
            f"audit wants one class a picture; {model.name} has classes that stand on their own"
        )


def _occlusion(spec: AuditSpec) -> "OcclusionSpec":
    from cnnviz.occlusion.options import OcclusionSpec

    return OcclusionSpec(
        masks=(spec.mask,) if spec.mask else (),
        stride=spec.stride,
        fill=spec.fill,
        batch_size=spec.batch_size,
        seed=spec.seed,
    )


def _draw(
    run: ImageRun,
    result: "AuditResult",
    data: "ImageData",
    model: "Model",
    spec: AuditSpec,
) -> list[str]:
    """Writes a sheet for each class and the overview; the sheets' names."""
    from cnnviz.audit.figures import draw_class, draw_overview
    from cnnviz.audit.report import name_of

    places = result.rows.places_N.tolist()

    def read(rows: Sequence[int]) -> "dict[int, WorkingImage]":
        return {row: data.working(places[row], model.preprocess) for row in rows}

    names = _file_names([name_of(result, entry) for entry in result.classes])
    with run.console.progress("drawing", len(result.classes) + 1) as advance:
        for name, entry in zip(names, result.classes, strict=True):
            run.folder.write_figure(name, draw_class(result, entry, read, spec.top))
            advance(1)
        run.folder.write_figure("overview.png", draw_overview(result))
        advance(1)
    return [Path(name).with_suffix(f".{run.folder.figures}").name for name in names]


def _file_names(labels: Sequence[str]) -> list[str]:
    """`class_<name>.png` for each, safe and all different, also where case does not count."""
    from cnnviz.core.output.run_folder import safe_name

    names: list[str] = []
    taken: set[str] = set()
    for label in labels:
        base = name = f"class_{safe_name(label)}"
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def _table(results: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and rows of the terminal's table, the most suspicious classes first."""
    columns = ("class", "images", "right", "reliance", "spread", "groups", "suspicion")

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.0%}"

    ranked = sorted(results["classes"], key=lambda entry: -(entry["suspicion"] or -1))
    rows: list[tuple[object, ...]] = [
        (
            entry["class"],
            entry["images"],
            percent(entry["accuracy"]),
            f"{entry['reliance']['mean']:.2f}",
            percent(entry["concentration"]["area"]),
            len(entry["groups"]),
            "not judged" if entry["suspicion"] is None else f"{entry['suspicion']:.2f}",
        )
        for entry in ranked[:SHOWN]
    ]
    return columns, rows


def _check_suspicion(results: Mapping[str, Any], most: float) -> None:
    unjudged = [e["class"] for e in results["classes"] if e["suspicion"] is None]
    high = {
        f"class {entry['class']}": f"suspicion {entry['suspicion']:.3f}"
        for entry in results["classes"]
        if entry["suspicion"] is not None and entry["suspicion"] > most
    }
    if high:
        name = next(iter(high))
        raise CheckFailed(
            f"{len(high)} of {len(results['classes'])} classes are more suspicious than {most:g}; "
            f"the first is {name}: {high[name]}",
            high,
        )
    if len(unjudged) == len(results["classes"]):
        raise CheckFailed(
            "no class could be judged: groups of at least 4 classes are needed",
            {f"class {name}": "not judged" for name in unjudged},
        )


def _check_inside(results: Mapping[str, Any], least: float) -> None:
    inside = results["inside"]
    if inside is None or inside < least:
        share = "there is no positive evidence at all" if inside is None else f"it is {inside:.3f}"
        raise CheckFailed(
            f"less than {least:g} of the positive evidence lies on the objects: {share}",
            {"inside": share},
        )
