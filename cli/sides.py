"""Finished runs as `diff` compares them: the results of each command as columns (`Side`)."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.audit import results as audits
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.boxes import BoxReading
from cnnviz.core.output.record import to_json
from cnnviz.core.output.summary import FinishedRun, read_summary, run_folders
from cnnviz.diff.sides import Answers, Evidence, Layer, Side
from cnnviz.embeddings import results as embeddings
from cnnviz.embeddings.features import FEATURES, read_vectors
from cnnviz.filters.ablation import results as ablation
from cnnviz.filters.kernels import results as kernels
from cnnviz.filters.kernels.results import FilterResults
from cnnviz.filters.patches import results as patches
from cnnviz.filters.patches.results import MaxPatches
from cnnviz.occlusion.experiment import look
from cnnviz.occlusion.figures import COMPARED, unit
from cnnviz.occlusion.maps import pixel_map
from cnnviz.occlusion.masks import mask_grid
from cnnviz.occlusion.measurement import load, load_crop
from cnnviz.occlusion.options import Border, PanelSpec, Score
from cnnviz.occlusion.results import OcclusionResult, load_run

Pixels = NDArray[np.uint8]
Mapped = Callable[[str], tuple[NDArray[np.floating], Pixels | None]]
"""An image's map (H, W) of its predicted class, and the picture below it, (h, w, 3) or None."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A finished run as columns, and what its figures need.

    Attributes:
        run: the run.
        side: what is compared.
        mapped: the map of an image, by the image's name.
        unit: of the maps' values.
        result: of `filters` and `max-patches`, for kernels and patches.
    """

    run: FinishedRun
    side: Side
    mapped: Mapped | None = None
    unit: str = ""
    result: FilterResults | MaxPatches | None = None


def read_run(named: Path, images_below: Sequence[Path] = ()) -> ComparedRun:
    """Reads a finished run that can be compared; `read_summary` says what `images_below` is."""
    folders = run_folders(named)
    if len(folders) > 1:
        raise UsageError(f"{named} holds {len(folders)} runs; name one of them: {folders[0]}")
    run = read_summary(folders[0], images_below)
    if run.command not in READERS:
        raise UsageError(
            f"{run.folder} is a run of {run.command}; diff compares runs of "
            f"{', '.join(sorted(READERS))}"
        )
    if run.summary.shard is not None:
        raise UsageError(f"{named} is a shard; cnnviz merge joins the shards of a run")
    with run.reading():
        return READERS[run.command](run)


def _side(run: FinishedRun, question: Mapping[str, object], **columns: Any) -> Side:
    asked = {"command": run.command, **question}
    return Side(str(run.folder), asked, failed=run.failed, **columns)


def _answers(rows: Sequence[tuple[str, str, str, float]]) -> Answers:
    images, labels, predicted, probability = zip(*rows, strict=True) if rows else ((),) * 4
    return Answers(images, labels, predicted, np.array(probability, np.float64))


def _floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _shown(result: OcclusionResult) -> Pixels:
    """The working image, uint8 (3, H, W)."""
    pixels: Pixels = (result.measured.image.pixels.numpy() * 255).round().astype(np.uint8)
    return pixels


def _by_map(
    entries: Iterable[OcclusionResult],
) -> Iterator[tuple[str, tuple[OcclusionResult, int]]]:
    """What is compared by its name, with the target: an image, or each box of one."""
    for entry in entries:
        if entry.targets[0].box is None:
            yield entry.image, (entry, entry.targets[0].index)
            continue
        for panel in entry.targets:
            yield f"{entry.image}: {panel.class_}", (entry, panel.index)


def _occlude(run: FinishedRun) -> ComparedRun:
    entries = dict(_by_map(load_run(run)))
    measured_in = lru_cache(maxsize=1)(lambda folder: load(run.file(folder)))

    def result_of(name: str) -> OcclusionResult:
        entry, index = entries[name]
        measured = measured_in(entry.folder)
        if measured.head.has_classes:
            return look(measured, PanelSpec())
        if isinstance(measured.reading, BoxReading):
            return look(measured, PanelSpec(boxes=(str(index + 1),)))
        return look(measured, PanelSpec(targets=(str(index),)))

    maps, pixels, answers, reliance, inside = [], [], [], [], []
    question: dict[str, object] = {}
    parts: tuple[int, ...] = ()
    unit_ = ""
    for name, (entry, _) in entries.items():
        result = result_of(name)
        panels = result.panels
        settings: dict[str, object] = {
            "fill": entry.fill,
            "score": str(result.score),
            "mask": [panel.grid.name for panel in panels],
            "stride": panels[0].grid.stride,
            "borders": str(panels[0].grid.border),
            "positions": [list(panel.grid.shape) for panel in panels],
        }
        question, unit_ = question or settings, unit(result)
        if settings != question:
            raise UsageError(f"the images in {run.folder} have different settings")
        parts = tuple(len(panel.values_P) for panel in panels)
        maps.append(np.concatenate([panel.values_P.numpy() for panel in panels]))
        pixels.append(hashlib.sha256(_shown(result).tobytes()).hexdigest())
        label = entry.label.class_ if entry.label else ""
        answers.append((name, label, panels[0].class_, panels[0].reading))
        reliance.append(panels[0].reliance)
        inside.append(next((t.inside for t in entry.targets if t.index == panels[0].index), None))

    def mapped(name: str) -> tuple[NDArray[np.floating], Pixels | None]:
        result, crop = result_of(name), load_crop(run.file(entries[name][0].folder))
        if crop is None:
            crop = _shown(result).transpose(1, 2, 0)
        return result.panels[0].map_HW.numpy(), crop

    evidence = Evidence(
        np.array(maps, np.float32), parts, _floats(reliance), _floats(inside), tuple(pixels)
    )
    side = _side(run, question, answers=_answers(answers), evidence=evidence)
    return ComparedRun(run, side, mapped, unit_)


def _audit(run: FinishedRun) -> ComparedRun:
    result = audits.load(run)
    rows, size = result.rows, run.summary.model.input_size if run.summary.model else (0, 0)
    place_of = {image: place for place, image in enumerate(rows.images)}
    maps_NP = rows.maps_NRC.reshape(len(rows), -1)
    evidence = Evidence(maps_NP, (maps_NP.shape[1],), rows.reliance_N, rows.inside_N, rows.pixels)
    answers = Answers(
        rows.images,
        tuple(row.label for row in result.table),
        tuple(row.predicted for row in result.table),
        rows.probability_N,
    )

    def mapped(image: str) -> tuple[NDArray[np.floating], Pixels | None]:
        place = place_of[image]
        grid = mask_grid(_pair(size), _pair(result.mask), result.stride, Border.COVER)
        values = torch.from_numpy(maps_NP[place].astype(np.float64))
        picture = run.data.picture(image, rows.crops[place])
        return pixel_map(values, grid, _pair(size)).numpy(), picture

    question = {
        "size": tuple(size),
        "mask": list(result.mask),
        "stride": result.stride,
        "fill": result.fill,
        "score": result.score,
    }
    side = _side(run, question, answers=answers, evidence=evidence)
    return ComparedRun(run, side, mapped, f"mean {COMPARED[Score(result.score)]}")


def _pair(sides: Sequence[int]) -> tuple[int, int]:
    rows, columns = sides
    return rows, columns


def _tsne(run: FinishedRun) -> ComparedRun:
    result = embeddings.load(run)
    features_ND, images = read_vectors(run.file(FEATURES))
    if result.image_names != images:
        raise CnnvizError(f"{run.folder}: its table and its features are of other images")
    unknown_N = np.full(len(images), np.nan)
    answers = Answers(images, result.label_names, result.predicted_names, unknown_N)
    return ComparedRun(run, _side(run, {}, answers=answers, features_ND=features_ND))


def _filters(run: FinishedRun) -> ComparedRun:
    result = kernels.load(run)
    layers = {
        layer.layer: Layer(
            tuple(range(layer.filters)),
            np.array(layer.norms, np.float64),
            np.isin(np.arange(layer.filters), layer.dead),
            layer.kernels.reshape(layer.filters, -1),
        )
        for layer in result.layers
    }
    question = {"layers": {layer.layer: layer.kernels.shape for layer in result.layers}}
    return ComparedRun(run, _side(run, question, layers=layers), result=result)


class _OfLayer(Protocol):
    """A record that names a layer."""

    @property
    def layer(self) -> str: ...


Entry = TypeVar("Entry", bound=_OfLayer)


def _by_layer(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    layers: dict[str, list[Entry]] = {}
    for entry in entries:
        layers.setdefault(entry.layer, []).append(entry)
    return layers


def _max_patches(run: FinishedRun) -> ComparedRun:
    result = patches.load(run)
    layers = {
        name: Layer(
            tuple(entry.filter for entry in entries),
            _floats([entry.active_share for entry in entries]),
            np.array([entry.dead for entry in entries], bool),
            images=tuple(frozenset(p.image for p in entry.patches) for entry in entries),
        )
        for name, entries in _by_layer(result.filters).items()
    }
    question = {
        "score": result.score,
        "top": result.top,
        "per-image": result.per_image,
        "data": result.data.fingerprint,
        "filters": {name: layer.filters for name, layer in layers.items()},
    }
    return ComparedRun(run, _side(run, question, layers=layers), result=result)


def _ablate(run: FinishedRun) -> ComparedRun:
    result, answers = ablation.load(run), None
    if stored := result.predictions:
        classes = stored["classes"]
        answers = Answers(
            images=tuple(stored["paths"].tolist()),
            labels=tuple(classes[stored["labels"]].tolist()),
            predicted=tuple(classes[stored["before"]].tolist()),
            probability_N=stored["before_probability"].astype(np.float64),
        )
    layers = {
        name: Layer(
            tuple(effect.filter for effect in effects),
            _floats([effect.change for effect in effects]),
            np.zeros(len(effects), bool),
        )
        for name, effects in _by_layer(result.effects).items()
    }
    question = {
        "measure": result.measure,
        "mode": result.mode,
        "off": to_json(result.filters),
        "swept filters": {name: layer.filters for name, layer in layers.items()},
        "data": None if answers else result.data.fingerprint,
    }
    return ComparedRun(run, _side(run, question, answers=answers, layers=layers))


READERS: dict[str, Callable[[FinishedRun], ComparedRun]] = {
    "occlude": _occlude,
    "audit": _audit,
    "tsne": _tsne,
    "filters": _filters,
    "max-patches": _max_patches,
    "ablate": _ablate,
}
