"""Which filters of which layers are meant: specifications like `layer1.0.conv1:3,7-12`.

A specification names one or more layers and channels of their output:

    LAYER:3,7-12          these channels (ranges include both ends)
    LAYER:all             every channel
    LAYER:all-but:3,7-12  every channel except these
    LAYER:random:10       ten channels, drawn with the run's seed
    random:10             ten channels, drawn from all convolutions together

With layers given separately (`--layer`), `all`, `3,7-12` and `random:10` refer to those. LAYER may
be several names joined by `+`, and may contain `*`; `random` draws from all of them together.
Channels count from 0. `resolve` checks specifications against the layers of the network. A layer's
number of channels is read from its output in a trial pass, so activations, norms, blocks and
user-defined modules count as well.

Shapes: N images, C channels, H W rows and columns.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.core.choices import whole_number
from cnnviz.core.device import exact, plus
from cnnviz.core.errors import UsageError
from cnnviz.core.graph.receptive_field import ReceptiveField, receptive_fields
from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.layers import (
    Layout,
    Layouts,
    check_open,
    conv_layers,
    find_layer,
    named_layers,
    not_run,
    watch_outputs,
)
from cnnviz.core.models.load import Model

Channels = Mapping[str, tuple[int, ...]]
"""Layer name to channels of its output, in ascending order without repeats."""

FORMS = "LAYER:3,7-12, LAYER:all, LAYER:all-but:3,7-12, LAYER:random:10 or random:10"
LONGEST_RANGE = 1_000_000


class Pick(StrEnum):
    """How a specification names channels."""

    THESE = "these"
    ALL = "all"
    ALL_BUT = "all-but"
    RANDOM = "random"


@dataclass(frozen=True)
class Selection:
    """A parsed specification.

    Attributes:
        text: the text that was parsed.
        layers: layer names or patterns with `*`; empty for all convolutions.
        pick: how the channels are named.
        channels: the given numbers (`these`, `all-but`).
        count: how many channels to draw (`random`).
    """

    text: str
    layers: tuple[str, ...]
    pick: Pick
    channels: tuple[int, ...] = ()
    count: int = 0


def parse(text: str, layers: Sequence[str] = ()) -> Selection:
    """Parses one specification; `layers` are the ones it refers to if it names none."""
    names, colon, rest = text.strip().partition(":")
    if names == Pick.RANDOM and (layers or rest.isdecimal()):
        return Selection(text, tuple(layers), Pick.RANDOM, count=_parse_count(rest, text))
    if layers and not colon:
        return _selection(text, tuple(layers), names)
    named = tuple(name.strip() for name in names.split("+"))
    if not colon or not rest or not all(named):
        raise UsageError(f"'{text}' does not name any filters; write {FORMS}")
    return _selection(text, named, rest)


def _selection(text: str, layers: tuple[str, ...], rest: str) -> Selection:
    word, _, numbers = rest.partition(":")
    if rest == Pick.ALL:
        return Selection(text, layers, Pick.ALL)
    if word == Pick.RANDOM:
        return Selection(text, layers, Pick.RANDOM, count=_parse_count(numbers, text))
    if word == Pick.ALL_BUT:
        return Selection(text, layers, Pick.ALL_BUT, _parse_numbers(numbers, text))
    return Selection(text, layers, Pick.THESE, _parse_numbers(rest, text))


def _parse_count(text: str, whole: str) -> int:
    if count := whole_number(text):
        return count
    raise UsageError(f"invalid number of filters '{text}' in '{whole}'; write random:10, minimum 1")


def _parse_numbers(text: str, whole: str) -> tuple[int, ...]:
    channels: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        quoted = f"'{part}'" if part == whole else f"'{part}' in '{whole}'"
        low, high = whole_number(first), whole_number(last if dash else first)
        if low is None or high is None:
            raise UsageError(f"invalid channel or range {quoted}; write {FORMS}")
        if high < low:
            raise UsageError(f"the range {quoted} runs backwards; write {high}-{low}")
        if high - low > LONGEST_RANGE:
            raise UsageError(f"the range {quoted} is longer than any layer")
        channels.update(range(low, high + 1))
    return tuple(sorted(channels))


def expand(
    selection: Selection, layers: Sequence[str], convolutions: Sequence[str]
) -> tuple[str, ...]:
    """The layer names of a selection; names without `*` are not checked."""
    if not selection.layers:
        return tuple(convolutions)
    names: dict[str, None] = {}
    for pattern in selection.layers:
        # torch.compile adds this prefix to the names of layers.
        plain = pattern.replace("_orig_mod.", "")
        matches = [plain if pattern not in layers and plain in layers else pattern]
        if "*" in pattern:
            matches = [name for name in layers if fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"no layer matches '{pattern}' in '{selection.text}'")
        names.update(dict.fromkeys(matches))
    return tuple(names)


def resolve(
    texts: Sequence[str],
    layers: Sequence[str],
    convolutions: Sequence[str],
    count_channels: Callable[[Sequence[str]], Mapping[str, int]],
    seed: int,
    default_layers: Sequence[str] = (),
) -> Channels:
    """The channels that several specifications name together.

    Args:
        texts: specifications.
        layers: all layer names, for patterns.
        convolutions: the convolutions that run, for `random:N` without a layer.
        count_channels: returns each named layer's number of output channels, or raises.
        seed: for the random draws, which share one stream in the order of the specifications.
        default_layers: names or patterns for specifications that name no layer.
    """
    generator = np.random.default_rng(seed)
    chosen: dict[str, set[int]] = {}
    for text in texts:
        selection = parse(text, default_layers)
        counts = count_channels(expand(selection, layers, convolutions))
        pick = _draw(selection, counts, generator)
        for layer, channels in (pick or _pick(selection, counts)).items():
            chosen.setdefault(layer, set()).update(channels)
    order = {name: place for place, name in enumerate(layers)}
    return {layer: tuple(sorted(chosen[layer])) for layer in sorted(chosen, key=order.__getitem__)}


def _pick(selection: Selection, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The channels of a selection that is not random."""
    picked = {}
    for name, count in counts.items():
        outside = [channel for channel in selection.channels if channel >= count]
        if outside:
            raise UsageError(
                f"channel {outside[0]} in '{selection.text}' does not exist; "
                f"layer '{name}' has channels 0 to {count - 1}"
            )
        named = set(selection.channels)
        if selection.pick is not Pick.THESE:
            named = set(range(count)) - named
        if not named:
            raise UsageError(f"'{selection.text}' leaves no channel of '{name}'")
        picked[name] = sorted(named)
    return picked


