"""`cnnviz tsne`: a data set laid out in the plane as the network sees it."""

import time
from dataclasses import replace

from cnnviz.cli.commands.datasets import TsneCommand
from cnnviz.cli.console import Console
from cnnviz.cli.run import Run
from cnnviz.core.files import BLOCKS, exists
from cnnviz.core.output.record import table, to_json
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.embeddings import figures, sheets
from cnnviz.embeddings.experiment import Embedder, check_spec, fitting
from cnnviz.embeddings.features import FEATURES, save_features
from cnnviz.embeddings.results import (
    NEIGHBORS,
    PLACES,
    QUALITY_COLUMNS,
    EmbeddingResult,
    ImagePlace,
    neighbors_table,
    quality_rows,
)


def tsne(given: TsneCommand) -> None:
    """Runs `cnnviz tsne`."""
    run = Run("tsne", given.output)
    console, seed = run.console, given.model.seed
    run.take_share(given.shard)
    images = run.data(given.data, given.limit, seed)
    spec = fitting(given.spec, len(images))
    if spec is not given.spec:
        console.note(
            f"perplexity {spec.perplexities[0]:g}: the default, {given.spec.perplexities[0]:g}, "
            f"needs more than {len(images)} images (--perplexity)"
        )
    check_spec(spec, len(images))
    images = images.share(run.shard) if run.shard else images
    model = run.load(given.model, features=True)
    embedder = Embedder(model, images, spec, console.progress, console.note)
    known = None
    if (given.output.overwrite or given.resume) and not exists(run.root / BLOCKS):
        known = embedder.known_features(run.root / FEATURES)
    folder = run.open(resume=given.resume)
    features = known or embedder.features(folder.path, run.spread)
    save_features(folder.path / FEATURES, features, images)
    folder.list(FEATURES)
    if run.shard:
        run.finish(None, model=model, seed=seed, errors=features.errors)
        return
    result = embedder.lay_out(features)
    _note(result, console)
    places = _write_tables(result, folder)
    names = [place.path.relative_to(folder.path).as_posix() for place in places]
    maps = zip(result.maps, names, strict=True)
    result = replace(result, maps=tuple(replace(map_, folder=name) for map_, name in maps))
    started = time.perf_counter()
    if given.pictures:
        _draw(result, folder, places, console, seed)
    console.table("How far to trust the map", QUALITY_COLUMNS, quality_rows(result))
    drawing = round(time.perf_counter() - started, 3)
    result = replace(result, seconds={**result.seconds, "drawing": drawing})
    run.finish(to_json(result), model=model, seed=seed, errors=features.errors)


def _note(result: EmbeddingResult, console: Console) -> None:
    """Prints what the reader of the table should know."""
    if result.features_reused:
        console.note("the features of the earlier run are used again: nothing has changed")
    if not result.near.exact:
        console.note(
            "with so many images, the neighbors are approximate (Annoy): "
            f"{result.neighbor_recall:.1%} of the true ones"
        )
    if result.judged < result.images:
        console.note(f"the map is judged by a sample of {result.judged:,} images (--seed)")
    if result.labels_not_matched:
        console.note(f"predictions are not judged: {result.labels_not_matched}")


def _write_tables(result: EmbeddingResult, folder: RunFolder) -> list[RunFolder]:
    """Writes the tables; returns the folder of each map."""
    folder.write_csv(NEIGHBORS, *neighbors_table(result))
    places = [
        folder if len(result.maps) == 1 else folder.subfolder(map_.name.replace(" ", "-"))
        for map_ in result.maps
    ]
    for map_, place in zip(result.maps, places, strict=True):
        place.write_csv(PLACES, *table(ImagePlace, result.on(map_)))
    return places


def _draw(
    result: EmbeddingResult,
    folder: RunFolder,
    places: list[RunFolder],
    console: Console,
    seed: int,
) -> None:
    """Writes the pictures of every map, and those that compare them."""
    chosen = sheets.chosen_images(result.images, seed)
    with console.progress("drawing", len(chosen) + 3 * len(places)) as advance:
        framed = sheets.framed_thumbnails(result, chosen, progress=advance)
        for map_, place in zip(result.maps, places, strict=True):
            place.write_figure("scatter.png", figures.scatter(result, map_))
            advance(1)
            sheet = sheets.images(result, chosen, framed, map_, seed)
            place.write_image("images.png", sheet.pixels())
            advance(1)
            sheet = sheets.grid(result, chosen, framed, map_)
            place.write_image("grid.png", sheet.pixels())
            advance(1)
    folder.write_figure("quality.png", figures.quality_figure(result))
    if len(places) > 1:
        folder.write_figure("perplexities.png", figures.side_by_side(result))
