"""One pass over a data set that updates the top k of every filter of every watched layer.

Each layer's output is scored during the forward pass, and only scores and the few winning units are
kept, so memory does not grow with the number of images. A batch counts as a whole or not at all, so
the pass can stop after any batch and resume later with the same results.

Shapes: N images, F filters, H W rows and columns.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnviz.core.data.datasets import Batch, ImageData, batches
from cnnviz.core.device import in_batches, send
from cnnviz.core.errors import UsageError
from cnnviz.core.graph.fold import rescaling
from cnnviz.core.models.behaviour import FirstBatch
from cnnviz.core.models.layers import Layout, named_layers, note_repeats, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.blocks import JOURNAL, Elsewhere, alone, of_journals
from cnnviz.core.output.journal import Journal
from cnnviz.filters.channels import choose_filters
from cnnviz.filters.patches.options import MaxPatchesSpec, Ranking
from cnnviz.filters.patches.state import LayerState, check, merge, of_arrays, to_arrays
from cnnviz.filters.patches.top_k import Rescaled, map_scores, ranked

CPU_BATCH, DEVICE_BATCH = 32, 256


@dataclass(frozen=True)
class ScanPlan:
    """Which filters of which layers a scan watches.

    Attributes:
        filters: layer name to filters, ascending.
        layouts: the layout of each layer's output.
        spec: the options.
    """

    filters: Mapping[str, tuple[int, ...]]
    layouts: Mapping[str, Layout]
    spec: MaxPatchesSpec


def make_plan(model: Model, spec: MaxPatchesSpec) -> ScanPlan:
    """Looks up the layers and filters of a scan in the network, before any data is read."""
    if spec.per_image > 1 and spec.score is not Ranking.MAX:
        raise UsageError(
            f"--per-image {spec.per_image} needs --score max: "
            f"'{spec.score}' ranks whole maps, and an image has one map per filter"
        )
    chosen, layouts = choose_filters(model, spec.filters, spec.layers, spec.seed)
    note_repeats(model, list(chosen))
    return ScanPlan(chosen, layouts, spec)


@dataclass(frozen=True)
class Saving:
    """Where a scan saves its journal.

    Attributes:
        path: the journal's file.
        every: batches between two saves.
        resume: whether to resume from the file, if there is one.
    """

    path: Path
    every: int = 20
    resume: bool = False


def default_batch_size(device: torch.device) -> int:
    """The batch size if the user gives none."""
    return CPU_BATCH if device.type == "cpu" else DEVICE_BATCH


def identity(model: Model, data: ImageData, plan: ScanPlan) -> dict[str, Any]:
    """What the results of a scan depend on, as JSON data."""
    return {
        "weights": model.weights_sha256,
        "model": model.name,
        "outputs": model.choices,
        "preprocessing": repr(model.preprocess),
        "precision": model.precision.value,
        "data": data.fingerprint,
        "layers or filters": {name: list(filters) for name, filters in plan.filters.items()},
        "--top": plan.spec.top,
        "--score": plan.spec.score.value,
        "--per-image": plan.spec.per_image,
    }


class Scan:
    """A scan in progress.

    Attributes:
        done: index of the first image that is still to do.
        layers: what is kept of each layer.
        errors: index and message of each image that could not be used.
        unreadable: the same of images that the loader failed to read, until `errors` has them.
    """

    def __init__(self, model: Model, data: ImageData, plan: ScanPlan, batch_size: int) -> None:
        self._model, self._data, self._plan = model, data, plan
        self._batch_size, self.done = batch_size, data.part.start
        self.layers: Mapping[str, LayerState] = {
            name: LayerState.empty(len(filters), plan.spec.top, model.device)
            for name, filters in plan.filters.items()
        }
        self._watched = {
            name: torch.tensor(filters, device=model.device)
            for name, filters in plan.filters.items()
            if len(filters) < plan.layouts[name].shape[0]
        }
        self._rescaled = self._rescalings()
        self.errors: dict[int, str] = {}
        self.unreadable: dict[int, str] = {}

    def batches(self, failed: Callable[[int, str], None]) -> Iterator[Batch]:
        """The batches that are still to do."""
        size, preprocess = self._batch_size, self._model.preprocess
        return batches(self._data, preprocess, size, start=self.done, on_error=failed)

    def _rescalings(self) -> dict[str, Rescaled]:
        """How the watched filters of layers are rescaled in the fast copy."""
        layers, found = named_layers(self._model.module), dict[str, Rescaled]()
        for name in self.layers:
            if changed := rescaling(layers[name]):
                chosen = self._watched.get(name, slice(None))
                found[name] = Rescaled.of(*(values[chosen] for values in changed))
        return found

    def add(self, batch: Batch) -> None:
        """Adds a batch, in parts if it does not fit the device's memory."""

        def run(part: slice) -> None:
            self._add(batch.images[part], batch.indices[part])

        for _done, size in in_batches(len(batch.indices), self._batch_size, run):
            self._batch_size = size
        self._finish(int(batch.indices[-1]) + 1)

    def _add(self, images_N3HW: Tensor, indices_N: Tensor) -> None:
        """Adds images, without those on which a filter is not finite."""
        while len(indices_N):
            layers, finite = self._forward(images_N3HW, send(indices_N, self._model.device))
            good_N = torch.stack([layer.all(1) for layer in finite.values()]).all(0).cpu()
            if good_N.all():
                self.layers = layers
                return
            for row in (~good_N).nonzero().flatten().tolist():
                self.errors[int(indices_N[row])] = self._reason(int(indices_N[row]), row, finite)
            images_N3HW, indices_N = images_N3HW[good_N], indices_N[good_N]

    def _forward(
        self, images_N3HW: Tensor, indices_N: Tensor
    ) -> tuple[dict[str, LayerState], dict[str, Tensor]]:
        """Runs one forward pass; returns each layer's new state, and which scores are finite."""
        spec, after, finite = self._plan.spec, dict[str, LayerState](), dict[str, Tensor]()

        def watch(name: str) -> Callable[[Tensor], Tensor]:
            before, rescaled = self.layers[name], self._rescaled.get(name)

            def take(output: Tensor) -> Tensor:
                maps = self._maps(name, output)
                highest = scores = map_scores(maps, spec.score, rescaled)
                if spec.score is not Ranking.MAX:
                    highest = map_scores(maps, Ranking.MAX, rescaled)
                best = ranked(before.best, maps, scores, indices_N, spec.per_image, rescaled)
                after[name] = LayerState(best, before.stats.with_scores(scores, highest))
                finite[name] = scores.isfinite()
                return output

            return take

        watches = {name: watch(name) for name in self.layers}
        with torch.inference_mode(), replace_outputs(self._model.module, watches):
            self._model.outputs(images_N3HW)
        return after, finite

    def _maps(self, name: str, output: Tensor) -> Tensor:
        """The maps of the watched filters in a layer's output."""
        maps = self._plan.layouts[name].maps(output)
        return maps[:, self._watched[name]] if name in self._watched else maps

    def _reason(self, index: int, row: int, finite: Mapping[str, Tensor]) -> str:
        """Names the first filter that is not finite on an image."""
        for name, finite_NF in finite.items():
            if broken := (~finite_NF[row]).nonzero().flatten().tolist():
                return (
                    f"'{self._data.examples[index].path}' is not used: filter "
                    f"{self._plan.filters[name][broken[0]]} of layer '{name}' is NaN or infinite "
                    "there; use --precision fp32, or check the weights"
                )
        raise AssertionError("every filter is finite")

    def _finish(self, done: int) -> None:
        """Records that all images before `done` are finished, and which of them are unreadable.

        Images are decoded ahead. Unreadable ones behind `done` are recorded later, as a scan that
        resumes from there meets them again.
        """
        for index in sorted(index for index in self.unreadable if index < done):
            self.errors[index] = self.unreadable.pop(index)
        self.done = done

    def load(self, journal: Journal) -> None:
        """Resumes from a journal, if it has anything."""
        plan = self._plan
        units = [math.prod(plan.layouts[name].shape[1:]) for name in self.layers]
        fits = partial(check, units=units, per_image=plan.spec.per_image)
        if progress := journal.load(to_arrays(self.layers.values()), check=fits):
            loaded = of_arrays(progress.arrays, self._model.device)
            self.layers = dict(zip(self.layers, loaded, strict=True))
            self.done, self.errors = progress.done, dict(progress.errors)

    def save(self, journal: Journal) -> None:
        """Saves the state."""
        journal.save(self.done, self.errors, to_arrays(self.layers.values()))

    def end(self) -> None:
        """Records that all images are finished."""
        self._finish(self._data.part.stop)