def _draw(
    selection: Selection, counts: Mapping[str, int], generator: np.random.Generator
) -> dict[str, list[int]]:
    """The channels of a random selection; empty for other selections."""
    drawn: dict[str, list[int]] = {}
    if selection.pick is not Pick.RANDOM:
        return drawn
    pool = [(name, channel) for name, count in counts.items() for channel in range(count)]
    if selection.count > len(pool):
        raise UsageError(
            f"'{selection.text}' asks for {selection.count} filters; there are {len(pool)}"
        )
    for place in sorted(generator.choice(len(pool), size=selection.count, replace=False)):
        name, channel = pool[place]
        drawn.setdefault(name, []).append(channel)
    return drawn


def describe(channels: Channels) -> str:
    """Formats channels as specifications: `conv1:3,7-12 conv2:0`."""
    return " ".join(f"{layer}:{_ranges(numbers)}" for layer, numbers in channels.items())


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


class LayerChannels:
    """Layouts and channel counts of a model's layers, determined on demand by trial passes.

    Args:
        model: the network.
    """

    def __init__(self, model: Model) -> None:
        check_open(model.module, model.name)
        self._model = model
        self._layouts = Layouts(model)
        self._known: dict[str, Layout | None] = {}

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        """The number of output channels of each named layer."""
        for name in names:
            find_layer(self._model.module, name, self._model.name)
        self.find(names)
        return {name: self.layout(name).shape[0] for name in names}

    def convolutions(self) -> list[str]:
        """The convolutions that run in a forward pass."""
        names = conv_layers(self._model.module)
        self.find(names)
        return [name for name in names if self._known[name] is not None]

    @property
    def running(self) -> list[str]:
        """The layers known to run, in the order of execution."""
        return [name for name, layout in self._known.items() if layout is not None]

    def layout(self, name: str) -> Layout:
        """The layout of a layer that `counts` was called for."""
        layout = self._known[name]
        if layout is None:
            raise not_run(name)
        return layout

    def find(self, names: Sequence[str]) -> None:
        """Determines the layouts of layers that exist."""
        new = [name for name in names if name not in self._known]
        if new:
            layouts = self._layouts.of(new)
            self._known.update(layouts)
            self._known.update({name: None for name in new if name not in layouts})


