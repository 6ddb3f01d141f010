"""How a network's values spread while it looks at data: layer by layer, streamed.

For every layer the values that it puts out are counted by magnitude (`spread`); with gradients,
also the gradient of each image's cross-entropy loss with respect to these values. Gradients whose
magnitudes fall layer by layer towards the input vanish, ones that rise explode (Glorot and Bengio
2010, "Understanding the difficulty of training deep feedforward neural networks").

Shapes: N images, K classes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.data.datasets import Batch, ImageData, batches, none_usable
from cnnviz.core.data.labels import match_labels
from cnnviz.core.device import in_batches
from cnnviz.core.graph.trace import Untraceable, describe, trace
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast, frozen
from cnnviz.core.models.variants import gradients as slopes_of
from cnnviz.filters.layers.spread import Spread, spread_of

DEFAULT_BATCH = 32


@dataclass(frozen=True, eq=False)
class Statistics:
    """The spreads of all layers over a data set.

    Attributes:
        images: how many counted.
        labelled: how many of their losses were taken at the true class; the others' at the
            predicted one.
        activations: by layer.
        gradients: by layer; empty if not asked for.
        errors: (image, message) of those that could not be read.
    """

    images: int
    labelled: int
    activations: Mapping[str, Spread]
    gradients: Mapping[str, Spread]
    errors: tuple[tuple[str, str], ...]


def measure(
    model: Model,
    data: ImageData,
    layers: Sequence[str],
    *,
    gradients: bool = False,
    batch_size: int | None = None,
    advance: Callable[[int], None] = lambda _steps: None,
) -> Statistics:
    """Streams the data through the network once.

    Args:
        model: borrowed.
        data: what to look at.
        layers: whose outputs are counted.
        gradients: also the gradients of the loss.
        batch_size: images at a time; None for automatic. Results do not depend on it, but for the
            last digits of means.
        advance: called with the number of images just done.

    Raises:
        CnnvizError: no image could be read.
        UsageError: the data's classes cannot be matched to the model's (with gradients).
    """
    classes = match_labels(data, model) if gradients and data.classes else ()
    axes = _channel_axes(model)
    if not gradients:  # a trace would find a gradient where the network cuts it
        model = fast(model, layers)
    merged: tuple[dict[str, Spread], dict[str, Spread]] = ({}, {})
    images = labelled = 0
    errors: list[tuple[str, str]] = []

    def failed(index: int, message: str) -> None:
        errors.append((data.examples[index].path, message))
        advance(1)

    def run(batch: Batch, part: slice) -> None:
        found = _one_pass(
            model, batch.images[part], batch.labels[part], layers, axes, classes, gradients
        )
        for total, new in zip(merged, found, strict=True):
            for name, spread in new.items():
                total.setdefault(name, Spread()).add(spread)

    size = model.batch_size(batch_size) or DEFAULT_BATCH
    for batch in batches(data, model.preprocess, size, on_error=failed):
        count, done = len(batch.images), 0
        for reached, fitting in in_batches(count, min(size, count), partial(run, batch)):
            advance(reached - done)
            done, size = reached, min(size, fitting)
        images += count
        labelled += int((batch.labels >= 0).sum()) if classes else 0
    if not images:
        raise none_usable(data, errors)
    return Statistics(images, labelled, *merged, tuple(errors))


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
            # Summed, so that each image's gradient is that of its own loss, whatever the batch.
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
    """Counts what the layers put out, all their runs together, and the gradients of that."""
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
    """Where the channels of a layer's maps are, for networks that move them behind the places."""
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
    found = {}
    for name, node in graph.layers.items():
        info = graph.info[node]
        if info.axes is not None and info.shape is not None and len(info.shape) == 4:
            found[name] = next(axis for axis in (1, 2, 3) if axis not in info.axes)
    return found
