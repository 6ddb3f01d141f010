"""One pass over a data set that updates the top k of every filter of every watched layer.

Each layer's output is scored during the forward pass, and only scores and the few winning units are
kept, so memory does not grow with the number of images. A batch counts as a whole or not at all, so
the pass can stop after any batch and resume later with the same results.

Shapes: N images, F filters, H W rows and columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnviz.core.data.datasets import Batch, ImageData, batches
from cnnviz.core.device import in_batches
from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import Layout, note_repeats, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.journal import Journal
from cnnviz.filters.channels import choose_filters
from cnnviz.filters.patches.options import MaxPatchesSpec, Ranking
from cnnviz.filters.patches.state import LayerState, of_arrays, to_arrays
from cnnviz.filters.patches.top_k import map_scores, ranked

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
    """Looks up the layers and filters of a scan in the network, before any data is read.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or options contradict.
    """
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


@dataclass(frozen=True)
class ScanState:
    """A scan after some batch.

    Attributes:
        done: index of the first image that is still to do.
        layers: by name.
        errors: index and message of each image that could not be used.
    """

    done: int
    layers: Mapping[str, LayerState]
    errors: Mapping[int, str] = field(default_factory=dict)


def default_batch_size(device: torch.device) -> int:
    """The batch size if the user gives none."""
    return CPU_BATCH if device.type == "cpu" else DEVICE_BATCH


def identity(model: Model, data: ImageData, plan: ScanPlan) -> dict[str, Any]:
    """What the results of a scan depend on, as JSON data."""
    return {
        "weights": model.weights_sha256,
        "model": model.name,
        "preprocessing": repr(model.preprocess),
        "precision": model.precision.value,
        "data": data.fingerprint,
        "layers or filters": {name: list(filters) for name, filters in plan.filters.items()},
        "--top": plan.spec.top,
        "--score": plan.spec.score.value,
        "--per-image": plan.spec.per_image,
    }


def empty_state(model: Model, plan: ScanPlan, start: int = 0) -> ScanState:
    """The state before the first batch, which begins at image `start`."""
    layers = {
        name: LayerState.empty(len(filters), plan.spec.top, model.device)
        for name, filters in plan.filters.items()
    }
    return ScanState(start, layers)


def _maps(output: Tensor, filters: tuple[int, ...], layout: Layout) -> Tensor:
    """The maps of the watched filters in a layer's output."""
    maps = layout.maps(output)
    if len(filters) == layout.shape[0]:
        return maps
    return maps[:, torch.tensor(filters, device=maps.device)]


def _forward(
    model: Model,
    plan: ScanPlan,
    layers: Mapping[str, LayerState],
    images_N3HW: Tensor,
    indices_N: Tensor,
) -> tuple[dict[str, LayerState], dict[str, Tensor]]:
    """Runs one forward pass; returns each layer's new state, and which scores (N, F) are finite."""
    after: dict[str, LayerState] = {}
    finite: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Tensor], Tensor]:
        before = layers[name]

        def take(output: Tensor) -> Tensor:
            maps = _maps(output, plan.filters[name], plan.layouts[name])
            scores = map_scores(maps, plan.spec.score)
            highest = scores if plan.spec.score is Ranking.MAX else map_scores(maps, Ranking.MAX)
            best = ranked(before.best, maps, scores, indices_N, plan.spec.per_image)
            after[name] = LayerState(best, before.stats.with_scores(scores, highest))
            finite[name] = scores.isfinite()
            return output

        return take

    with (
        torch.inference_mode(),
        replace_outputs(model.module, {name: watch(name) for name in layers}),
    ):
        model.outputs(images_N3HW)
    return after, finite


def _name_broken(plan: ScanPlan, finite: Mapping[str, Tensor], row: int, path: str) -> str:
    for name, finite_NF in finite.items():
        broken = (~finite_NF[row]).nonzero()
        if len(broken):
            number = plan.filters[name][int(broken[0])]
            return (
                f"'{path}' is not used: filter {number} of layer '{name}' is NaN or infinite "
                "there; use --precision fp32, or check the weights"
            )
    raise AssertionError("every filter is finite")


