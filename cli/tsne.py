"""`cnnviz tsne`: a data set laid out in the plane as the network sees it."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cnnviz.cli.console import Console
from cnnviz.cli.options import SOURCES, Limit, ModelOptions, OutputOptions, Resume, Share
from cnnviz.cli.run import Run
from cnnviz.core.options import Option
from cnnviz.embeddings.options import EmbeddingSpec

if TYPE_CHECKING:
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.embeddings.result import EmbeddingResult


def tsne(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help=f"Images: {SOURCES}",
        ),
    ],
    spec: EmbeddingSpec,
    limit: Limit = None,
    pictures: Annotated[bool, Option("Draw the maps.")] = True,
    resume: Resume = False,
    shard: Share = None,
    *,
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """Lay out a data set as the network sees it: what it finds alike lies together.

    cnnviz tsne photos/ --model resnet18 --perplexity 30

    Writes maps of points, of the images themselves and of a grid, the features, and how far the
    map can be trusted. Features of an earlier run in the same folder are used again if they fit.
    """
    run = Run("tsne", output)
    console = run.console
    from cnnviz.embeddings.experiment import Embedder, check_spec
    from cnnviz.embeddings.features.file import FEATURES, to_arrays
    from cnnviz.embeddings.report import QUALITY_COLUMNS, quality_rows, report

    run.take_share(shard)
    images = run.data(data, limit, model.seed)
    check_spec(spec, len(images))
    images = images.share(run.shard) if run.shard else images
    loaded = run.load(model)
    embedder = Embedder(loaded, images, spec, console.progress, console.note)
    known = None
    if output.overwrite or resume:
        known = embedder.known_features(run.root / FEATURES)
    folder = run.open(resume=resume)
    features = known or embedder.features(scratch=folder.path)
    folder.write_large_npz(FEATURES, **to_arrays(features, images))
    if run.shard:
        run.finish(None, model=loaded, seed=model.seed, errors=features.errors)
        return
    result = embedder.lay_out(features)
    _tell(result, console)
    folders, drawing = _write(result, folder, console, model.seed, pictures)
    console.table("How far to trust the map", QUALITY_COLUMNS, quality_rows(result))
    results = report(result, folders)
    results["seconds"]["drawing"] = round(drawing, 3)
    run.finish(results, model=loaded, seed=model.seed, errors=features.errors)


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