def scan(
    model: Model,
    data: ImageData,
    plan: ScanPlan,
    *,
    batch_size: int,
    saving: Saving | None = None,
    progress: Callable[[int], None] = lambda _images: None,
    spread: Elsewhere = alone,
) -> Scan:
    """Runs every image through the model once; returns the finished scan.

    Images that cannot be read, or on which a watched filter is not finite, are not used and are
    listed in its `errors`.

    Args:
        model: the network.
        data: the images.
        plan: which filters to watch.
        batch_size: images at a time; halved if they do not fit the device's memory.
        saving: where to save the scan's journal, if anywhere.
        progress: called with the number of images just finished.
        spread: computes blocks of the images in other processes.
    """
    quick = fast(model, list(plan.filters), rescaled=plan.spec.score is not Ranking.NORM)
    of = identity(model, data, plan)
    run = Scan(quick, data, plan, batch_size)
    looked = FirstBatch(model.outputs, model.name)

    def block(part: ImageData, journal: Journal) -> None:
        scanned = Scan(quick, part, plan, batch_size)
        _go(scanned, looked)
        scanned.save(journal)

    step = of_journals("scan", data, batch_size, of, block, progress, merge, check)
    if (folders := spread(step)) is not None:
        run.load(Journal(folders[0] / JOURNAL, of, data.block, resume=True))
        return run
    journal, every = None, 0
    if saving:
        journal, every = Journal(saving.path, of, data.block, resume=saving.resume), saving.every
        run.load(journal)
        progress(run.done - data.part.start)
    _go(run, looked, journal, every, progress)
    if journal:
        run.save(journal)
    return run


def _go(
    run: Scan,
    looked: FirstBatch,
    journal: Journal | None = None,
    every: int = 0,
    progress: Callable[[int], None] = lambda _images: None,
) -> None:
    """Goes through the images of a scan that are still to do."""
    failed, reached = run.unreadable.__setitem__, run.done

    def advance() -> None:
        nonlocal reached
        progress(run.done - reached)
        reached = run.done

    for number, batch in enumerate(run.batches(failed), start=1):
        looked.check(batch.images)
        run.add(batch)
        if journal and number % every == 0:
            run.save(journal)
        advance()
    run.end()
    advance()
