"""From what a user can name to a network with its weights, wherever these come from.

The weights are the publisher's, those of a checkpoint, those of an archive that is a network too,
or random ones.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn, strided

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.behaviour import probe
from cnnviz.core.models.files import checkpoints
from cnnviz.core.models.files.archives import SELF_CONTAINED, open_archive, script_weights
from cnnviz.core.models.files.checkpoints import (
    Kind,
    StateDict,
    check_finite,
    first,
    read_state_dicts,
)
from cnnviz.core.models.files.child import tried
from cnnviz.core.models.preprocess import Preprocess, plain
from cnnviz.core.models.zoo import find_architecture
from cnnviz.core.models.zoo.published import Architecture, Published, fetch

BUNDLED = "bundled"
PASS_PIXELS, PASS_MEMORY, PASS_SECONDS = 512**2, 4 * 2**30, 120
"""For each so many pixels of its first picture, what a network out of an archive may take: bytes
beside its weights, seconds of processor time."""

Adjust = Callable[[Preprocess | None], Preprocess]


@dataclass(frozen=True)
class Trained:
    """A network with its weights, before it is told where to run.

    Attributes:
        module: in eval mode, on the CPU.
        name: as summaries call it.
        preprocess: the publisher's, with what the user wants done differently.
        labels: the publisher's class names; empty where it has none.
        weights_sha256: over the state dict (an archive: over the file).
        notes: what the user should know.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    weights_sha256: str
    notes: tuple[str, ...] = ()


def find_trained(
    name: str,
    file: Path | None,
    weights: str | None,
    state: str | None,
    adjusted: Adjust,
    labels: int | None,
) -> Trained:
    """The network that a name, a file or both stand for.

    Args:
        name: as `load_model` takes it; or the file itself.
        file: its checkpoint or archive.
        weights: the publisher's name of ready-made weights, or "none".
        state: which of several sets of weights in the file.
        adjusted: the publisher's preprocessing (None: it has none) as the user wants it.
        labels: how many class names were given.

    Raises:
        UsageError: a name, option or file that does not exist.
        CnnvizError: weights that cannot be fetched, read or fitted.
    """
    if file is None and Path(name).suffix.lower() in checkpoints.SUFFIXES and ":" not in name:
        name, file = BUNDLED, Path(name)
    kind = checkpoints.kind_of(file) if file is not None else None
    if kind is Kind.ONNX and name != BUNDLED:
        raise UsageError(f"'{file}' is a network of its own: name it alone, --model {file}")
    if file is None or kind not in SELF_CONTAINED or name != BUNDLED:
        return _from_architecture(name, file, weights, state, adjusted, labels)
    if weights is not None:
        raise UsageError(f"--weights {weights}: '{file}' brings its own weights")
    if state is not None:
        raise UsageError(f"--state {state}: '{file}' holds one network with its weights")
    return _from_archive(file, kind, adjusted)


def _from_archive(path: Path, kind: Kind, adjusted: Adjust) -> Trained:
    def opened() -> Trained:
        archive = open_archive(path, kind)
        base = plain(archive.size) if archive.size else None
        digest = checkpoints.file_sha256(path)
        return Trained(archive.module, path.name, adjusted(base), (), digest)

    def run_once() -> None:
        network = opened()
        size, channels = network.preprocess.crop, network.preprocess.channels
        probe(network.module, path.name, channels, size, torch.float32, torch.device("cpu"))

    checkpoints.check_zip(path)
    rows, columns = adjusted(None).crop
    pictures = max(1, rows * columns // PASS_PIXELS)
    tried(path, run_once, slack=PASS_MEMORY * pictures, seconds=PASS_SECONDS * pictures)
    return opened()


def _from_architecture(
    name: str,
    checkpoint: Path | None,
    weights: str | None,
    state: str | None,
    adjusted: Adjust,
    labels: int | None,
) -> Trained:
    architecture = find_architecture(name)
    entry = _choose(architecture, weights, checkpoint)
    preprocess = adjusted(entry.preprocess if entry else None)
    if checkpoint is not None:
        hint = " (name its architecture with --model)" if name == BUNDLED else ""
        module, notes = _with_weights(architecture, checkpoint, preprocess.crop, state, hint)
    elif entry is not None and weights != "none":
        module, notes = _published(architecture, entry, preprocess.crop)
    else:
        wanted = labels if architecture.needs_classes else None
        module, notes = architecture.make(wanted, preprocess.crop), ()
    module.eval()
    notes = (*(entry.notes if entry is not None else ()), *notes)
    known = entry.labels if entry is not None and weights != "none" else ()
    digest = checkpoints.weights_sha256(module)
    return Trained(module, architecture.name, preprocess, known, digest, notes)


def _published(
    architecture: Architecture, entry: Published, size: tuple[int, int]
) -> tuple[nn.Module, tuple[str, ...]]:
    if entry.network is not None:
        return entry.network(size), ()
    return _with_weights(architecture, fetch(entry, architecture.name), size)


def _choose(
    architecture: Architecture, weights: str | None, checkpoint: Path | None
) -> Published | None:
    """The publisher's entry that gives the weights or, beside a checkpoint, the preprocessing."""
    entries = architecture.published
    if weights in (None, "none"):
        if weights is None and checkpoint is None and architecture.default:
            return entries[architecture.default]
        same = (e for e in entries.values() if checkpoint and e.file_name == checkpoint.name)
        return next(same, next(iter(entries.values()), None))
    name = str(weights).rpartition(".")[2]
    if name == "DEFAULT" and architecture.default:
        return entries[architecture.default]
    if name not in entries:
        known = ", ".join(["DEFAULT", *entries, "none"] if entries else ["none"])
        file = "; a file goes to --checkpoint" if Path(str(weights)).exists() else ""
        raise UsageError(f"no weights '{weights}' for {architecture.name}; there are {known}{file}")
    return entries[name]


def _weights(path: Path) -> list[StateDict]:
    """What a file holds; the program of an archive is not run for it."""
    kind = checkpoints.kind_of(path)
    checkpoints.check_zip(path)
    if kind not in SELF_CONTAINED:
        return read_state_dicts(path, kind)

    def tensors() -> dict[str, Tensor]:
        return script_weights(path) if kind is Kind.TORCHSCRIPT else open_archive(path, kind).state

    tried(path, tensors)
    return [StateDict("", tensors())]


def _with_weights(
    architecture: Architecture,
    path: Path,
    size: tuple[int, int],
    asked: str | None = None,
    hint: str = "",
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with the weights in a file, for as many classes as the file's head has; notes."""
    found = _weights(path)
    module = architecture.make(None, size)
    chosen = choose(found, module, asked, path)
    state = {k: v for k, v in chosen.tensors.items() if not k.startswith(architecture.ignores)}
    classes = head_classes(module, state) if architecture.sets_classes else None
    if classes is not None:
        module = architecture.make(classes, size)
    fit(module, state, path, architecture.name + hint)
    return module, chosen.notes


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
