"""Finished runs as `diff` compares them: what each command wrote, read back from its folder.

Here the analyses meet: each knows its own files, and none knows of another.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.run_data import SUMMARY, RunData, inside, run_folders
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE, from_json, open_arrays, read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cnnviz.diff.sides import Answers, Layer, Side

    Pixels = NDArray[np.uint8]

ASKED = ("mask", "stride", "fill", "score")
AGAIN = "it is an older version's; repeat it (cnnviz rerun)"


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run.

    Attributes:
        folder: where it is.
        summary: its `summary.json`.
        side: what is compared.
        mapped: an image's map of its own prediction (H, W) and the picture beneath it, uint8
            (h, w, 3) or None where it can no longer be read; by the image's name.
        unit: what the values of the maps are.
        kernels: (F, C, H, W) by layer.
    """

    folder: Path
    summary: Mapping[str, Any]
    side: "Side"
    mapped: "Callable[[str], tuple[NDArray[np.floating], Pixels | None]] | None" = None
    unit: str = ""
    kernels: "Mapping[str, NDArray[np.float32]]" = field(default_factory=dict)

    @cached_property
    def data(self) -> RunData:
        """What it went through."""
        return RunData(self.summary)


def read_run(folder: Path) -> Finished:
    """A finished run that can be compared.

    Raises:
        UsageError: there is none in the folder, or it is a share, or of a command that is not
            compared.
        CnnvizError: what it wrote is not there, or damaged.
    """
    found = run_folders(folder)
    if len(found) > 1:
        raise UsageError(f"{folder} holds {len(found)} runs; name one of them: {found[0]}")
    place = found[0] / SUMMARY
    try:
        content: Any = from_json(read_text(place))
        command = str(content["command"])
        known = content["schema"] == f"cnnviz.{command}/1"
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"'{place}' is no summary of cnnviz") from error
    if not known or command not in READERS:
        raise UsageError(
            f"'{place}' is of {command}; diff compares runs of {', '.join(sorted(READERS))}"
        )
    if "shard" in content:
        raise UsageError(f"{folder} is a share; cnnviz merge joins the shares to a run")
    try:
        return READERS[command](place.parent, content)
    except (*DAMAGE, AttributeError, ArithmeticError) as error:
        raise CnnvizError(
            f"what {place.parent} holds is damaged, or not complete: {one_line(error)}"
        ) from error


def _question(content: Mapping[str, Any], **more: object) -> dict[str, object]:
    return {"command": content["command"], **more}


def _failed(content: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(failure["input"]) for failure in content["errors"])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(read_text(path), newline=""))


def _occlude(folder: Path, content: Mapping[str, Any]) -> Finished:
    import hashlib

    import numpy as np

    from cnnviz.diff.sides import Evidence, Side
    from cnnviz.occlusion.experiment import look
    from cnnviz.occlusion.figures import unit
    from cnnviz.occlusion.measurement import load, load_crop
    from cnnviz.occlusion.options import PanelSpec
    from cnnviz.occlusion.results import OcclusionResult

    places: dict[str, Path] = {}
    first: dict[str, str] = {}  # what was asked about first

    def result_of(image: str) -> OcclusionResult:
        measured = load(places[image])
        spec = PanelSpec() if measured.head.has_classes else PanelSpec(targets=(first[image],))
        return look(measured, spec)

    maps, pixels, answers, reliance, shares = [], [], [], [], []
    question: dict[str, object] = {}
    for entry in content["results"]:
        image = str(entry["image"])
        places[image] = inside(folder, str(entry["folder"]))
        first[image] = str(entry["targets"][0]["index"])
        result = result_of(image)
        panels, measured = result.panels, result.measured
        own = {
            "fill": entry.get("fill"),
            "score": str(result.score),
            "mask": [panel.grid.name for panel in panels],
            "stride": panels[0].grid.stride,
            "borders": str(panels[0].grid.border),
            "positions": [list(panel.grid.shape) for panel in panels],
        }
        question = question or own
        if own != question:
            raise UsageError(f"the images of {folder} were not all asked the same")
        maps.append(np.concatenate([panel.values_P.numpy() for panel in panels]))
        shown = (measured.image.pixels.numpy() * 255).round().astype(np.uint8)
        pixels.append(hashlib.sha256(shown.tobytes()).hexdigest())
        label = entry["label"]["class"] if "label" in entry else ""
        answers.append((image, label, measured.labels[panels[0].target], panels[0].reading))
        reliance.append(panels[0].reliance)
        judged = [t.get("inside") for t in entry["targets"] if t["index"] == panels[0].target]
        shares.append(judged[0] if judged else None)
    parts = tuple(len(panel.values_P) for panel in panels) if maps else ()
    evidence = Evidence(
        np.array(maps, np.float32), parts, _floats(reliance), _floats(shares), tuple(pixels)
    )

    def mapped(image: str) -> "tuple[NDArray[np.floating], Pixels | None]":
        result, crop = result_of(image), load_crop(places[image])
        if crop is None:
            pixels = (result.measured.image.pixels.numpy() * 255).round().astype(np.uint8)
            crop = pixels.transpose(1, 2, 0)
        return result.panels[0].map_HW.numpy(), crop

    side = Side(
        str(folder),
        _question(content, **question),
        _answers(answers),
        evidence,
        failed=_failed(content),
    )
    return Finished(folder, content, side, mapped, unit(result) if maps else "")


