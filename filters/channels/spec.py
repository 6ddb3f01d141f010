"""Which filters are meant, in words: `layer1.0.conv1:3,7-12`.

A specification names one or more layers and channels of their output:

    LAYER:3,7-12          these channels (ranges include both ends)
    LAYER:all             every channel
    LAYER:all-but:3,7-12  every channel except these
    LAYER:random:10       ten, drawn with the run's seed
    random:10             ten, drawn from all convolutions together

Where a command has layers of its own (`--layer`), `all`, `3,7-12` and `random:10` are of them.
LAYER may be several names joined by `+`, and may hold `*`; `random` then draws from all of them
together. Channels count from 0. Parsing knows nothing about networks; `resolve` checks the outcome
against the layers that are really there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

import numpy as np

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError

Channels = Mapping[str, tuple[int, ...]]
"""Layer name to channels of its output, ascending, each once."""

FORMS = "LAYER:3,7-12, LAYER:all, LAYER:all-but:3,7-12, LAYER:random:10 or random:10"


class Pick(StrEnum):
    """How the channels of a specification are named."""

    THESE = "these"
    ALL = "all"
    ALL_BUT = "all-but"
    RANDOM = "random"


@dataclass(frozen=True)
class Selection:
    """One specification, taken apart.

    Attributes:
        text: as the user wrote it.
        layers: layer names or patterns with `*`; empty for all convolutions.
        pick: how the channels are named.
        channels: the numbers given (`these`, `all-but`).
        count: how many to draw (`random`).
    """

    text: str
    layers: tuple[str, ...]
    pick: Pick
    channels: tuple[int, ...] = ()
    count: int = 0


def parse(text: str, layers: Sequence[str] = ()) -> Selection:
    """Takes one specification apart.

    Args:
        text: as the user wrote it.
        layers: those that are meant where it names none.

    Raises:
        UsageError: it has none of the forms above.
    """
    names, colon, rest = text.strip().partition(":")
    if names == Pick.RANDOM and (layers or rest.isdecimal()):
        return Selection(text, tuple(layers), Pick.RANDOM, count=_count(rest, text))
    if layers and not colon:
        return _selection(text, tuple(layers), names)
    own = tuple(name.strip() for name in names.split("+"))
    if not colon or not rest or not all(own):
        raise UsageError(f"'{text}' names no filters; write {FORMS}")
    return _selection(text, own, rest)


def _selection(text: str, layers: tuple[str, ...], rest: str) -> Selection:
    word, _, numbers = rest.partition(":")
    if rest == Pick.ALL:
        return Selection(text, layers, Pick.ALL)
    if word == Pick.RANDOM:
        return Selection(text, layers, Pick.RANDOM, count=_count(numbers, text))
    if word == Pick.ALL_BUT:
        return Selection(text, layers, Pick.ALL_BUT, _numbers(numbers, text))
    return Selection(text, layers, Pick.THESE, _numbers(rest, text))


def _count(text: str, whole: str) -> int:
    if count := whole_number(text):
        return count
    raise UsageError(f"'{text}' in '{whole}' is no number of filters; write random:10, from 1 up")


def _numbers(text: str, whole: str) -> tuple[int, ...]:
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        quoted = f"'{part}'" if part == whole else f"'{part}' in '{whole}'"
        low, high = whole_number(first), whole_number(last if dash else first)
        if low is None or high is None:
            raise UsageError(f"{quoted} is no channel or range; write {FORMS}")
        if high < low:
            raise UsageError(f"the range {quoted} runs backwards; write {high}-{low}")
        if high - low > 1_000_000:
            raise UsageError(f"the range {quoted} is longer than any layer")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def expand(
    selection: Selection, layers: Sequence[str], convolutions: Sequence[str]
) -> tuple[str, ...]:
    """The layer names that a selection means; names without `*` are passed on unchecked.

    Raises:
        UsageError: a pattern matches no layer.
    """
    if not selection.layers:
        return tuple(convolutions)
    names: dict[str, None] = {}
    for pattern in selection.layers:
        # A compiled network's layers are found without the wrapper that names them so.
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
    own_layers: Sequence[str] = (),
) -> Channels:
    """The channels that several specifications name together.

    Args:
        texts: specifications.
        layers: all layer names, for patterns.
        convolutions: the convolutions that run, for `random:N` without a layer.
        count_channels: gives each named layer's number of output channels, or raises.
        seed: of the random draws; one stream for all of them, in order.
        own_layers: names or patterns, meant by specifications that name no layer.

    Raises:
        UsageError: a specification cannot be read, or names what is not there.
    """
    generator = np.random.default_rng(seed)
    chosen: dict[str, set[int]] = {}
    for text in texts:
        selection = parse(text, own_layers)
        names = expand(selection, layers, convolutions)
        counts = count_channels(names)
        for layer, channels in _picked(selection, names, counts, generator).items():
            chosen.setdefault(layer, set()).update(channels)
    order = {name: place for place, name in enumerate(layers)}
    return {layer: tuple(sorted(chosen[layer])) for layer in sorted(chosen, key=order.__getitem__)}


def _picked(
    selection: Selection,
    names: Sequence[str],
    counts: Mapping[str, int],
    generator: np.random.Generator,
) -> dict[str, list[int]]:
    if selection.pick is Pick.RANDOM:
        return _drawn(selection, names, counts, generator)
    picked = {}
    for name in names:
        count = counts[name]
        outside = [channel for channel in selection.channels if channel >= count]
        if outside:
            raise UsageError(
                f"no channel {outside[0]} in '{selection.text}'; "
                f"layer '{name}' has {count} channels, 0 to {count - 1}"
            )
        named = set(selection.channels)
        if selection.pick is not Pick.THESE:
            named = set(range(count)) - named
        if not named:
            raise UsageError(f"'{selection.text}' leaves no channel of '{name}'")
        picked[name] = sorted(named)
    return picked


def _drawn(
    selection: Selection,
    names: Sequence[str],
    counts: Mapping[str, int],
    generator: np.random.Generator,
) -> dict[str, list[int]]:
    pool = [(name, channel) for name in names for channel in range(counts[name])]
    if selection.count > len(pool):
        raise UsageError(
            f"'{selection.text}' asks for {selection.count} filters; there are {len(pool)}"
        )
    drawn: dict[str, list[int]] = {}
    for place in sorted(generator.choice(len(pool), size=selection.count, replace=False)):
        name, channel = pool[place]
        drawn.setdefault(name, []).append(channel)
    return drawn


def describe(channels: Channels) -> str:
    """Channels in the notation of the specifications: `conv1:3,7-12 conv2:0`."""
    return " ".join(f"{layer}:{_ranges(numbers)}" for layer, numbers in channels.items())


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