def choose_filters(
    model: Model, texts: Sequence[str], layers: Sequence[str] = (), seed: int = 0
) -> tuple[Channels, dict[str, Layout]]:
    """The filters that specifications name, and the layouts of their layers' outputs.

    Args:
        model: the network.
        texts: specifications; `all`, `3,7-12` and `random:10` refer to `layers`.
        layers: names, or patterns with `*`; if empty, all convolutions that run.
        seed: for random draws.
    """
    known = LayerChannels(model)
    if not layers:
        known.find(conv_layers(model.module))
        layers = known.running
    if not layers and not any(":" in text for text in texts):
        raise UsageError(
            f"{model.name} has no convolution that can be watched; name a layer with --layer"
        )
    chosen = resolve(texts, list(named_layers(model.module)), (), known.counts, seed, layers)
    return chosen, {name: known.layout(name) for name in chosen}


def known_fields(
    model: Model, size: tuple[int, int] | None = None
) -> tuple[Mapping[str, ReceptiveField], str | None]:
    """Receptive fields by layer; if there are none, an empty mapping and the reason."""
    size = size or model.input_size
    try:
        return receptive_fields(model.module, size, channels=model.preprocess.channels), None
    except Untraceable as error:
        return {}, str(error)


@dataclass(frozen=True)
class ChannelStrength:
    """The mean and the mean absolute value of a layer's channels over all images and positions.

    Both are (C,) float32, on the model's device.
    """

    mean: Tensor
    magnitude: Tensor


class ChannelSums:
    """Sums over images, from which `ChannelStrength` is the mean.

    Args:
        axes: each layer's axis of channels.
        channels: each layer's number of them.
        device: where the sums are; float32 on mps, else float64.
    """

    def __init__(
        self, axes: Mapping[str, int], channels: Mapping[str, int], device: torch.device
    ) -> None:
        self._axes = axes
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._units = dict.fromkeys(axes, 0)
        self._sums = {
            name: torch.zeros(2, 2, channels[name], dtype=self._dtype, device=device)
            for name in axes
        }

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Adds the outputs of the layers for some images."""
        for name, axis in self._axes.items():
            values = outputs[name].to(self._dtype).movedim(axis, 0).flatten(1)
            both = torch.stack([values.sum(1), values.abs().sum(1)])
            self._sums[name] = plus(self._sums[name], exact(both))
            self._units[name] += values.shape[1]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of a journal, by the layer's number."""
        units = np.array(list(self._units.values()), np.int64)
        return {"units": units} | {
            str(n): sums.cpu().numpy() for n, sums in enumerate(self._sums.values())
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `arrays`."""
        for n, name in enumerate(self._axes):
            self._units[name] = int(arrays["units"][n])
            self._sums[name].copy_(torch.from_numpy(arrays[str(n)]))

    def strengths(self) -> dict[str, ChannelStrength]:
        """The means; at least one image must have been added."""
        means = {name: sums.sum(0) / self._units[name] for name, sums in self._sums.items()}
        return {name: ChannelStrength(*mean.to(torch.float32)) for name, mean in means.items()}


def merge_sums(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays of `ChannelSums` for all images from those of their blocks."""
    joined = {name: torch.from_numpy(array) for name, array in parts[0].items()}
    for part in parts[1:]:
        for name, array in part.items():
            add = torch.add if name == "units" else plus
            joined[name] = add(joined[name], torch.from_numpy(array))
    return {name: tensor.numpy() for name, tensor in joined.items()}


def channel_sums(
    model: Model,
    batches: Iterable[Tensor],
    axes: Mapping[str, int],
    channels: Mapping[str, int],
) -> ChannelSums:
    """Sums each channel in one pass over images (N, 3, H, W)."""
    sums = ChannelSums(axes, channels, model.device)
    for images in batches:
        with torch.inference_mode(), watch_outputs(model.module, list(axes)) as outputs:
            model.outputs(images)
            sums.add(outputs)
    return sums