def _answers(rows: "Sequence[tuple[str, str, str, float]]") -> "Answers":
    import numpy as np

    from cnnviz.diff.sides import Answers

    images, labels, predicted, probability = zip(*rows, strict=True) if rows else ((),) * 4
    return Answers(images, labels, predicted, np.array(probability, np.float64))


def _floats(values: Sequence[float | None]) -> "NDArray[np.float64]":
    import numpy as np

    return np.array([np.nan if value is None else value for value in values], np.float64)


def _audit(folder: Path, content: Mapping[str, Any]) -> Finished:
    import numpy as np
    import torch

    from cnnviz.audit.report import TABLE
    from cnnviz.audit.rows import unpacked
    from cnnviz.core.output.journal import LINES
    from cnnviz.diff.sides import Evidence, Side
    from cnnviz.occlusion.figures import BAR_LABELS
    from cnnviz.occlusion.maps import pixel_map
    from cnnviz.occlusion.masks import mask_grid
    from cnnviz.occlusion.options import Border, Score

    results = content["results"]
    if not set(ASKED) <= set(results):
        raise UsageError(f"{folder}: {AGAIN}")
    mask, stride = (int(results["mask"][0]), int(results["mask"][1])), int(results["stride"])
    entries: dict[str, dict[str, Any]] = {}
    with inside(folder, LINES).open("rb") as stream:
        for line in stream:
            entry = json.loads(line)
            entries[str(entry["image"])] = entry
    named = list(_rows(inside(folder, TABLE)))
    rows = [(r["image"], r["label"], r["predicted"], float(r["probability"])) for r in named]
    ordered = [entries[image] for image, *_ in rows]
    maps_NP = np.stack([unpacked(entry["map"]) for entry in ordered])
    size = tuple(content["model"]["input_size"])
    evidence = Evidence(
        maps_NP,
        (maps_NP.shape[1],),
        _floats([entry["reliance"] for entry in ordered]),
        _floats([entry.get("inside") for entry in ordered]),
        tuple(str(entry["pixels"]) for entry in ordered),
    )

    def mapped(image: str) -> "tuple[NDArray[np.floating], Pixels | None]":
        entry = entries[image]
        grid = mask_grid(size, mask, stride, Border.COVER)
        values = torch.from_numpy(unpacked(entry["map"]).astype(np.float64))
        return pixel_map(values, grid, size).numpy(), found.data.picture(image, entry["crop"])

    side = Side(
        str(folder),
        _question(content, size=size, **{key: results[key] for key in ASKED}),
        _answers(rows),
        evidence,
        failed=_failed(content),
    )
    unit = BAR_LABELS[Score(results["score"])]
    found = Finished(folder, content, side, mapped, unit)
    return found


def _tsne(folder: Path, content: Mapping[str, Any]) -> Finished:
    import numpy as np

    from cnnviz.diff.sides import Side
    from cnnviz.embeddings.features import FEATURES

    with open_arrays(inside(folder, FEATURES)) as stored:
        features = np.array(stored["features"], np.float32)
        images = [str(image) for image in stored["images"]]
    place = f"{content['results']['maps'][0]['folder']}/embedding.csv"
    rows = [
        (r["image"], r["label"], r["predicted"], math.nan) for r in _rows(inside(folder, place))
    ]
    if [row[0] for row in rows] != images:
        raise CnnvizError(f"{folder}: its table and its features are of other images")
    question = _question(content)
    failed = _failed(content)
    side = Side(str(folder), question, _answers(rows), features_ND=features, failed=failed)
    return Finished(folder, content, side)


