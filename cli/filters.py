"""`cnnviz filters`: a network's kernels as pictures and numbers, for one model or several."""

from dataclasses import replace
from pathlib import Path

from cnnviz.cli.commands.networks import FiltersCommand
from cnnviz.cli.console import Console
from cnnviz.cli.options import ModelOptions
from cnnviz.cli.run import Run
from cnnviz.core.choices import Scaling
from cnnviz.core.errors import UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import to_json
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.filters.kernels.figures import draw_comparison, draw_gabor, draw_kernels
from cnnviz.filters.kernels.results import KERNELS, Compared, FilterResults, KernelStats
from cnnviz.filters.kernels.weights import choose_layers, examine, gabor_steps

_COLUMNS = ("layer", "filters", "kernel", "norm", "dead", "alike", "colour", "Gabor", "by chance")


def filters(given: FiltersCommand) -> None:
    """Runs `cnnviz filters`."""
    run = Run("filters", given.output)
    if given.compare and given.layer != "first":
        raise UsageError(
            f"--compare shows first layers and cannot be used with --layer {given.layer}"
        )
    model = run.load(given.model, scores=False)
    names = choose_layers(model.module, given.layer, model.name)
    folder = run.open()
    layers = _examine(run.console, model, names, given)
    compared = []
    for text in given.compare:
        other = _load_other(given.model, text)
        first = choose_layers(other.module, "first", other.name)
        compared.append(Compared.of(other, _examine(run.console, other, first, given)[0]))
    results = FilterResults(tuple(layers), tuple(compared))
    _write(run.console, folder, model.name, results, given.normalize)
    rows = [_row(stats, model.name if compared else "") for stats in results.layers]
    rows += [_row(stats, stats.model.name) for stats in results.compared]
    run.console.table("Filters", _COLUMNS, rows)
    run.finish(to_json(results), model=model, seed=given.model.seed)


def _load_other(options: ModelOptions, text: str) -> Model:
    """The model that `--compare` names, on the same device and in the same precision."""
    name, _, checkpoint = text.partition("=")
    other = replace(
        options,
        model=name,
        checkpoint=Path(checkpoint) if checkpoint else None,
        weights="none" if options.weights == "none" and not checkpoint else None,
        labels=None,
        state=None,
    )
    return other.load(scores=False)


def _examine(
    console: Console, model: Model, names: list[str], given: FiltersCommand
) -> list[KernelStats]:
    """Measures each layer; fits Gabor filters to the first one only."""
    first = choose_layers(model.module, "first", model.name)[0] if len(names) > 1 else names[0]
    steps = gabor_steps(model.module, first) if given.gabor else 0
    layers = []
    with console.progress(f"analysing {model.name}", len(names) + steps) as advance:
        for name in names:
            fits, seed = steps > 0 and name == first, given.model.seed
            layers.append(examine(model.module, name, gabor=fits, seed=seed, advance=advance))
            advance(1)
    return layers


def _write(
    console: Console, folder: RunFolder, name: str, results: FilterResults, normalize: Scaling
) -> None:
    with console.progress("drawing", len(results.layers) + len(results.compared)) as advance:
        kernels = {f"kernels.{stats.layer}": stats.kernels for stats in results.layers}
        folder.write_large_npz(KERNELS, **kernels)
        for stats in results.layers:
            for page, picture in enumerate(draw_kernels(stats, name, normalize), start=1):
                number = f"-{page}" if page > 1 else ""
                folder.write_figure(f"kernels_{stats.layer}{number}.png", picture)
            if stats.gabor is not None:
                folder.write_figure(f"gabor_{stats.layer}.png", draw_gabor(stats, name))
            advance(1)
        if results.compared:
            pairs = [(name, results.layers[0]), *((s.model.name, s) for s in results.compared)]
            folder.write_figure("comparison.png", draw_comparison(pairs, normalize))
            advance(len(results.compared))


def _row(stats: KernelStats, name: str) -> tuple[object, ...]:
    colours, gabor = stats.chromaticity, stats.gabor
    return (
        f"{name} {stats.layer}".strip(),
        stats.filters,
        "x".join(map(str, (stats.channels, *stats.kernel))),
        f"{min(stats.norms):.2g} to {max(stats.norms):.2g}",
        len(stats.dead),
        len(stats.duplicates),
        "-" if colours is None else f"{sum(colours) / len(colours):.0%}",
        "-" if gabor is None else f"{gabor.share:.0%}",
        "-" if gabor is None else f"{gabor.share_by_chance:.0%}",
    )
