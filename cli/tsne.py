"""`cnnviz tsne`: a data set laid out in the plane as the network sees it."""

import time
from typing import TYPE_CHECKING

from cnnviz.cli.commands.datasets import TsneCommand
from cnnviz.cli.console import Console
from cnnviz.cli.run import Run

if TYPE_CHECKING:
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.embeddings.result import EmbeddingResult


def tsne(given: TsneCommand) -> None:
    """Runs `cnnviz tsne`."""
    run = Run("tsne", given.output)
    console = run.console
    from cnnviz.embeddings.experiment import Embedder, check_spec
    from cnnviz.embeddings.features.file import FEATURES, save_features
    from cnnviz.embeddings.report import QUALITY_COLUMNS, quality_rows, report

    run.take_share(given.shard)
    images = run.data(given.data, given.limit, given.model.seed)
    check_spec(given.spec, len(images))
    images = images.share(run.shard) if run.shard else images
    loaded = run.load(given.model)
    embedder = Embedder(loaded, images, given.spec, console.progress, console.note)
    known = None
    if given.output.overwrite or given.resume:
        known = embedder.known_features(run.root / FEATURES)
    folder = run.open(resume=given.resume)
    features = known or embedder.features(scratch=folder.path)
    save_features(folder.path / FEATURES, features, images)
    folder.list(FEATURES)
    if run.shard:
        run.finish(None, model=loaded, seed=given.model.seed, errors=features.errors)
        return
    result = embedder.lay_out(features)
    _tell(result, console)
    folders, drawing = _write(result, folder, console, given.model.seed, given.pictures)
    console.table("How far to trust the map", QUALITY_COLUMNS, quality_rows(result))
    results = report(result, folders)
    results["seconds"]["drawing"] = round(drawing, 3)
    run.finish(results, model=loaded, seed=given.model.seed, errors=features.errors)


def _tell(result: "EmbeddingResult", console: Console) -> None:
    if result.features.reused:
        console.note("the features of the earlier run are used again: nothing they hang on changed")
    if not result.neighbors.exact:
        console.note(
            "of so many images an index (Annoy) finds the neighbours: "
            f"{result.neighbor_recall:.1%} of the true ones"
        )
    if result.judged < len(result.labels_N):
        console.note(f"the map is judged by {result.judged:,} of the images, drawn by --seed")
    if result.mismatch:
        console.note(f"predictions are not judged: {result.mismatch}")


def _write(
    result: "EmbeddingResult", folder: "RunFolder", console: Console, seed: int, pictures: bool
) -> tuple[tuple[str, ...], float]:
    """Writes tables and pictures; returns each map's folder and the seconds spent on drawing."""
    from cnnviz.embeddings.report import map_name
    from cnnviz.embeddings.tables import (
        EMBEDDING_HEADER,
        embedding_rows,
        neighbors_header,
        neighbors_rows,
    )

    folder.write_csv("neighbors.csv", neighbors_header(result), neighbors_rows(result))
    alone = len(result.maps) == 1
    places = [
        folder if alone else folder.subfolder(map_name(found).replace(" ", "-"))
        for found in result.maps
    ]
    for found, place in zip(result.maps, places, strict=True):
        place.write_csv("embedding.csv", EMBEDDING_HEADER, embedding_rows(result, found))
    started = time.perf_counter()
    if pictures:
        _draw(result, folder, places, console, seed)
    names = tuple(place.path.relative_to(folder.path).as_posix() for place in places)
    return names, time.perf_counter() - started


def _draw(
    result: "EmbeddingResult",
    folder: "RunFolder",
    places: "list[RunFolder]",
    console: Console,
    seed: int,
) -> None:
    """Writes the pictures of every map, and those that compare them."""
    from cnnviz.embeddings.pictures import figures
    from cnnviz.embeddings.pictures.quality import quality_figure

    chosen = figures.chosen_images(len(result.labels_N), seed)
    with console.progress("drawing", len(chosen) + 3 * len(places)) as advance:
        framed = figures.framed_thumbnails(result, chosen, progress=advance)
        for index, place in enumerate(places):
            place.write_figure("scatter.png", figures.scatter(result, index))
            advance(1)
            sheet = figures.images(result, chosen, framed, index, seed)
            place.write_image("images.png", sheet.pixels())
            advance(1)
            sheet = figures.grid(result, chosen, framed, index)
            place.write_image("grid.png", sheet.pixels())
            advance(1)
    folder.write_figure("quality.png", quality_figure(result))
    if len(places) > 1:
        folder.write_figure("perplexities.png", figures.side_by_side(result))
