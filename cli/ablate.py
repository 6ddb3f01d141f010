"""`cnnviz ablate`: switch filters off and measure what breaks."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnviz.cli.console import Console
from cnnviz.cli.options import ModelOptions, OutputOptions
from cnnviz.cli.run import Run
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.filters.ablation.choices import Mode

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.ablation.ablation import AblationResult

MEBIBYTE = 1 << 20
SHOWN = 8


def ablate(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Labelled images: a folder with one folder per class, a CSV or JSONL manifest "
            "(path,label), or cifar10:DIR, mnist:DIR, fashionmnist:DIR.",
        ),
    ],
    model: ModelOptions,
    output: OutputOptions,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            help="Filters to switch off together: LAYER:3,7-12, LAYER:all, LAYER:all-but:3, "
            "LAYER:random:10, or random:10 from all convolutions; LAYER may be names joined by + "
            "and may hold *. Repeatable."
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(help="What stands in for a filter's output: zero, or its mean over the data."),
    ] = Mode.ZERO,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Switch off each filter of this layer alone and rank them; all: of every "
            "convolution. Repeatable."
        ),
    ] = None,
    cumulative: Annotated[
        bool,
        typer.Option(
            "--cumulative",
            help="With --sweep: accuracy while the layer's filters are removed one after the "
            "other, in several orders.",
        ),
    ] = False,
    top: Annotated[int, typer.Option(help="Filters of the sweep to show; sweep.csv has all.")] = 20,
    limit: Annotated[
        int | None, typer.Option(help="At most so many images: a seeded, class-balanced sample.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            help="MiB for replaying the layers behind an ablation. Default: 256; on a "
            "GPU up to 8192."
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Exit with status 3 if the accuracy left after --filters is below this."),
    ] = None,
) -> None:
    """Switch filters off: what can the network no longer do?

    cnnviz ablate photos/ --filters layer4.1.conv2:3,7-12 --sweep layer4.1.conv2

    Writes accuracy per class, confusions and flipped images, and the rank of each swept filter.
    """
    run = Run("ablate", output)
    console = run.console
    _check(top, memory, min_accuracy, filters)
    from cnnviz.filters.ablation.ablation import Ablation, AblationSpec
    from cnnviz.filters.ablation.report import notes, report

    spec = AblationSpec(
        filters=tuple(text for given in filters or () for text in given.split()),
        mode=mode,
        sweep=tuple(text for given in sweep or () for text in given.split()),
        cumulative=cumulative,
        seed=model.seed,
        batch_size=model.batch(),
        memory=None if memory is None else memory * MEBIBYTE,
    )
    images = run.data(data, limit, model.seed)
    loaded = run.load(model)
    ablation = Ablation(loaded, images, spec)
    folder = run.open()
    with console.progress("ablating", len(images) * ablation.passes) as advance:
        result = ablation.run(advance)
    _write(folder, result, loaded, images, top)
    for note in notes(result, loaded, images):
        console.note(f"note: {note}")
    results = report(result, loaded, images, top)
    _tables(console, results)
    run.finish(results, model=loaded, seed=model.seed, errors=result.errors)
    if min_accuracy is not None and results["accuracy"]["after"]["top1"] < min_accuracy:
        left = results["accuracy"]["after"]["top1"]
        raise CheckFailed(f"accuracy without these filters is {left:.3f}, below {min_accuracy:g}")


def _check(
    top: int, memory: int | None, min_accuracy: float | None, filters: list[str] | None
) -> None:
    if top < 1:
        raise UsageError(f"--top {top}: it takes a whole number from 1")
    if memory is not None and memory < 1:
        raise UsageError(f"--memory {memory}: it takes a whole number of MiB from 1")
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise UsageError(f"--min-accuracy {min_accuracy:g}: it takes a share, 0 to 1")
    if min_accuracy is not None and not filters:
        raise UsageError("--min-accuracy needs --filters, whose loss it judges")


def _write(
    folder: "RunFolder", result: "AblationResult", model: "Model", data: "ImageData", top: int
) -> None:
    from cnnviz.filters.ablation import report as rows
    from cnnviz.filters.ablation.figures import draw

    if len(result.counts.predictions) > 1:
        folder.write_csv(rows.FLIPS, rows.FLIPS_HEADER, rows.flip_rows(result, model, data))
    if result.sweep:
        folder.write_csv(rows.SWEEP, rows.SWEEP_HEADER, rows.sweep_rows(result, model))
    if result.curves:
        folder.write_csv(rows.CURVES, rows.CURVES_HEADER, rows.curve_rows(result))
    folder.write_npz(rows.PREDICTIONS, **rows.prediction_arrays(result))
    for name, figure in draw(result, model, data, top).items():
        folder.write_figure(name, figure)


def _tables(console: Console, results: dict[str, Any]) -> None:
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
    if results["confusions"]:
        pairs = [
            (entry["label"], entry["predicted"], entry["before"], entry["after"])
            for entry in results["confusions"][:SHOWN]
        ]
        console.table("Confusions that grew most", ("label", "predicted", "before", "after"), pairs)
    if results["sweep"]:
        console.table(
            "Filters whose loss costs most (points of accuracy)",
            _SWEEP_COLUMNS,
            _sweep_rows(results),
        )


def _accuracy_row(when: str, entry: dict[str, Any]) -> tuple[object, ...]:
    low, high = entry["interval"]
    top5 = "" if entry["top5"] is None else f"{entry['top5']:.1%}"
    interval = f"{low:.1%} to {high:.1%}"
    return when, f"{entry['top1']:.1%}", interval, top5, entry["correct"], entry["count"]


_SWEEP_COLUMNS = ("filter", "points", "lost", "gained", "hurts most", "by")


def _sweep_rows(results: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            f"{entry['layer']}:{entry['filter']}",
            f"{entry['change'] * 100:+.1f}",
            entry["lost"],
            entry["gained"],
            entry["hurts"] or "",
            f"{entry['hurts_change'] * 100:+.1f}",
        )
        for entry in results["sweep"]["top"][:SHOWN]
    ]
