"""The body of `cnnviz ablate`."""

from dataclasses import replace

from cnnviz.cli.commands.datasets import AblateCommand
from cnnviz.cli.console import Console
from cnnviz.cli.run import Run
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.output.record import to_json
from cnnviz.filters.ablation.ablation import Ablation
from cnnviz.filters.ablation.evaluation import OneAccuracy
from cnnviz.filters.ablation.figures import draw
from cnnviz.filters.ablation.measures import Measured, measure_of
from cnnviz.filters.ablation.options import STATE
from cnnviz.filters.ablation.results import AblationResult, Accuracy, write
from cnnviz.filters.ablation.sweep import FilterEffect, ranked

SHOWN = 8
_SWEEP_COLUMNS = ("filter", "points", "p", "lost", "gained", "hurts most", "by")
_MEASURED_COLUMNS = ("filter", "change", "hurts most", "by")


def ablate(given: AblateCommand) -> None:
    """Runs `cnnviz ablate`."""
    run = Run("ablate", given.output)
    console = run.console
    if given.min_accuracy is not None and not given.spec.filters:
        raise UsageError("--min-accuracy needs --filters, whose loss it judges")
    run.take_share(given.shard)
    images = run.data(given.data, given.limit, given.model.seed)
    images = images.share(run.shard) if run.shard else images
    model = run.load(given.model)
    if given.min_accuracy is not None and (measure := measure_of(model.head)):
        raise UsageError(f"--min-accuracy counts right answers; {model.name} has a {measure.name}")
    ablation = Ablation(model, images, given.spec)
    if run.shard:
        ablation.refuse_shares()
    folder = run.open(resume=given.resume)
    journal = ablation.journal(folder.path / STATE, resume=given.resume)
    with console.progress("ablating", len(images) * ablation.passes, "images") as advance:
        result = replace(ablation.run(advance, journal, run.spread), top=given.top)
    folder.list(STATE)
    write(result, folder)
    for name, figure in draw(result, model, images).items():
        folder.write_figure(name, figure)
    for note in result.notes:
        if not note.startswith("a sample of"):  # which opening the data set has noted
            console.note(f"note: {note}")
    _show(console, result)
    run.finish(to_json(result), model=model, seed=given.model.seed, errors=result.errors)
    after = result.accuracy and result.accuracy.after
    if given.min_accuracy is not None and after and after.top1 < given.min_accuracy:
        raise CheckFailed(
            f"accuracy without these filters is {after.top1:.3f}, below {given.min_accuracy:g}"
        )


def _show(console: Console, result: AblationResult) -> None:
    if result.measured is not None:
        _show_measured(console, result.measured)
    if result.accuracy is not None:
        _show_accuracy(console, result, result.accuracy)
    if result.confusions:
        pairs = [(c.label, c.predicted, c.before, c.after) for c in result.confusions[:SHOWN]]
        console.table("Confusions that grew most", ("label", "predicted", "before", "after"), pairs)
    if result.effects:
        rows = [_sweep_row(effect) for effect in ranked(result.effects)[: min(SHOWN, result.top)]]
        columns: tuple[str, ...] = _SWEEP_COLUMNS
        unit = "points of accuracy"
        if result.measured is not None:
            columns, unit = _MEASURED_COLUMNS, f"change of {result.measure}"
        matter = any(effect.change for effect in result.effects)
        what = "Most important filters" if matter else "Filters, none of which matters alone"
        console.table(f"{what} ({unit} when removed)", columns, rows)


def _show_measured(console: Console, measured: Measured) -> None:
    name = measured.measure.name
    values = (("before", measured.before), ("after", measured.after))
    rows = [(when, f"{value:.4g}") for when, value in values if value is not None]
    console.table(name.capitalize(), ("", name), rows)
    if measured.interval is not None:
        low, high = measured.interval
        console.sentence(
            f"change {measured.change:+.3g}; 95 % interval {low:+.3g} to {high:+.3g} "
            "(by resampling images)"
        )


def _show_accuracy(console: Console, result: AblationResult, accuracy: Accuracy) -> None:
    entries = (("before", accuracy.before), ("after", accuracy.after))
    rows = [_accuracy_row(when, entry) for when, entry in entries if entry is not None]
    console.table("Accuracy", ("", "top 1", "95 % interval", "top 5", "right", "images"), rows)
    if (flips := result.flips) and accuracy.mcnemar:
        console.sentence(
            f"{flips.count} predictions changed: {flips.right_to_wrong} right to wrong, "
            f"{flips.wrong_to_right} wrong to right, {flips.wrong_to_wrong} between wrong "
            f"ones; McNemar p = {accuracy.mcnemar.p_value:.2g}"
        )


def _accuracy_row(when: str, entry: OneAccuracy) -> tuple[object, ...]:
    low, high = entry.interval
    top5 = "" if entry.top5 is None else f"{entry.top5:.1%}"
    interval = f"{low:.1%} to {high:.1%}"
    return when, f"{entry.top1:.1%}", interval, top5, entry.correct, entry.count


def _sweep_row(effect: FilterEffect) -> tuple[object, ...]:
    name, hurt = f"{effect.layer}:{effect.filter}", effect.hurts_change
    hurts = (effect.hurts or "") if hurt else ""
    if effect.correct is None:
        return name, f"{effect.change:+.3g}", hurts, f"{hurt:+.3g}" if hurt else ""
    points, by = f"{effect.change * 100:+.1f}", f"{hurt * 100:+.1f}" if hurt else ""
    p_value = "" if effect.p_value is None else f"{effect.p_value:.2g}"
    return name, points, p_value, effect.lost, effect.gained, hurts, by
