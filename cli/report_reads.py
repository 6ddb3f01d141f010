"""The parts of a finished run that pages show: facts, tables, scores, maps."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from cnnviz.core.choices import percent
from cnnviz.core.data.images import read_rgb
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import csv_rows, read_text
from cnnviz.core.output.style import RED
from cnnviz.core.output.summary import FinishedRun
from cnnviz.embeddings import results as embeddings
from cnnviz.embeddings.figures import looks_of
from cnnviz.occlusion.measurement import SCORES, load, load_crop
from cnnviz.occlusion.options import Upsample
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.reasons.figures import COLOURS
from cnnviz.reasons.pairs_figure import COLOURS as PAIR_COLOURS
from cnnviz.reasons.results import Interactions, ReasonsResult
from cnnviz.report.explorer import Explored
from cnnviz.report.regions import Arc, Layer, Regions
from cnnviz.report.scatter import Scattered, tile

SHOWN = 400
"""Maximum length of a command line."""
CELLS = 4
"""Maximum length of a list in a cell."""
PERCENT = frozenset({"share", "sparsity", "inside", "active_share", "object_share", "accuracy"})
"""Last words of columns that the terminal shows in percent."""
POINTS = frozenset({"change", "hurts_change"})
"""Columns of a sweep that it shows in percentage points, if they are changes of accuracy."""


def facts(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """The facts about a run: a name and a value each."""
    summary = run.summary
    line = "cnnviz " + shlex.join(summary.argv)
    yield "command", line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
    if model := summary.model:
        size = "×".join(map(str, model.input_size))
        yield "model", f"{model.name}, {model.classes} classes, {size}, {model.head}"
        yield "weights", f"{model.weights_sha256[:12]} {model.mark}".rstrip()
        yield "device", f"{summary.device}, {summary.precision}"
    yield "version", summary.version
    yield "seconds", f"{summary.elapsed_seconds:.1f}"


def tables(run: FinishedRun) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """The results as a table, if they are a list of entries, and every CSV file of the run."""
    results = run.summary.results
    if isinstance(results, list) and results:
        rows = [dict(_flat(part)) for entry in results for part in _parts(entry)]
        header = list(dict.fromkeys(name for row in rows for name in row))
        yield "results", *_as_shown(header, [[row.get(k, "") for k in header] for row in rows])
    for name in run.summary.files:
        if name.endswith(".csv"):
            header, *lines = csv_rows(read_text(run.file(name)))
            if any(len(line) != len(header) for line in lines):
                raise CnnvizError(f"{run.file(name)} has rows of different lengths")
            if lines:
                yield name, *_as_shown(header, lines)


def _as_shown(
    header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> tuple[list[str], list[list[Any]]]:
    """The table with shares in percent and changes of accuracy in points, as in the terminal."""
    places = {name: place for place, name in enumerate(header)}
    of_accuracy = "correct" in places and any(row[places["correct"]] != "" for row in rows)
    unit = {
        place: "points" if name in POINTS else "%"
        for name, place in places.items()
        if name.rpartition(" ")[2] in PERCENT or (of_accuracy and name in POINTS)
    }
    shown = [
        [_hundredfold(cell) if place in unit else cell for place, cell in enumerate(row)]
        for row in rows
    ]
    names = [f"{name} ({unit[k]})" if k in unit else name for k, name in enumerate(header)]
    return names, shown


def _hundredfold(cell: Any) -> Any:
    """A share, or its text, times 100 with the same digits; anything else as it is."""
    try:
        return cell if cell in ("", None) else float(Decimal(str(cell)) * 100)
    except ArithmeticError:
        return cell


def _parts(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of an entry: one for each of its classes or maps."""
    image = {"image": entry.get("image", "")}
    for name in ("targets", "maps", "boxes"):
        if isinstance(entry.get(name), list):
            yield from ({**image, **part} for part in entry[name])
            return
    yield {**image, **entry}


