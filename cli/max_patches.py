"""`cnnviz max-patches`: the image patches that drive each filter most, over a whole data set."""

from typing import TYPE_CHECKING

from cnnviz.cli.commands.datasets import MaxPatchesCommand
from cnnviz.cli.console import Console
from cnnviz.cli.run import Run
from cnnviz.filters.patches.choices import STATE

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.data.images import Preprocess
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.patches.max_patches import MaxPatches

_COLUMNS = ("layer", "filters", "dead", "most class-selective")
_NAMED = 4  # dead filters that the table names; the summary has all


def max_patches(given: MaxPatchesCommand) -> None:
    """Runs `cnnviz max-patches`."""
    run = Run("max-patches", given.output)
    console = run.console
    from cnnviz.filters.patches.max_patches import find_patches
    from cnnviz.filters.patches.plan import make_plan
    from cnnviz.filters.patches.report import report
    from cnnviz.filters.patches.scan import Saving

    run.take_share(given.shard)
    images = run.data(given.data, given.limit, given.model.seed)
    images = images.share(run.shard) if run.shard else images
    loaded = run.load(given.model, scores=False)
    plan = make_plan(loaded, given.spec)
    folder = _open_folder(run, given.resume)
    saving = Saving(folder.path / STATE, given.save_every, given.resume)
    with console.progress("scanning", len(images)) as advance:
        result = find_patches(loaded, images, plan, saving=saving, progress=advance)
    draws = given.pictures and not run.shard  # merge draws them, once
    drawn = _draw(result, images, loaded.preprocess, folder, console) if draws else {}
    results = report(result, images, pictures=drawn)
    console.table("Strongest patches", *_table(result))
    shown = [folder.path / pages[0] for pages in drawn.values()]
    try:
        run.finish(results, model=loaded, seed=given.model.seed, errors=result.errors, show=shown)
    finally:
        if not run.shard:
            _forget(folder)


def _open_folder(run: Run, resume: bool) -> "RunFolder":
    """The run's folder, without an older scan's state unless that is to go on."""
    folder = run.open(resume=resume)
    if not resume:
        (run.root / STATE).unlink(missing_ok=True)
    return folder


def _forget(folder: "RunFolder") -> None:
    """Deletes the scan's state once the summary says that the run is complete."""
    from cnnviz.core.output.run_folder import SUMMARY

    if (folder.path / SUMMARY).exists():
        (folder.path / STATE).unlink(missing_ok=True)


def _draw(
    result: "MaxPatches",
    images: "ImageData",
    preprocess: "Preprocess",
    folder: "RunFolder",
    console: Console,
) -> dict[str, list[str]]:
    """Writes each layer's sheets into a folder of its own; returns their names by layer."""
    from cnnviz.filters.patches.figures import count_sheets, draw
    from cnnviz.filters.patches.images import PatchImages

    reader = PatchImages(images, preprocess)
    drawn: dict[str, list[str]] = {}
    sheets = sum(count_sheets(result, layer) for layer in result.plan.filters)
    with console.progress("drawing", sheets) as advance:
        for layer in result.plan.filters:
            target = folder.subfolder(layer)
            before = len(folder.files)
            for name, sheet in draw(result, layer, reader):
                target.write_image(name, sheet)
                advance(1)
            drawn[layer] = folder.files[before:]
    return drawn


def _table(result: "MaxPatches") -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns and a row per layer; classes only where the data set has them."""
    rows = [_row(result, layer) for layer in result.plan.filters]
    labelled = any(entry.classes for entry in result.filters)
    width = len(_COLUMNS) if labelled else len(_COLUMNS) - 1
    return _COLUMNS[:width], [row[:width] for row in rows]


def _row(result: "MaxPatches", layer: str) -> tuple[object, ...]:
    entries = result.of(layer)
    dead = [str(entry.filter) for entry in entries if entry.active_share == 0]
    more = ", …" if len(dead) > _NAMED else ""
    named = f"{len(dead)}: {', '.join(dead[:_NAMED])}{more}" if dead else "0"
    pure = ""
    labelled = [entry for entry in entries if entry.entropy is not None and entry.active_share]
    if labelled:
        best = min(labelled, key=lambda entry: entry.entropy or 0.0)
        label, count = next(iter((best.classes or {}).items()))
        pure = f"filter {best.filter}: {label} {count} of {len(best.patches)}"
    return layer, len(entries), named, pure
