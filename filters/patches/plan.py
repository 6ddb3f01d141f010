"""What a scan watches: which filters of which layers, settled against the network itself.

One forward pass on a blank image shows which layers run and what maps they put out; names and
numbers from the user are checked against that, before any data is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import (
    check_open,
    conv_layers,
    find_layer,
    named_layers,
    watch_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.filters.channels import spec as channel_spec
from cnnviz.filters.patches.choices import Ranking

MapShape = tuple[int, int, int]
"""(filters, rows, columns) of what a layer puts out for one image."""


@dataclass(frozen=True)
class ScanPlan:
    """What is kept for which filters.

    Attributes:
        filters: layer name to filters, ascending.
        shapes: of the maps of each of these layers.
        top: patches kept per filter.
        score: what ranks the images.
        per_image: patches that one image may have among them.
    """

    filters: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, MapShape]
    top: int
    score: Ranking
    per_image: int


def map_shapes(model: Model, layers: Sequence[str]) -> dict[str, MapShape]:
    """What each of these layers puts out; without those that do not run in a forward pass.

    A layer that puts out a vector counts as one with maps of a single unit.

    Raises:
        UsageError: a layer puts out something else than maps or a vector.
    """
    blank = torch.zeros(1, 3, *model.input_size)
    with torch.inference_mode(), watch_outputs(model.module, layers) as outputs:
        model.logits(blank)
    shapes = {}
    for name in layers:
        if name not in outputs:
            continue
        shape = tuple(outputs[name].shape[1:])
        if len(shape) == 1:
            shape = (*shape, 1, 1)
        if len(shape) != 3:
            raise UsageError(
                f"layer '{name}' puts out {len(shape)} axes per image; max-patches takes maps "
                "(filters, rows, columns) or vectors: name a convolution"
            )
        shapes[name] = (int(shape[0]), int(shape[1]), int(shape[2]))
    return shapes


def make_plan(
    model: Model,
    *,
    layers: Sequence[str] = (),
    filters: Sequence[str] = ("all",),
    top: int = 9,
    score: Ranking = Ranking.MAX,
    per_image: int = 1,
    seed: int = 0,
) -> ScanPlan:
    """Settles what a scan watches.

    Args:
        model: the network.
        layers: names, or patterns with `*`; all convolutions that run if empty.
        filters: `all`, `3,7-12` (in each layer), `random:10` (from all layers together), or a
            specification with a layer of its own (`channel_spec`).
        top: patches kept per filter.
        score: what ranks the images.
        per_image: patches that one image may have among them.
        seed: of the random draw.

    Raises:
        UsageError: a layer or filter does not exist or does not run, or the numbers make no sense.
    """
    _check(top, per_image, score)
    check_open(model.module, model.name)
    every = list(named_layers(model.module))
    shapes: dict[str, MapShape] = {}

    def count_channels(names: Sequence[str]) -> dict[str, int]:
        for name in names:
            find_layer(model.module, name, model.name)
        new = [name for name in names if name not in shapes]
        shapes.update(map_shapes(model, new))
        for name in names:
            if name not in shapes:
                raise UsageError(f"layer '{name}' of {model.name} takes no part in a forward pass")
        return {name: shapes[name][0] for name in names}

    shapes.update(map_shapes(model, [] if layers else conv_layers(model.module)))
    texts = _with_layers(filters, list(layers) or list(shapes))
    if not texts:
        raise UsageError(
            f"{model.name} has no convolution that can be watched; name a layer with --layer"
        )
    chosen = channel_spec.resolve(texts, every, list(shapes), count_channels, seed)
    return ScanPlan(chosen, {name: shapes[name] for name in chosen}, top, score, per_image)


def _check(top: int, per_image: int, score: Ranking) -> None:
    if top < 1:
        raise UsageError(f"--top {top}: it takes a whole number from 1")
    if per_image < 1:
        raise UsageError(f"--per-image {per_image}: it takes a whole number from 1")
    if per_image > 1 and score is not Ranking.MAX:
        raise UsageError(
            f"--per-image {per_image} goes with --score max alone: "
            f"'{score}' ranks whole maps, and an image has one map per filter"
        )


def _with_layers(filters: Sequence[str], layers: Sequence[str]) -> list[str]:
    """Specifications that name no layer, with the layers put in front."""
    joined = "+".join(layers)
    texts = []
    for text in filters:
        word = text.partition(":")[0].strip()
        alone = ":" not in text or word == channel_spec.Pick.RANDOM
        if not alone:
            texts.append(text)
        elif joined:
            texts.append(f"{joined}:{text.strip()}")
    return texts
