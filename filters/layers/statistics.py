"""Statistics of a network's values on data: layer by layer, streamed.

The outputs of every layer are counted by magnitude in octaves (powers of two), which need no range
beforehand and add up exactly over parts of the stream. With gradients, so is the gradient of each
image's cross-entropy loss with respect to these outputs. Gradients whose magnitudes fall layer by
layer towards the input vanish, ones that rise explode (Glorot and Bengio 2010, "Understanding the
difficulty of training deep feedforward neural networks").

Shapes: N images, K classes, C channels, B octaves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnviz.core.data.datasets import Batch, ImageData, batches, none_usable
from cnnviz.core.data.labels import match_labels
from cnnviz.core.device import in_batches
from cnnviz.core.graph.trace import Untraceable, describe, trace
from cnnviz.core.models.behaviour import FirstBatch
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import cached_batch, fast, frozen
from cnnviz.core.models.variants import gradients as slopes_of
from cnnviz.core.output.blocks import JOURNAL, Elsewhere, alone, of_journals
from cnnviz.core.output.journal import Arrays, Journal, Progress
from cnnviz.filters.layers.results import (
    DataStats,
    Inventory,
    MeasuredLayer,
    SpreadRecord,
)
from cnnviz.filters.layers.spread import Spread, spread_of

DEFAULT_BATCH = 32


@dataclass(frozen=True, eq=False)
class Statistics:
    """The spreads of layers over a data set, by name.

    `gradients` is empty if they were not requested. `labelled` counts the images whose loss was
    taken at the true class, not the predicted one; `errors` are (image, message).
    """

    images: int
    labelled: int
    activations: Mapping[str, Spread]
    gradients: Mapping[str, Spread]
    errors: tuple[tuple[str, str], ...]

    def added_to(self, inventory: Inventory) -> Inventory:
        """The inventory with these statistics."""

        def record(spread: Spread | None) -> SpreadRecord | None:
            return spread.record() if spread else None

        rows = [
            MeasuredLayer(
                **vars(row),
                activations=record(self.activations.get(row.name)),
                gradients=record(self.gradients.get(row.name)),
            )
            for row in inventory.layers
        ]
        data = DataStats(self.images, self.labelled, bool(self.gradients))
        return replace(inventory, data=data, layers=tuple(rows))


def measure(
    model: Model,
    data: ImageData,
    layers: Sequence[str],
    *,
    gradients: bool = False,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda _steps: None,
    spread: Elsewhere = alone,
) -> Statistics:
    """Streams the data through the network once.

    Args:
        model: the network, which is not modified.
        data: the images.
        layers: names of the layers to measure.
        gradients: whether to measure the gradients of the loss as well.
        batch_size: images at a time; None for automatic. Only the last digits of means depend on
            it.
        advance: called with the number of images just done.
        spread: computes blocks of the images in other processes.
    """
    classes = match_labels(data, model) if gradients and data.classes else ()
    axes = _channel_axes(model)
    # A fast copy may have gradients where the network cuts them.
    quick = model if gradients else fast(model, layers)
    looked = FirstBatch(quick.outputs, model.name)
    requested = quick.batch_size(batch_size)
    size, rows = requested or DEFAULT_BATCH, requested or cached_batch(quick) or DEFAULT_BATCH

    def go(part: ImageData, advance: Callable[[int], None]) -> _Found:
        found = _Found({}, {})

        def failed(index: int, message: str) -> None:
            found.errors[index] = message
            advance(1)

        def run(batch: Batch, rows: slice) -> None:
            images, labels = batch.images[rows], batch.labels[rows]
            found.add(_one_pass(quick, images, labels, layers, axes, classes, gradients))

        fits = rows
        for batch in batches(part, model.preprocess, size, on_error=failed):
            count, done = len(batch.images), 0
            looked.check(batch.images)
            for reached, fitting in in_batches(count, fits, partial(run, batch)):
                advance(reached - done)
                done, fits = reached, fitting
            found.images += count
            found.labelled += int((batch.labels >= 0).sum()) if classes else 0
        return found

    def block(part: ImageData, journal: Journal) -> None:
        found = go(part, lambda _steps: None)
        journal.save(part.part.stop, found.errors, found.arrays(layers))

    of = {
        "weights": model.weights_sha256,
        "model": model.name,
        "preprocessing": repr(model.preprocess),
        "precision": model.precision.value,
        "layers": list(layers),
        "--gradients": gradients,
    }
    step = of_journals("layers", data, size, of, block, advance, merge, check)
    if (folders := spread(step)) is None:
        found = go(data, advance)
    else:
        stored = Journal(folders[0] / JOURNAL, of, data.block, resume=True).load({}, check=check)
        assert stored is not None  # noqa: S101
        found = _Found.of_arrays(stored.arrays, layers)
        found.errors.update(stored.errors)
    errors = tuple((data.examples[i].path, text) for i, text in sorted(found.errors.items()))
    if not found.images:
        raise none_usable(data, errors)
    return Statistics(found.images, found.labelled, found.outputs, found.slopes, errors)


@dataclass
class _Found:
    """The spreads of layers over some images, by name; and what `Statistics` has of these."""

    outputs: dict[str, Spread]
    slopes: dict[str, Spread]
    images: int = 0
    labelled: int = 0
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, parts: tuple[dict[str, Spread], dict[str, Spread]]) -> None:
        """Adds the spreads of other images."""
        for total, new in zip((self.outputs, self.slopes), parts, strict=True):
            for name, spread in new.items():
                total.setdefault(name, Spread()).add(spread)

    def arrays(self, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The arrays of a journal: of each layer by its number, empty if it did not run."""
        arrays = {"images": np.array([self.images, self.labelled])}
        for kind, spreads in (("outputs", self.outputs), ("slopes", self.slopes)):
            for number, name in enumerate(layers):
                own = spreads.get(name, Spread()).arrays()
                arrays |= {f"{kind}.{number}.{key}": array for key, array in own.items()}
        return arrays

    @classmethod
    def of_arrays(cls, arrays: Arrays, layers: Sequence[str]) -> "_Found":
        """The inverse of `arrays`."""
        images, labelled = arrays["images"].tolist()
        found = cls({}, {}, images, labelled)
        for kind, spreads in (("outputs", found.outputs), ("slopes", found.slopes)):
            for number, name in enumerate(layers):
                if (spread := _spread(arrays, f"{kind}.{number}")).count:
                    spreads[name] = spread
        return found