def _with_images(
    model: Model, plan: ScanPlan, state: ScanState, batch: Batch, data: ImageData
) -> ScanState:
    """Adds a batch to the state, without images on which a filter is not finite."""
    images_N3HW, indices_N = batch.images, batch.indices
    errors = dict(state.errors)
    while len(indices_N):
        after, finite = _forward(model, plan, state.layers, images_N3HW, indices_N.to(model.device))
        good_N = torch.stack([layer.all(1) for layer in finite.values()]).all(0).cpu()
        if good_N.all():
            return replace(state, layers=after, errors=errors)
        for row in (~good_N).nonzero().flatten().tolist():
            index = int(indices_N[row])
            errors[index] = _name_broken(plan, finite, row, data.examples[index].path)
        images_N3HW, indices_N = images_N3HW[good_N], indices_N[good_N]
    return replace(state, errors=errors)


class _Scan:
    """A scan in progress: its state, and the batch size that fits the memory.

    `unreadable` are index and message of images that the loader failed to read, until `state` lists
    them.
    """

    def __init__(self, model: Model, data: ImageData, plan: ScanPlan, batch_size: int) -> None:
        self._model, self._data, self._plan = model, data, plan
        self._batch_size = batch_size
        self.state = empty_state(model, plan, data.part.start)
        self.unreadable: dict[int, str] = {}

    def take(self, batch: Batch) -> None:
        """Adds a batch, in parts if it does not fit the device's memory."""

        def run(part: slice) -> None:
            taken = Batch(batch.indices[part], batch.images[part], batch.labels[part])
            self.state = _with_images(self._model, self._plan, self.state, taken, self._data)

        for _done, size in in_batches(len(batch.indices), self._batch_size, run):
            self._batch_size = size

    def reach(self, done: int) -> None:
        """Records that all images before `done` are finished, and which of them are unreadable.

        Images are decoded ahead. Unreadable ones behind `done` are recorded later, as a scan that
        resumes from there meets them again.
        """
        passed = sorted(index for index in self.unreadable if index < done)
        new = {index: self.unreadable.pop(index) for index in passed}
        self.state = replace(self.state, done=done, errors={**self.state.errors, **new})

    def load(self, journal: Journal) -> None:
        """Resumes from a journal, if it has anything."""
        layers = self.state.layers
        if progress := journal.load(to_arrays(layers.values())):
            loaded = of_arrays(progress.arrays, self._model.device)
            states = dict(zip(layers, loaded, strict=True))
            self.state = ScanState(progress.done, states, progress.errors)

    def save(self, journal: Journal) -> None:
        """Saves the state."""
        journal.save(self.state.done, self.state.errors, to_arrays(self.state.layers.values()))


def scan(
    model: Model,
    data: ImageData,
    plan: ScanPlan,
    *,
    batch_size: int,
    saving: Saving | None = None,
    progress: Callable[[int], None] = lambda _images: None,
) -> ScanState:
    """Runs every image through the model once.

    Images that cannot be read, or on which a watched filter is not finite, are not used and are
    listed in the state's `errors`.

    Args:
        model: the network.
        data: the images.
        plan: which filters to watch.
        batch_size: images at a time; halved if they do not fit the device's memory.
        saving: where to save the scan's journal, if anywhere.
        progress: called with the number of images just finished.

    Raises:
        CnnvizError: the journal belongs to another scan, or one image does not fit the memory.
    """
    run = _Scan(fast(model, list(plan.filters)), data, plan, batch_size)
    journal, every = None, 0
    if saving:
        of, every = identity(model, data, plan), saving.every
        journal = Journal(saving.path, of, data.block, resume=saving.resume)
        run.load(journal)
        progress(run.state.done - data.part.start)
    loader = batches(
        data,
        model.preprocess,
        batch_size,
        start=run.state.done,
        on_error=run.unreadable.__setitem__,
    )
    for number, batch in enumerate(loader, start=1):
        before = run.state.done
        run.take(batch)
        run.reach(int(batch.indices[-1]) + 1)
        if journal and number % every == 0:
            run.save(journal)
        progress(run.state.done - before)
    before = run.state.done
    run.reach(data.part.stop)
    if journal:
        run.save(journal)
    progress(run.state.done - before)
    return run.state
