"""`cnnviz diff`: two runs of one command with two networks; what changed?"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from matplotlib.figure import Figure

from cnnviz.cli.commands.runs import DiffCommand
from cnnviz.cli.run import Run
from cnnviz.cli.sides import ComparedRun, read_run
from cnnviz.core.choices import percent
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.output.options import Look
from cnnviz.core.output.record import rounded, table, to_json
from cnnviz.core.output.run_data import RunData
from cnnviz.diff import figures
from cnnviz.diff.experiment import diff as compare
from cnnviz.diff.figures import Names, Small
from cnnviz.diff.options import DiffSpec
from cnnviz.diff.results import (
    FILTERS,
    IMAGES,
    DiffResult,
    FilterChange,
    ImageChange,
    LayerChange,
    Results,
    RunRecord,
)
from cnnviz.filters.kernels.figures import kernel_pixels
from cnnviz.filters.kernels.results import FilterResults
from cnnviz.filters.patches.results import MaxPatches

Draw = Callable[[], Figure | None]
Cells = Callable[[FilterChange], Sequence[Sequence[Small]]]
STRENGTHS = {"filters": "norm", "max-patches": "active on", "ablate": "change of accuracy"}
OF_DATA = ("audit", "tsne", "max-patches")
"""Commands whose folders do not have the images."""


def diff(given: DiffCommand) -> None:
    """Runs `cnnviz diff`."""
    run = Run("diff", given.output)
    _check_folders(given.runs, run.root)
    a, b = (read_run(folder, given.data) for folder in given.runs)
    if given.pictures and a.run.command in OF_DATA and (a.run.data.closed or b.run.data.closed):
        run.console.note("images of data sets are shown only from folders named with --data")
    result = compare(a.side, b.side, given.spec)
    if given.max_flips is not None and result.predictions is None:
        raise UsageError("--max-flips needs runs with predictions (occlude, audit, tsne, ablate)")
    if given.min_agreement is not None and result.agreement is None:
        raise UsageError("--min-agreement needs runs with maps, features, filters or a sweep")
    folder = run.open()
    for one in (a.run, b.run):
        for line in one.missing:
            run.console.sentence(f"{one.folder} is incomplete: {line}")
    _write(run, result, _figures(result, a, b, given.spec, given.look) if given.pictures else [])
    sides = (RunRecord.of(a.run), RunRecord.of(b.run))
    results = Results.of_runs(a.run.command, *sides, result, given.spec.top)
    _print_tables(run, results, names_of(a, b))
    shown = [folder.path / name for name in folder.files if name.startswith("worst.")]
    run.finish(to_json(results), model=None, seed=given.spec.seed, show=shown)
    _check(results, given.min_agreement, given.max_flips)


def names_of(a: ComparedRun, b: ComparedRun) -> Names:
    """What the runs are called: as few parts of their folders' paths as tell them apart."""
    parts = [run.run.folder.resolve().parts for run in (a, b)]
    for count in range(1, 1 + min(map(len, parts))):
        names = ["/".join(path[-count:]) for path in parts]
        if names[0] != names[1]:
            break
    else:
        names = [f"{parts[0][-1]} (first)", f"{parts[1][-1]} (second)"]
    models = [run.run.summary.model for run in (a, b)]
    marked = [f" ({model.mark})" if model and model.mark else "" for model in models]
    return names[0] + marked[0], names[1] + marked[1]


def _check_folders(runs: Sequence[Path], root: Path) -> None:
    """Refuses other than two runs, and results that would go into one of them."""
    if len(runs) != 2:
        raise UsageError(f"diff compares two runs; {len(runs)} given")
    for path in runs:
        if path.resolve().is_relative_to(root.resolve()):
            raise UsageError(f"{root} holds {path} itself; give --out another folder")


def _write(run: Run, result: DiffResult, drawings: Sequence[tuple[str, Draw]]) -> None:
    if result.left_out:
        run.console.note(f"{len(result.left_out)} images are left out: they failed in one run")
    if result.predictions is not None:
        run.folder.write_csv(IMAGES, *table(ImageChange, result.worst_images))
    if result.layers:
        run.folder.write_csv(FILTERS, *table(FilterChange, result.worst_filters))
    with run.console.progress("drawing", len(drawings)) as advance:
        for name, draw in drawings:
            figure = draw()
            if figure is not None:
                run.folder.write_figure(name, figure)
            advance(1)


def _figures(
    result: DiffResult, a: ComparedRun, b: ComparedRun, spec: DiffSpec, look: Look
) -> list[tuple[str, Draw]]:
    """The figures that these runs have, by name."""
    strength, names = STRENGTHS.get(a.run.command, ""), names_of(a, b)
    drawings: list[tuple[str, Draw]] = []
    if a.mapped is not None and b.mapped is not None:
        pair = (a.mapped, b.mapped)
        drawings.append(
            ("worst.png", lambda: figures.draw_maps(result, pair, spec.top, look, a.unit, names))
        )
    elif result.columns is not None and result.columns.near is not None:
        picture = a.run.data.picture
        drawings.append(
            ("worst.png", lambda: figures.draw_neighbors(result, picture, spec.top, names))
        )
    if result.classes:
        drawings.append(("classes.png", lambda: figures.draw_classes(result, names)))
    if result.layers:
        drawings.append(("layers.png", lambda: figures.draw_layers(result, strength, names)))
    if (cells := _cells(a, b)) is not None:
        drawings.append(
            ("worst.png", lambda: figures.draw_filters(result, *cells, spec.top, strength, names))
        )
    return drawings