def _spread(arrays: Arrays, key: str) -> Spread:
    length = len(key) + 1
    return Spread.of_arrays({k[length:]: v for k, v in arrays.items() if k.startswith(f"{key}.")})


def _keys(arrays: Arrays) -> list[str]:
    """The kinds and numbers of the layers in a journal."""
    return [key.removesuffix(".counts") for key in arrays if key.endswith(".counts")]


def check(progress: Progress) -> None:
    """Raises one of `BROKEN` unless the arrays are of the images that are done."""
    images, labelled = progress.arrays["images"].tolist()
    failed = sum(place < progress.done for place in progress.errors)
    if images + failed != progress.done - progress.block.start or not 0 <= labelled <= images:
        raise ValueError(f"it counts {images} images")
    for key in _keys(progress.arrays):
        _spread(progress.arrays, key)


def merge(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of all images from those of their blocks."""
    joined = {"images": np.sum([part["images"] for part in parts], axis=0)}
    for key in _keys(parts[0]):
        total = Spread()
        for part in parts:
            total.add(_spread(part, key))
        joined |= {f"{key}.{name}": array for name, array in total.arrays().items()}
    return joined


def _one_pass(
    model: Model,
    images_N3HW: Tensor,
    labels_N: Tensor,
    layers: Sequence[str],
    axes: Mapping[str, int],
    classes: Sequence[int],
    gradients: bool,
) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Spreads of outputs and gradients of some images."""
    outputs: dict[str, Spread] = {}
    slopes: dict[str, Spread] = {}
    tracking = frozen(model.module) if gradients else torch.no_grad()
    with _watched(model.module, layers, axes, outputs, slopes), tracking:
        leaf = images_N3HW.detach().clone().requires_grad_(gradients)
        logits_NK = model.logits(leaf.clone())
        if gradients:
            targets_N = logits_NK.detach().argmax(1).cpu()
            if classes:
                matched_N = torch.tensor(classes)[labels_N.clamp_min(0)]
                targets_N = torch.where(labels_N >= 0, matched_N, targets_N)
            # Summed, so that each image's gradient does not depend on the batch.
            slopes_of(_loss(model, logits_NK, targets_N.to(logits_NK.device)), [leaf], model.name)
    return outputs, slopes


def _loss(model: Model, logits_NK: Tensor, targets_N: Tensor) -> Tensor:
    """−log p of the targets, summed; of a regression the sum of its values."""
    if not model.head.has_classes:
        return logits_NK.sum()
    return -model.head.log_probabilities(logits_NK).gather(1, targets_N[:, None]).sum()


@contextmanager
def _watched(
    module: nn.Module,
    layers: Sequence[str],
    axes: Mapping[str, int],
    outputs: dict[str, Spread],
    slopes: dict[str, Spread],
) -> Iterator[None]:
    """Collects the outputs of the layers, over all their runs, and the gradients of these."""
    modules = named_layers(module)

    def count(into: dict[str, Spread], name: str, values: Tensor) -> None:
        axis = axes.get(name, 1) if values.dim() in (2, 4) else values.dim() - 1
        into.setdefault(name, Spread()).add(spread_of(values, axis))

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                count(outputs, name, output)
                if output.requires_grad:
                    hook_slope = partial(count, slopes, name)
                    output.register_hook(hook_slope)  # type: ignore[no-untyped-call]

        return hook

    with ExitStack() as stack:
        for name in layers:
            stack.callback(modules[name].register_forward_hook(hook_of(name)).remove)
        yield


def _channel_axes(model: Model) -> dict[str, int]:
    """The channel axis of layers whose output is (N, H, W, C) or similar."""
    try:
        parameter = next(model.module.parameters(), torch.zeros(()))
        graph = describe(
            trace(model.module),
            model.input_size,
            channels=model.preprocess.channels,
            device=model.device,
            dtype=parameter.dtype,
        )
    except Untraceable:
        return {}
    axes = {}
    for name, node in graph.layers.items():
        info = graph.info[node]
        if info.axes is not None and info.shape is not None and len(info.shape) == 4:
            axes[name] = next(axis for axis in (1, 2, 3) if axis not in info.axes)
    return axes
