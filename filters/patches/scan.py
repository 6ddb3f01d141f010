"""One pass over a data set that feeds the running top k of every filter of every layer.

Each watched layer's output is scored the moment the layer puts it out, and only scores and the
few winning places are kept: no layer's maps outlive the next layer, and nothing grows with the
number of images. A batch counts as a whole or not at all, so the pass can stop after any batch
and resume later as if nothing had happened.

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
from cnnviz.core.models.layers import Layout, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.journal import Journal
from cnnviz.filters.patches.choices import Ranking
from cnnviz.filters.patches.plan import ScanPlan
from cnnviz.filters.patches.state import LayerState, of_arrays, to_arrays
from cnnviz.filters.patches.top_k import map_scores, ranked

CPU_BATCH, DEVICE_BATCH = 32, 256


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
    """Images at a time where the user does not say."""
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
    """The state before the first batch, which begins at that place of the data."""
    layers = {
        name: LayerState.empty(len(filters), plan.spec.top, model.device)
        for name, filters in plan.filters.items()
    }
    return ScanState(start, layers)


def _maps(output: Tensor, filters: tuple[int, ...], layout: Layout) -> Tensor:
    """A layer's output as maps of the filters that are watched."""
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
    """One forward pass: each layer's state after it, and which scores (N, F) are finite."""
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
                f"'{path}' is left out: filter {number} of layer '{name}' is NaN or infinite "
                "there; use --precision fp32, or check the weights"
            )
    raise AssertionError("every filter is finite")


def _with_images(
    model: Model, plan: ScanPlan, state: ScanState, batch: Batch, data: ImageData
) -> ScanState:
    """The state with a batch taken in, but for images on which a filter is not finite."""
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
    """A scan under way: the state, and the batch size that has fitted so far.

    `unreadable` is what `batches` could not read, place in the data to message, as long as the
    state does not list it.
    """

    def __init__(self, model: Model, data: ImageData, plan: ScanPlan, batch_size: int) -> None:
        self._model, self._data, self._plan = model, data, plan
        self._batch_size = batch_size
        self.state = empty_state(model, plan, data.part.start)
        self.unreadable: dict[int, str] = {}

    def take(self, batch: Batch) -> None:
        """Takes a batch in, in parts if the device's memory asks for it."""

        def run(part: slice) -> None:
            taken = Batch(batch.indices[part], batch.images[part], batch.labels[part])
            self.state = _with_images(self._model, self._plan, self.state, taken, self._data)

        for _done, size in in_batches(len(batch.indices), self._batch_size, run):
            self._batch_size = size

    def reach(self, done: int) -> None:
        """Notes that all images before `done` are through, and which of them are unreadable.

        Pictures are decoded ahead: one known to be unreadable may lie behind `done`, and a scan
        that goes on from there would meet it again, so it is not noted yet.
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

    Images that cannot be read, or on which a watched filter is not finite, are left out of every
    filter's results and listed in the state's `errors`.

    Args:
        model: the network.
        data: the images.
        plan: what to keep for which filters.
        batch_size: images at a time; halved where the device's memory does not hold them.
        saving: where to write down how far the scan has come, if anywhere.
        progress: called with the number of images just gone through.

    Raises:
        CnnvizError: the state file is of another scan, or one image does not fit the memory.
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
