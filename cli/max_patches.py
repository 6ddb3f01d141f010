"""`cnnviz max-patches`: the image patches that drive each filter most, over a whole data set."""

from cnnviz.cli.commands.datasets import MaxPatchesCommand
from cnnviz.cli.run import Run
from cnnviz.core.files import SUMMARY
from cnnviz.core.output.record import to_json
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.evidence import EvidenceTracer
from cnnviz.filters.patches.figures import count_evidence, count_sheets, draw, draw_evidence
from cnnviz.filters.patches.max_patches import find_patches
from cnnviz.filters.patches.options import STATE
from cnnviz.filters.patches.results import MaxPatches
from cnnviz.filters.patches.scan import Saving, default_batch_size, make_plan

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
    images = PatchImages(data, model.preprocess)
    saving = Saving(folder.path / STATE, given.save_every, given.resume)
    with run.console.progress("scanning", len(data), "images") as advance:
        result = find_patches(model, data, plan, saving=saving, progress=advance, spread=run.spread)
    tracer = None
    if given.evidence and not run.shard:
        size = model.batch_size(given.spec.batch_size) or default_batch_size(model.device)
        tracer = EvidenceTracer(model, images, plan.layouts, size)
    if not run.shard:  # merge draws once, for all shards
        result = result.with_pictures(_draw(run, result, images, given.pictures, tracer))
    run.console.table("Strongest patches", *_table(result))
    shown = [folder.path / row.pictures[0] for row in result.layers if row.pictures]
    results, seed = to_json(result), given.model.seed
    try:
        run.finish(results, model=model, seed=seed, errors=result.errors, show=shown)
    finally:
        if not run.shard and (folder.path / SUMMARY).exists():
            (folder.path / STATE).unlink(missing_ok=True)


def _draw(
    run: Run,
    result: MaxPatches,
    images: PatchImages,
    pictures: bool,
    tracer: EvidenceTracer | None,
) -> dict[str, list[str]]:
    """Writes each layer's sheets and evidence into a subfolder; returns the sheets by layer."""
    drawn: dict[str, list[str]] = {}
    layers = [row.layer for row in result.layers] if pictures or tracer else []
    sheets = sum(count_sheets(result, layer) for layer in layers) if pictures else 0
    pages = sum(count_evidence(result, layer) for layer in layers) if tracer else 0
    with run.console.progress("drawing", sheets + pages) as advance:
        for layer in layers:
            target = run.folder.subfolder(layer)
            before = len(run.folder.files)
            for name, sheet in draw(result, layer, images) if pictures else ():
                target.write_image(name, sheet)
                advance(1)
            if tracer is not None:
                for name, arrays, sheet in draw_evidence(result, layer, images, tracer.of):
                    target.write_npz(f"{name}.npz", **arrays)
                    if pictures:
                        target.write_image(f"{name}.png", sheet)
                    advance(1)
            drawn[layer] = [n for n in run.folder.files[before:] if n.endswith(".png")]
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
