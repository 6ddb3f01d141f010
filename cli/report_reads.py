"""What pages show of a finished run, read back from its folder: facts, tables, scores, maps."""

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.run_data import SUMMARY, RunData, inside
from cnnviz.core.errors import UsageError
from cnnviz.core.files import from_json, read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnviz.report.explorer import Explored
    from cnnviz.report.scatter import Scattered

SHOWN = 400
"""Letters of a command line that are shown."""


def read_summary(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run's folder and summary.

    Raises:
        UsageError: it is none of cnnviz.
    """
    place = folder / SUMMARY
    try:
        content: Any = from_json(read_text(place))
        known = content["schema"] == f"cnnviz.{content['command']}/1"
        known = known and isinstance(content["files"], list) and "results" in content
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"'{place}' is no summary of cnnviz") from error
    if not known:
        raise UsageError(f"'{place}' is no summary of cnnviz")
    return place.parent, content


def facts(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a page says of a run first: a name and a value each."""
    line = "cnnviz " + shlex.join(map(str, content["argv"]))
    yield "command", line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
    model = content["model"]
    if model:
        size = "×".join(map(str, model["input_size"]))
        yield "model", f"{model['name']}, {model['classes']} classes, {size}, {model['head']}"
        yield "weights", str(model["weights_sha256"])[:12]
        yield "device", f"{content['device']}, {content['precision']}"
    yield "version", str(content["version"])
    yield "seconds", f"{content['elapsed_seconds']:.1f}"


def tables(
    folder: Path, content: Mapping[str, Any]
) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """The results as a table, where they are a list of entries, and every CSV of the run."""
    results = content["results"]
    if isinstance(results, list) and results:
        rows = [dict(_flat(part)) for entry in results for part in _parts(entry)]
        header = list(dict.fromkeys(name for row in rows for name in row))
        yield "results", header, [[row.get(name, "") for name in header] for row in rows]
    for name in map(str, content["files"]):
        if not name.endswith(".csv"):
            continue
        text = read_text(inside(folder, name))
        lines = list(csv.reader(io.StringIO(text, newline="")))
        if len(lines) > 1:
            yield name, lines[0], [list(line) for line in lines[1:]]


def _parts(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry as rows: one for each class or map where it is about several."""
    image = {"image": entry.get("image", "")}
    for name in ("targets", "maps"):
        if isinstance(entry.get(name), list):
            yield from ({**image, **part} for part in entry[name])
            return
    yield {**image, **entry}


def _flat(entry: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """What can stand in a row: plain values, those of dictionaries, of lists the first entry's."""
    for key, value in entry.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if len(before) < 2 * SHOWN:
                yield from _flat(value, f"{name} ")
        elif isinstance(value, list):
            if value and isinstance(value[0], dict):
                if key != "top5":
                    yield from _flat(value[0], f"{name} ")
            elif len(value) <= 4:
                yield name, ", ".join(map(str, value))
        else:
            yield name, value


def holds_scores(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the scores of an image are there."""
    from cnnviz.occlusion.measurement import SCORES

    return (inside(folder, str(entry.get("folder", "."))) / SCORES).exists()


def scorecard(entry: Mapping[str, Any]) -> str:
    """What the scorecard of the first map says."""
    card = entry["targets"][0].get("trust")
    if not card:
        return ""
    trust = "" if card["trust"] is None else f", trust {card['trust']:.2f}"
    reasons = "; ".join(card["reasons"])
    return f"Scorecard: {card['verdict']}{trust}. {reasons}".strip()


def explored(folder: Path, entry: Mapping[str, Any]) -> "Explored":
    """An image of `occlude`, to be asked."""
    import numpy as np
    import torch

    from cnnviz.occlusion.measurement import load, load_crop
    from cnnviz.occlusion.options import Upsample
    from cnnviz.report.explorer import Explored

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
        targets=list(dict.fromkeys(int(target["index"]) for target in entry["targets"])),
    )


def scattered(folder: Path, content: Mapping[str, Any]) -> "Scattered":
    """The maps of `tsne`, with small pictures of the images."""
    import numpy as np
    from PIL import Image

    from cnnviz.report.scatter import TILE, Scattered

    maps, rows = {}, list[list[str]]()
    for entry in content["results"]["maps"]:
        text = read_text(inside(folder, f"{entry['folder']}/embedding.csv"))
        _, *rows = csv.reader(io.StringIO(text, newline=""))
        perplexity = entry["perplexity"]
        name = "PCA" if perplexity is None else f"perplexity {perplexity:g}"
        maps[name] = np.array([[float(row[3]), float(row[4])] for row in rows])
    names = [row[0] for row in rows]
    place = {name: number for number, name in enumerate(names)}
    text = read_text(inside(folder, "neighbors.csv"))
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    columns = [n for n, name in enumerate(header) if name.startswith("neighbor")]
    near = np.full((len(names), len(columns)), -1, np.int64)
    for line in lines:
        near[place[line[0]]] = [place[line[column]] for column in columns]
    data = RunData(content)
    pictures: list[NDArray[np.uint8] | None] = []
    for name in names:
        found = data.image(name)
        if found is None:
            pictures.append(None)
            continue
        found.thumbnail((TILE, TILE))
        square = Image.new("RGB", (TILE, TILE), (200, 200, 200))
        square.paste(found, ((TILE - found.width) // 2, (TILE - found.height) // 2))
        pictures.append(np.asarray(square))
    labels, predicted = ([row[column] for row in rows] for column in (1, 2))
    return Scattered(names, maps, labels, predicted, near, pictures)
