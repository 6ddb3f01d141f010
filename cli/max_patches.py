"""`cnnviz max-patches`: the image patches that drive each filter most, over a whole data set."""

from cnnviz.cli.commands.datasets import MaxPatchesCommand
from cnnviz.cli.run import Run
from cnnviz.core.files import SUMMARY
from cnnviz.core.output.record import to_json
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.figures import count_sheets, draw
from cnnviz.filters.patches.max_patches import find_patches
from cnnviz.filters.patches.options import STATE
from cnnviz.filters.patches.results import MaxPatches
from cnnviz.filters.patches.scan import Saving, make_plan

_COLUMNS = ("layer", "filters", "dead", "most class-selective")
_NAMED = 4  # dead filters that the table names; the summary has all


def max_patches(given: MaxPatchesCommand) -> None:
    """Runs `cnnviz max-patches`."""
    run = Run("max-patches", given.output)
    run.take_share(given.shard)
    data = run.data(given.data, given.limit, given.model.seed)
    data = data.share(run.shard) if run.shard else data
    model = run.load(given.model, scores=False)
    plan = make_plan(model, given.spec)
    folder = run.open(resume=given.resume)
    if not given.resume:
        (run.root / STATE).unlink(missing_ok=True)
    saving = Saving(folder.path / STATE, given.save_every, given.resume)
    with run.console.progress("scanning", len(data)) as advance:
        result = find_patches(model, data, plan, saving=saving, progress=advance)
    if given.pictures and not run.shard:  # merge draws them once, for all shards
        images = PatchImages(data, model.preprocess)
        result = result.with_pictures(_draw(run, result, images, folder))
    run.console.table("Strongest patches", *_table(result))
    shown = [folder.path / row.pictures[0] for row in result.layers if row.pictures]
    results, seed = to_json(result), given.model.seed
    try:
        run.finish(results, model=model, seed=seed, errors=result.errors, show=shown)
    finally:
        if not run.shard and (folder.path / SUMMARY).exists():
            (folder.path / STATE).unlink(missing_ok=True)


def _draw(
    run: Run, result: MaxPatches, images: PatchImages, folder: RunFolder
) -> dict[str, list[str]]:
    """Writes each layer's sheets into a subfolder; returns their names by layer."""
    drawn: dict[str, list[str]] = {}
    layers = [row.layer for row in result.layers]
    sheets = sum(count_sheets(result, layer) for layer in layers)
    with run.console.progress("drawing", sheets) as advance:
        for layer in layers:
            target = folder.subfolder(layer)
            before = len(folder.files)
            for name, sheet in draw(result, layer, images):
                target.write_image(name, sheet)
                advance(1)
            drawn[layer] = folder.files[before:]
    return drawn


def _table(result: MaxPatches) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Columns, and a row per layer; classes only if the data set has labels."""
    rows = [_row(result, row.layer) for row in result.layers]
    labelled = any(entry.classes for entry in result.filters)
    width = len(_COLUMNS) if labelled else len(_COLUMNS) - 1
    return _COLUMNS[:width], [row[:width] for row in rows]


def _row(result: MaxPatches, layer: str) -> tuple[object, ...]:
    entries = result.of(layer)
    dead = [str(entry.filter) for entry in entries if entry.dead]
    more = ", …" if len(dead) > _NAMED else ""
    named = f"{len(dead)}: {', '.join(dead[:_NAMED])}{more}" if dead else "0"
    selective = ""
    labelled = [entry for entry in entries if entry.classes and not entry.dead]
    if labelled:
        best = min(labelled, key=lambda entry: entry.class_entropy_bits or 0.0)
        label, count = next(iter((best.classes or {}).items()))
        selective = f"filter {best.filter}: {label} {count} of {len(best.patches)}"
    return layer, len(entries), named, selective