def _cells(a: ComparedRun, b: ComparedRun) -> tuple[Cells, str] | None:
    """The small pictures of a filter, and what they are; None if the runs have none."""
    if isinstance(a.result, FilterResults) and isinstance(b.result, FilterResults):
        return _kernels(a.result, b.result, names_of(a, b))
    if isinstance(a.result, MaxPatches) and isinstance(b.result, MaxPatches):
        return _patches(a.result, b.result, a.run.data, names_of(a, b))
    return None


def _kernels(a: FilterResults, b: FilterResults, names: Names) -> tuple[Cells, str]:
    """The kernels of a filter: a's, b's and the most similar one of b."""
    kernels_a, kernels_b = ({layer.layer: layer.kernels for layer in run.layers} for run in (a, b))

    def cells(change: FilterChange) -> Sequence[Sequence[Small]]:
        kernel = kernel_pixels(kernels_a[change.layer][change.filter])
        if kernel is None:
            return []
        others = kernels_b[change.layer]
        strip = [Small(kernel, names[0]), Small(kernel_pixels(others[change.filter]), names[1])]
        if change.nearest not in (None, change.filter):
            nearest = kernel_pixels(others[change.nearest])
            strip.append(Small(nearest, f"{change.nearest} of {names[1]}"))
        return [strip]

    return cells, "kernels that changed most, each over its largest weight"


def _patches(a: MaxPatches, b: MaxPatches, data: RunData, names: Names) -> tuple[Cells, str]:
    """The strongest patches of a filter in both networks."""
    sides = [{(f.layer, f.filter): f.patches for f in result.filters} for result in (a, b)]

    def cells(change: FilterChange) -> Sequence[Sequence[Small]]:
        pair = [side[change.layer, change.filter] for side in sides]
        images = [{patch.image for patch in patches} for patches in pair]
        return [
            [
                Small(
                    data.picture(patch.image, patch.box_original),
                    f"{side}: {patch.score:.3g}",
                    framed=patch.image in other,
                )
                for patch in patches
            ]
            for side, patches, other in zip(names, pair, images[::-1], strict=True)
        ]

    return (
        cells,
        f"strongest patches in {names[0]} and in {names[1]}; framed: the image is in both lists",
    )


def _print_tables(run: Run, results: Results, names: Names) -> None:
    rows: list[tuple[object, ...]] = []
    if (predictions := results.predictions) is not None:
        rows.append(("images", results.images))
        rows.append(
            ("changed predictions", f"{predictions.flipped} ({percent(predictions.flips, 1)})")
        )
        if predictions.labelled:
            accuracy = (
                f"{percent(predictions.accuracy_a, 1)} and {percent(predictions.accuracy_b, 1)}"
            )
            rows.append(
                (
                    f"accuracy, {names[0]} and {names[1]}",
                    f"{accuracy} (p {predictions.p_value:.2g})",
                )
            )
    if (agreement := results.agreement) is not None:
        low, high = agreement.interval
        rows.append((agreement.of, f"{agreement.mean:.3f} ({low:.3f} to {high:.3f})"))
    if results.by_chance is not None:
        rows.append(("kept by chance", f"{results.by_chance:.3f}"))
    if (inside := results.inside) is not None:
        p = "" if inside.p_value is None else f" (p {inside.p_value:.2g})"
        rows.append(("evidence moved onto the object", f"{inside.mean:+.3f}{p}"))
    if results.classes:
        judged = any(change.certainty is not None for change in results.classes)
        none = "none" if judged else "not judged: too few classes of five images"
        rows.append(("changed more than others", ", ".join(results.changed) or none))
    run.console.table(f"Changes from {names[0]} to {names[1]}", ("measure", "value"), rows)
    if results.worst_images:
        run.console.table("Most changed images", *_image_table(results.worst_images, names))
    if results.layers:
        run.console.table("Layers", *_layer_table(results.layers))


def _image_table(
    changes: Sequence[ImageChange], names: Names
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    titles = {"agreement": "maps agree", "kept": "neighbours kept", "inside": "inside, change"}
    known = [key for key in titles if any(getattr(c, key) is not None for c in changes)]
    rows: list[tuple[object, ...]] = [
        (
            PurePath(change.image).name,
            change.label or "",
            f"{change.a} {_number(change.probability_a, 2)}".rstrip(),
            f"{change.b} {_number(change.probability_b, 2)}".rstrip(),
            *(_number(getattr(change, key), 2) for key in known),
        )
        for change in changes
    ]
    return ("image", "label", *names, *(titles[key] for key in known)), rows


def _layer_table(
    layers: Sequence[LayerChange],
) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    columns = ("layer", "filters", "likeness", "rank corr.", "died", "revived", "closer to another")
    return columns, [
        (
            layer.layer,
            layer.filters,
            _number(layer.likeness, 3),
            _number(layer.rank_correlation, 3),
            len(layer.died),
            len(layer.revived),
            layer.better_elsewhere,
        )
        for layer in layers
    ]


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _check(results: Results, min_agreement: float | None, max_flips: float | None) -> None:
    """Raises CheckFailed where a check does not hold."""
    failed: dict[str, str] = {}
    predictions, agreement = results.predictions, results.agreement
    mean = rounded(agreement.mean) if agreement else None
    if max_flips is not None and predictions is not None and predictions.flips > max_flips:
        failed["flips"] = (
            f"{percent(predictions.flips, 1)} of the predictions changed, more than "
            f"{percent(max_flips, 1)}"
        )
    if agreement and mean is not None and min_agreement is not None and mean < min_agreement:
        failed["agreement"] = f"{agreement.of}: {mean:.3f}, less than {min_agreement:g}"
    if failed:
        raise CheckFailed("; ".join(failed.values()), failed)
