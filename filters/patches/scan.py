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
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnnviz.core.data.datasets import Batch, ImageData, batches
from cnnviz.core.device import in_batches, send
from cnnviz.core.errors import UsageError
from cnnviz.core.graph.fold import rescaling
from cnnviz.core.models.behaviour import FirstBatch
from cnnviz.core.models.layers import Layout, named_layers, not_run, note_repeats, replace_outputs
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import cached_batch, fast
from cnnviz.core.output.blocks import JOURNAL, Elsewhere, alone, of_journals
from cnnviz.core.output.journal import Journal
from cnnviz.filters.channels import choose_filters
from cnnviz.filters.patches.options import MaxPatchesSpec, Ranking
from cnnviz.filters.patches.state import LayerState, check, merge, of_arrays, to_arrays
from cnnviz.filters.patches.top_k import Rescaled, Scores, score_maps

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
    """Images that are read at a time if the user does not set it."""
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
        errors: index and message of each image that could not be used.
        unreadable: the same of images that the loader failed to read, until `errors` has them.
    """

    def __init__(
        self,
        model: Model,
        data: ImageData,
        plan: ScanPlan,
        batch_size: int,
        rows: int | None = None,
        first: FirstBatch | None = None,
    ) -> None:
        """Starts with no images.

        Args:
            model: the network, possibly `fast`.
            data: the images.
            plan: which filters to watch.
            batch_size: images that are read, and counted, at a time.
            rows: images that go through the network at a time; all of a batch if None.
            first: where the first of them are checked.
        """
        self._model, self._data, self._plan = model, data, plan
        self._batch_size, self._rows, self.done = batch_size, rows or batch_size, data.part.start
        self._first = first or FirstBatch(model.outputs, model.name)
        self._sizes = [len(filters) for filters in plan.filters.values()]
        self._state = LayerState.empty(sum(self._sizes), plan.spec.top, model.device)
        self._watched = {
            name: torch.tensor(filters, device=model.device)
            for name, filters in plan.filters.items()
            if len(filters) < plan.layouts[name].shape[0]
        }
        changed = self._rescalings()
        self._rescaled = {name: Rescaled.of(*pair) for name, pair in changed.items()}
        self._all_rescaled = self._rescaled_together(changed)
        self.errors: dict[int, str] = {}
        self.unreadable: dict[int, str] = {}

    @property
    def layers(self) -> dict[str, LayerState]:
        """What is kept of each layer; views, which later batches change."""
        return dict(zip(self._plan.filters, self._state.split(self._sizes), strict=True))

    def batches(self, failed: Callable[[int, str], None]) -> Iterator[Batch]:
        """The batches that are still to do."""
        size, preprocess = self._batch_size, self._model.preprocess
        return batches(self._data, preprocess, size, start=self.done, on_error=failed)

    def _rescalings(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Scale and shift of the watched filters of layers that are rescaled in the fast copy."""
        layers, found = named_layers(self._model.module), dict[str, tuple[Tensor, Tensor]]()
        for name in self._plan.filters:
            if changed := rescaling(layers[name]):
                scale, shift = (values[self._watched.get(name, slice(None))] for values in changed)
                found[name] = scale, shift
        return found

    def _rescaled_together(self, rescaled: Mapping[str, tuple[Tensor, Tensor]]) -> Rescaled | None:
        """How the filters of all layers are rescaled."""
        if not rescaled:
            return None
        device, dtype = self._model.device, self._model.precision.dtype
        one, zero = (torch.full((), n, device=device, dtype=dtype) for n in (1, 0))
        pairs = [
            rescaled.get(name, (one.expand(size), zero.expand(size)))
            for name, size in zip(self._plan.filters, self._sizes, strict=True)
        ]
        return Rescaled.of(*map(torch.cat, zip(*pairs, strict=True)))

    def add(self, batch: Batch) -> None:
        """Adds a batch, in parts if it does not fit the device's memory."""

        def run(part: slice) -> None:
            self._add(batch.images[part], batch.indices[part])

        for _done, size in in_batches(len(batch.indices), self._batch_size, run):
            self._batch_size = size
        self._finish(int(batch.indices[-1]) + 1)

    def _add(self, images_N3HW: Tensor, indices_N: Tensor) -> None:
        """Adds images, without those on which a filter is not finite."""
        sent_N = send(indices_N, self._model.device)
        found = self._scores(images_N3HW, sent_N)
        if self._all_rescaled:
            found = found.true(self._all_rescaled)
        finite_NF = found.ranked.isfinite()
        good_N = finite_NF.all(1).cpu()
        if good_N.all():
            best = self._state.best.merged(found.candidates(sent_N))
            stats = self._state.stats.with_scores(found.ranked, found.highest_NF)
            self._state = LayerState(best, stats)
            return
        for row in (~good_N).nonzero().flatten().tolist():
            self.errors[int(indices_N[row])] = self._reason(int(indices_N[row]), finite_NF[row])
        if good_N.any():
            self._add(images_N3HW[good_N], indices_N[good_N])

    @torch.inference_mode()
    def _scores(self, images_N3HW: Tensor, indices_N: Tensor) -> Scores:
        """Runs images through the network, `rows` at a time; returns the scores of all filters."""
        spec, parts, layers = self._plan.spec, list[Scores](), dict[str, Scores]()
        best = dict(zip(self._plan.filters, self._state.best.split(self._sizes), strict=True))
        first, shown_N = list[tuple[Tensor, object]](), indices_N

        def take(name: str, output: Tensor) -> Tensor:
            maps, rescaled = self._maps(name, output), self._rescaled.get(name)
            layers[name] = score_maps(
                maps, shown_N, best[name], spec.score, spec.per_image, rescaled
            )
            return output

        def run(part: slice) -> None:
            nonlocal shown_N
            shown_N = indices_N[part]
            layers.clear()
            answers = self._model.outputs(images_N3HW[part])
            if not (parts or self._first.done):
                first.append((images_N3HW[part], answers))
            if missing := best.keys() - layers:
                raise not_run(min(missing))
            parts.append(Scores.joined([layers[name] for name in best], 1))

        watches = {name: partial(take, name) for name in best}
        with replace_outputs(self._model.module, watches):
            for _done, size in in_batches(len(indices_N), self._rows, run):
                self._rows = size
        for images, answers in first:
            self._first.check(images, answers)
        return Scores.joined(parts, 0)

    def _maps(self, name: str, output: Tensor) -> Tensor:
        """The maps of the watched filters in a layer's output."""
        maps = self._plan.layouts[name].maps(output)
        return maps[:, self._watched[name]] if name in self._watched else maps

    def _reason(self, index: int, finite_F: Tensor) -> str:
        """Names the first filter that is not finite on an image."""
        number = int((~finite_F).nonzero()[0])
        named = ((name, channel) for name, own in self._plan.filters.items() for channel in own)
        layer, channel = next(islice(named, number, None))
        return (
            f"'{self._data.examples[index].path}' is not used: filter {channel} of layer "
            f"'{layer}' is NaN or infinite there; use --precision fp32, or check the weights"
        )

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
            self._state = LayerState.joined(loaded)
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
    batch_size: int | None = None,
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
        batch_size: images at a time; None for automatic. Halved if they do not fit the device's
            memory.
        saving: where to save the scan's journal, if anywhere.
        progress: called with the number of images just finished.
        spread: computes blocks of the images in other processes.
    """
    quick = fast(model, list(plan.filters), rescaled=plan.spec.score is not Ranking.NORM)
    of = identity(model, data, plan)
    size, rows = batch_size or default_batch_size(model.device), batch_size or cached_batch(quick)
    first = FirstBatch(quick.outputs, model.name)
    run = Scan(quick, data, plan, size, rows, first)

    def block(part: ImageData, journal: Journal) -> None:
        scanned = Scan(quick, part, plan, size, rows, first)
        _go(scanned)
        scanned.save(journal)

    step = of_journals("scan", data, size, of, block, progress, merge, check)
    if (folders := spread(step)) is not None:
        run.load(Journal(folders[0] / JOURNAL, of, data.block, resume=True))
        return run
    journal, every = None, 0
    if saving:
        journal, every = Journal(saving.path, of, data.block, resume=saving.resume), saving.every
        run.load(journal)
        progress(run.done - data.part.start)
    _go(run, journal, every, progress)
    if journal:
        run.save(journal)
    return run


def _go(
    run: Scan,
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
        run.add(batch)
        if journal and number % every == 0:
            run.save(journal)
        advance()
    run.end()
    advance()
