"""`cnnviz ablate`: switch filters off and measure what breaks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.datasets import AblateCommand
from cnnviz.cli.console import Console
from cnnviz.cli.run import Run
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.filters.ablation.choices import STATE

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.ablation.ablation import AblationResult

SHOWN = 8


def ablate(given: AblateCommand) -> None:
    """Runs `cnnviz ablate`."""
    run = Run("ablate", given.output)
    console = run.console
    if given.min_accuracy is not None and not given.spec.filters:
        raise UsageError("--min-accuracy needs --filters, whose loss it judges")
    from cnnviz.filters.ablation.ablation import Ablation
    from cnnviz.filters.ablation.choices import STATE
    from cnnviz.filters.ablation.measures import measure_of
    from cnnviz.filters.ablation.report import notes, report

    run.take_share(given.shard)
    images = run.data(given.data, given.limit, given.model.seed)
    images = images.share(run.shard) if run.shard else images
    loaded = run.load(given.model)
    if given.min_accuracy is not None and (measure := measure_of(loaded.head)):
        raise UsageError(f"--min-accuracy counts right answers; {loaded.name} has a {measure.name}")
    ablation = Ablation(loaded, images, given.spec)
    if run.shard:
        ablation.refuse_shares()
    folder = run.open(resume=given.resume)
    journal = ablation.journal(folder.path / STATE, resume=given.resume)
    with console.progress("ablating", len(images) * ablation.passes) as advance:
        result = ablation.run(advance, journal)
    folder.list(STATE)
    _write(folder, result, loaded, images, given.top)
    for note in notes(result, loaded, images):
        console.note(f"note: {note}")
    results = report(result, loaded, images, given.top)
    _tables(console, results)
    run.finish(results, model=loaded, seed=given.model.seed, errors=result.errors)
    after = results["accuracy"] and results["accuracy"]["after"]
    if given.min_accuracy is not None and after and (left := after["top1"]) < given.min_accuracy:
        raise CheckFailed(
            f"accuracy without these filters is {left:.3f}, below {given.min_accuracy:g}"
        )


def _write(
    folder: "RunFolder", result: "AblationResult", model: "Model", data: "ImageData", top: int
) -> None:
    from cnnviz.filters.ablation import report as rows
    from cnnviz.filters.ablation.figures import draw

    if rows.both(result) is not None:
        folder.write_csv(rows.FLIPS, rows.FLIPS_HEADER, rows.flip_rows(result, model, data))
    if result.sweep:
        folder.write_csv(rows.SWEEP, rows.SWEEP_HEADER, rows.sweep_rows(result, model))
    if result.curves:
        folder.write_csv(rows.CURVES, rows.CURVES_HEADER, rows.curve_rows(result))
    if result.counts is not None:
        folder.write_npz(rows.PREDICTIONS, **rows.prediction_arrays(result, model, data))
    for name, figure in draw(result, model, data, top).items():
        folder.write_figure(name, figure)


def _tables(console: Console, results: Mapping[str, Any]) -> None:
    if results["measured"]:
        _measured_table(console, results)
    else:
        _accuracy_table(console, results)
    if results["confusions"]:
        pairs = [
            (entry["label"], entry["predicted"], entry["before"], entry["after"])
            for entry in results["confusions"][:SHOWN]
        ]
        console.table("Confusions that grew most", ("label", "predicted", "before", "after"), pairs)
    if results["sweep"]:
        if results["measured"]:
            title = f"Filters whose loss costs most (change of {results['measure']})"
            columns: tuple[str, ...] = ("filter", "change", "hurts most", "by")
        else:
            title, columns = "Filters whose loss costs most (points of accuracy)", _SWEEP_COLUMNS
        console.table(title, columns, _sweep_rows(results))


def _measured_table(console: Console, results: Mapping[str, Any]) -> None:
    found, name = results["measured"], results["measure"]
    rows = [(when, f"{found[when]:.4g}") for when in ("before", "after") if found[when] is not None]
    console.table(name[:1].upper() + name[1:], ("", name), rows)
    if found["interval"]:
        low, high = found["interval"]
        console.line(
            f"a change of {found['change']:+.3g}; 95 % of resampled sets of these images say "
            f"{low:+.3g} to {high:+.3g}"
        )


def _accuracy_table(console: Console, results: Mapping[str, Any]) -> None:
    rows = [
        _accuracy_row(when, results["accuracy"][when])
        for when in ("before", "after")
        if results["accuracy"][when]
    ]
    console.table("Accuracy", ("", "top 1", "95 % interval", "top 5", "right", "images"), rows)
    if results["accuracy"]["after"]:
        pair, flips = results["accuracy"]["mcnemar"], results["flips"]
        console.line(
            f"{flips['count']} predictions changed: {flips['right_to_wrong']} right to wrong, "
            f"{flips['wrong_to_right']} wrong to right, {flips['wrong_to_wrong']} between wrong "
            f"ones; McNemar p = {pair['p_value']:.2g}"
        )


def _accuracy_row(when: str, entry: Mapping[str, Any]) -> tuple[object, ...]:
    low, high = entry["interval"]
    top5 = "" if entry["top5"] is None else f"{entry['top5']:.1%}"
    interval = f"{low:.1%} to {high:.1%}"
    return when, f"{entry['top1']:.1%}", interval, top5, entry["correct"], entry["count"]


_SWEEP_COLUMNS = ("filter", "points", "lost", "gained", "hurts most", "by")


def _sweep_rows(results: Mapping[str, Any]) -> list[tuple[object, ...]]:
    measured = results["measured"] is not None
    scale, form = (1, "+.3g") if measured else (100, "+.1f")
    return [
        (
            f"{entry['layer']}:{entry['filter']}",
            f"{entry['change'] * scale:{form}}",
            *(() if measured else (entry["lost"], entry["gained"])),
            entry["hurts"] or "",
            f"{entry['hurts_change'] * scale:{form}}",
        )
        for entry in results["sweep"]["top"][:SHOWN]
    ]
