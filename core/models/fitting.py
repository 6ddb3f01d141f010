"""A file's weights into a network: which of its state dicts, under which names, and do they fit.

Training scripts wrap networks (`module.`, `model.`, a name of their own), save averaged weights
beside the raw ones, and the parameters of the loss beside both. The state dict and the prefix are
taken under which most of the network's own names are found; whatever was decided is told in a note.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn, strided

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.checkpoints import StateDict, check_finite, first

_COUNTER = "num_batches_tracked"
_DEEPEST = 16  # parts of a prefix
# torchvision's published DenseNets write norm.1 for what the network calls norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Weights averaged over training are the ones that are evaluated.
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])", re.IGNORECASE)
_NO_LAYER = re.compile(
    r"(criterion|(\w+_)?(loss|losses|loss_fn|metrics?|acc|accuracy)|(train|val|valid|test)_\w+)\d*"
)


@dataclass(frozen=True)
class Fitting:
    """A state dict under the names of the network.

    Attributes:
        tensors: by name.
        notes: what was decided on the way, a line each.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: a state dict in it, and what its names begin with."""

    state: StateDict
    prefix: str
    hits: int

    @property
    def name(self) -> str:
        return f"{self.state.key}.{self.prefix}".strip(".") or "the top"


def choose(found: Sequence[StateDict], module: nn.Module, asked: str | None, path: Path) -> Fitting:
    """The state dict that fits a network best, without wrappers' prefixes and strangers' names.

    Args:
        found: what the file holds.
        module: the network.
        asked: the one to take, by the name that the note gives it; None for the best.
        path: the file, for messages.

    Raises:
        UsageError: there is none of the name asked for.
    """
    shapes = {n: tuple(v.shape) for n, v in module.state_dict().items() if isinstance(v, Tensor)}
    readings = [reading for state in found for reading in _readings(state, shapes)]
    readings = readings or [_Reading(state, "", 0) for state in found]
    best = max(reading.hits for reading in readings)
    rivals = [reading for reading in readings if 2 * reading.hits >= best]
    taken = max(rivals, key=lambda r: (r.hits, bool(_AVERAGED.search(r.name))))
    notes = []
    if asked is not None:
        named = [reading for reading in readings if reading.name == asked]
        if not named:
            names = ", ".join(reading.name for reading in rivals)
            raise UsageError(f"no state '{asked}' in '{path}'; --state takes {names}")
        taken = named[0]
    elif len(rivals) > 1:
        others = ", ".join(reading.name for reading in rivals if reading is not taken)
        notes.append(
            f"'{path}' holds several sets of weights: took {taken.name} (--state takes {others})"
        )
    if strangers := taken.state.strangers:
        notes.append(f"'{path}': left aside what is no tensor: {first(strangers)}")
    own, strange = _apart(taken, shapes)
    if strange:
        roots = Counter(name.split(".")[0] for name in strange)
        listed = first(f"{root} ({count})" for root, count in roots.items())
        notes.append(f"'{path}': left aside what is no part of the network: {listed}")
    return Fitting(own, tuple(notes))


def _readings(state: StateDict, shapes: Mapping[str, tuple[int, ...]]) -> list[_Reading]:
    """The prefixes under which a state dict has names of the network, the empty one first."""
    hits: Counter[str] = Counter()
    for name, value in _named(state.tensors, shapes).items():
        parts = name.split(".", _DEEPEST)
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in shapes and len(shapes[rest]) == value.ndim:
                hits[name.removesuffix(rest)] += 1
    return [_Reading(state, prefix, hits[prefix]) for prefix in sorted(hits, key=bool)]


def _named(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names that they have in networks that are not compiled."""
    tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
    if not any(".denselayer" in name for name in wanted):
        return tensors
    return {_DENSE_LAYER.sub(r"\1\2.", name): value for name, value in tensors.items()}


def _apart(reading: _Reading, wanted: Mapping[str, object]) -> tuple[dict[str, Tensor], list[str]]:
    """What is the network's, under its names, and the names of what is not."""
    named = _named(reading.state.tensors, wanted)
    strange = [
        name
        for name in named
        if not name.startswith(reading.prefix)
        or (name not in wanted and not reading.prefix and _NO_LAYER.fullmatch(name.split(".")[0]))
    ]
    left = set(strange)
    own = {n.removeprefix(reading.prefix): v for n, v in named.items() if n not in left}
    return own, strange


def head_classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The class count a state dict asks for, where its only misfit is the head's first axis."""
    counts = set()
    for name, value in module.state_dict().items():
        if name in state and state[name].shape != value.shape:
            if not state[name].shape or state[name].shape[1:] != value.shape[1:]:
                return None
            counts.add(len(state[name]))
    return counts.pop() if len(counts) == 1 else None


def _misfits(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    wanted = {name: v for name, v in module.state_dict().items() if isinstance(v, Tensor)}
    missing = [n for n in wanted if n not in state and not n.endswith(_COUNTER)]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(value.shape)})"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{what}: {first(names)}" for what, names in parts if names]


def _check_kinds(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that no network of floating-point weights can take."""
    wanted = module.state_dict()
    for name, value in state.items():
        own = wanted.get(name)
        odd = value.is_quantized or value.is_nested or value.is_meta or value.layout is not strided
        number = isinstance(own, Tensor) and own.is_floating_point() == value.is_floating_point()
        if odd or (name in wanted and not number):
            kind = "without values" if value.is_meta else str(value.dtype).removeprefix("torch.")
            layout = "" if value.layout is strided else f", {value.layout}".replace("torch.", "")
            raise CnnvizError(
                f"'{path}' holds {name} as {kind}{layout}, which no network here takes: save the "
                "weights of the network before it was quantised, pruned or converted"
            )


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copies a state dict into a network.

    Raises:
        CnnvizError: names, shapes or number formats differ, or a tensor holds NaN or infinity.
    """
    _check_kinds(module, state, path)
    check_finite(state, path)
    entries: OrderedDict[str, Tensor] = OrderedDict(state)
    # Layers that changed their layout over time look the version up here.
    entries._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    try:
        # torch's own word on names: layers know what they were called in earlier versions.
        left = module.load_state_dict(entries, strict=False)
        missing = [key for key in left.missing_keys if not key.endswith(_COUNTER)]
        fits = not missing and not left.unexpected_keys
    except RuntimeError:  # a shape differs
        fits = False
    if not fits:
        misfits = "; ".join(_misfits(module, state))
        raise CnnvizError(f"'{path}' does not fit the model {name}; {misfits}")
