"""`cnnviz filters`: a network's kernels as pictures and numbers, for one model or several."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.networks import FiltersCommand
from cnnviz.cli.console import Console
from cnnviz.cli.options import ModelOptions
from cnnviz.cli.run import Run
from cnnviz.core.choices import Scaling
from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model
    from cnnviz.filters.kernels.weights import KernelStats


def filters(given: FiltersCommand) -> None:
    """Runs `cnnviz filters`."""
    run = Run("filters", given.output)
    console = run.console
    from cnnviz.core.output.entries import model_entry
    from cnnviz.filters.kernels.report import Results, report
    from cnnviz.filters.kernels.weights import choose_layers

    if given.compare and given.layer != "first":
        raise UsageError(f"--compare shows first layers; it does not go with --layer {given.layer}")
    loaded = run.load(given.model, scores=False)
    names = choose_layers(loaded.module, given.layer, loaded.name)
    folder = run.open()
    examined = _examine(console, loaded, names, given.gabor, given.model.seed)
    others = []
    for text in given.compare:
        other = _other(given.model, text)
        first = choose_layers(other.module, "first", other.name)
        others.append((other, _examine(console, other, first, given.gabor, given.model.seed)[0]))
    _write(console, folder, loaded, examined, others, given.normalize)
    console.table("Filters", _COLUMNS, _rows(loaded, examined, others))
    results: Results = {
        "layers": [report(found) for found in examined],
        "compared": [{"model": model_entry(m), **report(found)} for m, found in others],
    }
    run.finish(results, model=loaded, seed=given.model.seed)


def _other(options: ModelOptions, text: str) -> "Model":
    """The model that `--compare` names, on the same device and precision."""
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
    console: Console, model: "Model", names: list[str], gabor: bool, seed: int
) -> "list[KernelStats]":
    """The numbers of each layer; Gabor fits where filters look at pixels or at single channels."""
    from cnnviz.filters.kernels.weights import choose_layers, examine, gabor_steps

    first = choose_layers(model.module, "first", model.name)[0] if len(names) > 1 else names[0]
    steps = gabor_steps(model.module, first) if gabor else 0
    with console.progress(f"measuring {model.name}", len(names) + steps) as advance:
        found = []
        for name in names:
            fits = gabor and name == first and steps > 0
            found.append(examine(model.module, name, gabor=fits, seed=seed, advance=advance))
            advance(1)
    return found


def _write(
    console: Console,
    folder: Any,
    model: "Model",
    examined: "list[KernelStats]",
    others: "list[tuple[Model, KernelStats]]",
    normalize: Scaling,
) -> None:
    from cnnviz.filters.kernels.figures import draw_comparison, draw_gabor, draw_kernels
    from cnnviz.filters.kernels.report import KERNELS

    with console.progress("drawing", len(examined) + len(others)) as advance:
        folder.write_large_npz(
            KERNELS, **{f"kernels.{found.layer}": found.kernels for found in examined}
        )
        for found in examined:
            picture = draw_kernels(found, model.name, normalize)
            folder.write_figure(f"kernels_{found.layer}.png", picture)
            if found.gabor is not None:
                picture = draw_gabor(found, model.name)
                folder.write_figure(f"gabor_{found.layer}.png", picture)
            advance(1)
        if others:
            pairs = [(model.name, examined[0]), *((m.name, found) for m, found in others)]
            folder.write_figure("comparison.png", draw_comparison(pairs, normalize))
            advance(len(others))


_COLUMNS = ("layer", "filters", "kernel", "norm", "dead", "alike", "colour", "Gabor", "by chance")


def _rows(
    model: "Model",
    examined: "list[KernelStats]",
    others: "list[tuple[Model, KernelStats]]",
) -> list[tuple[object, ...]]:
    pairs = [(model, found) for found in examined] + others
    return [_row(m.name if others else "", found) for m, found in pairs]


def _row(name: str, found: "KernelStats") -> tuple[object, ...]:
    count, channels, height, width = found.kernels.shape
    colour = "-" if found.chromaticity is None else f"{float(found.chromaticity.mean()):.0%}"
    like = by_chance = "-"
    if found.gabor is not None:
        like, by_chance = f"{found.gabor.share:.0%}", f"{found.gabor.shuffled_share:.0%}"
    low, high = float(found.norms.min()), float(found.norms.max())
    return (
        f"{name} {found.layer}".strip(),
        count,
        f"{channels}x{height}x{width}",
        f"{low:.2g}…{high:.2g}",
        len(found.dead),
        len(found.duplicates),
        colour,
        like,
        by_chance,
    )