def _filters(folder: Path, content: Mapping[str, Any]) -> Finished:
    import numpy as np

    from cnnviz.diff.sides import Layer, Side
    from cnnviz.filters.kernels.results import KERNELS

    path = inside(folder, KERNELS)
    if not path.exists():
        raise UsageError(f"{folder} holds no {KERNELS}: {AGAIN}")
    layers, kernels = {}, {}
    with open_arrays(path) as stored:
        for entry in content["results"]["layers"]:
            name, count = str(entry["layer"]), int(entry["filters"])
            own = np.asarray(stored[f"kernels.{name}"], np.float32)
            kernels[name] = own
            dead = np.isin(np.arange(count), entry["dead"])
            norms = np.array(entry["norms"], np.float64)
            layers[name] = Layer(tuple(range(count)), norms, dead, own.reshape(count, -1))
    shapes = {name: own.shape for name, own in kernels.items()}
    side = Side(str(folder), _question(content, layers=shapes), layers=layers)
    return Finished(folder, content, side, kernels=kernels)


def _by_layer(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(str(entry["layer"]), []).append(entry)
    return found


def _layer(entries: Sequence[Mapping[str, Any]], strength: str, dead: Sequence[bool]) -> "Layer":
    import numpy as np

    from cnnviz.diff.sides import Layer

    numbers = tuple(int(entry["filter"]) for entry in entries)
    strengths = _floats([float(entry[strength]) for entry in entries])
    images = None
    if "patches" in entries[0]:
        images = tuple(frozenset(str(p["image"]) for p in entry["patches"]) for entry in entries)
    return Layer(numbers, strengths, np.array(dead, bool), images=images)


def _max_patches(folder: Path, content: Mapping[str, Any]) -> Finished:
    from cnnviz.diff.sides import Side

    results = content["results"]
    if "data" not in results:
        raise UsageError(f"{folder}: {AGAIN}")
    layers = {
        name: _layer(entries, "active_share", [entry["active_share"] == 0 for entry in entries])
        for name, entries in _by_layer(results["filters"]).items()
    }
    asked = {key.replace("_", "-"): results[key] for key in ("score", "top", "per_image")}
    filters = {name: layer.filters for name, layer in layers.items()}
    question = _question(content, data=results["data"]["fingerprint"], **asked, filters=filters)
    side = Side(str(folder), question, layers=layers, failed=_failed(content))
    return Finished(folder, content, side)


def _ablate(folder: Path, content: Mapping[str, Any]) -> Finished:
    from cnnviz.diff.sides import Side
    from cnnviz.filters.ablation.results import load as load_ablation

    result, results, answers = load_ablation(folder), content["results"], None
    if stored := result.predictions:
        if "paths" not in stored:
            raise UsageError(f"{folder}: {AGAIN}")
        classes = stored["classes"]
        columns = stored["paths"], classes[stored["labels"]], classes[stored["before"]]
        known = zip(*columns, stored["before_probability"], strict=True)
        answers = _answers([(str(i), str(t), str(p), float(q)) for i, t, p, q in known])
    rows = [{"layer": e.layer, "filter": e.filter, "change": e.change} for e in result.effects]
    layers: dict[str, Layer] = {
        name: _layer(swept, "change", [False] * len(swept))
        for name, swept in _by_layer(rows).items()
    }
    filters = {name: layer.filters for name, layer in layers.items()}
    question = _question(
        content,
        measure=results["measure"],
        mode=results["mode"],
        off=results["filters"],
        **{"swept filters": filters},
        data=None if answers else results["data"]["fingerprint"],
    )
    failed = _failed(content)
    return Finished(
        folder, content, Side(str(folder), question, answers, layers=layers, failed=failed)
    )


READERS: dict[str, Callable[[Path, Mapping[str, Any]], Finished]] = {
    "occlude": _occlude,
    "audit": _audit,
    "tsne": _tsne,
    "filters": _filters,
    "max-patches": _max_patches,
    "ablate": _ablate,
}