def _flat(entry: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The cells of a row: plain values, those of dictionaries, and of the first entry of lists."""
    for key, value in entry.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if len(before) < 2 * SHOWN:
                yield from _flat(value, f"{name} ")
        elif isinstance(value, list):
            if value and isinstance(value[0], dict):
                if key != "top5":
                    yield from _flat(value[0], f"{name} ")
            elif len(value) <= CELLS:
                yield name, ", ".join(map(str, value))
        else:
            yield name, value


def scorecard(entry: OcclusionResult) -> str:
    """The scorecard of the first map as text."""
    card = entry.targets[0].trust
    if card is None:
        return ""
    return f"Scorecard: {card.verdict}, trust {card.trust:.2f}: {'; '.join(card.reasons)}"


def has_scores(run: FinishedRun, entry: OcclusionResult) -> bool:
    """Whether the scores of an image were written."""
    return (run.file(entry.folder) / SCORES).exists()


def explored(run: FinishedRun, entry: OcclusionResult) -> Explored:
    """An image of `occlude` with its scores."""
    folder = run.file(entry.folder)
    measured, crop = load(folder), load_crop(folder)
    pixels = measured.image.pixels.numpy()
    if crop is None:
        crop = (pixels * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return Explored(
        picture=crop,
        size=(int(pixels.shape[1]), int(pixels.shape[2])),
        boxes_P4=torch.cat([grid.boxes_P4 for grid in measured.grids]).numpy(),
        masks=[(grid.name, *grid.shape) for grid in measured.grids],
        labels=measured.labels,
        logits_PK=measured.logits_PK.double().numpy(),
        base_logits_K=measured.base_logits_K.double().numpy(),
        head=measured.head.kind.value,
        given=measured.head.probabilities_given,
        score=measured.score.value,
        density=measured.upsample is Upsample.DENSITY,
        targets=list(dict.fromkeys(target.index for target in entry.targets)),
        log_odds=lambda logits: measured.head.log_odds(torch.from_numpy(logits)).numpy(),
    )


def regions(run: FinishedRun, entry: ReasonsResult) -> Iterator[tuple[str, Regions]]:
    """For each class of an image of `reasons`: the name, and its reasons and pairs."""
    picture = np.asarray(read_rgb(run.file(f"{entry.folder}/input.png")))
    size = (int(picture.shape[0]), int(picture.shape[1]))
    for target in entry.targets:
        named = [
            (
                f"reason {n + 1}: {percent(r.share, 1)}, alone {r.alone:.2f}",
                COLOURS[n % len(COLOURS)],
                r,
            )
            for n, r in enumerate(target.reasons)
        ]
        if target.needed is not None:
            text = f"sufficient and necessary: {percent(target.needed.share, 1)}"
            named.append((text, RED, target.needed))
        layers = [
            Layer(name, colour, target.boxes(reason, size), reason in target.reasons)
            for name, colour, reason in named
        ]
        arcs = _arcs(target.interactions) if target.interactions else []
        yield target.class_, Regions(picture, size, layers, arcs)


def _arcs(found: Interactions) -> list[Arc]:
    """The pairs of cells that are named, a kind at a time."""
    centres = [((y0 + y1) / 2, (x0 + x1) / 2) for y0, x0, y1, x1 in found.boxes]
    largest = max((abs(pair.beyond) for pair in found.pairs), default=1.0)
    return [
        Arc(
            ends=(centres[pair.first], centres[pair.second]),
            kind=f"pairs: {relation.value}",
            colour=colour,
            width=1 + 4 * abs(pair.beyond) / largest,
            text=f"cells {pair.first} and {pair.second}, {relation.value}: occluding both takes "
            f"{pair.both:.2f} of the {found.score}, each alone {pair.first_drop:.2f} and "
            f"{pair.second_drop:.2f}",
        )
        for relation, colour in PAIR_COLOURS.items()
        for pair in found.named(relation)
    ]


def scattered(run: FinishedRun) -> Scattered:
    """The maps of `tsne`, with small pictures of the images."""
    result = embeddings.load(run)
    return Scattered(
        names=result.image_names,
        maps={map_.name: map_.places_N2.astype(np.float64) for map_ in result.maps},
        labels=result.label_names,
        predicted=result.predicted_names,
        near_Nk=result.nearest_Nk,
        looks=looks_of(result),
        pictures=[tile(run.data.image(name)) for name in result.image_names],
    )
