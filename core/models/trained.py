"""From a name, a file or both to a network with its weights.

The weights are the publisher's, a checkpoint's, an archive's, or random. Training scripts wrap
networks (`module.`, `model.`, any other prefix), save averaged weights in addition to the raw ones,
and the parameters of the loss in addition to both. Of a checkpoint, the state dict and the prefix
are taken that match most names of the network; a note reports each such decision.
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
    COUNTER,
    Kind,
    StateDict,
    check_finite,
    first_few,
    read_state_dicts,
)
from cnnviz.core.models.files.child import run_in_child
from cnnviz.core.models.preprocess import Preprocess, plain
from cnnviz.core.models.zoo import find_architecture
from cnnviz.core.models.zoo.published import Architecture, Published, fetch

BUNDLED = "bundled"
PASS_PIXELS, PASS_MEMORY, PASS_SECONDS = 512**2, 4 * 2**30, 120
"""Limits for the first pass of an archive's network: bytes and seconds per so many pixels."""

_DEEPEST = 16  # parts of a prefix
# torchvision's published DenseNets write norm.1 for what the network calls norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Weights averaged over training are the ones to evaluate.
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])", re.IGNORECASE)
_NO_LAYER = re.compile(
    r"(criterion|(\w+_)?(loss|losses|loss_fn|metrics?|acc|accuracy)|(train|val|valid|test)_\w+)\d*"
)

Adjust = Callable[[Preprocess | None], Preprocess]
"""The publisher's preprocessing (or None) to the user's."""


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in eval mode on the CPU, and what belongs to them."""

    module: nn.Module
    name: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    """The publisher's class names; empty if there are none."""
    weights_sha256: str
    """Of the state dict; for an archive, of the file."""
    notes: tuple[str, ...] = ()


def find_trained(
    name: str,
    file: Path | None,
    weights: str | None,
    state: str | None,
    adjusted: Adjust,
    labels: int | None,
) -> Trained:
    """Find the network for a name, a checkpoint or archive, or both; see `load_model`.

    `name` can be the file itself; `labels` is the number of class names that were given.
    """
    if file is None and Path(name).suffix.lower() in checkpoints.SUFFIXES and ":" not in name:
        name, file = BUNDLED, Path(name)
    kind = checkpoints.kind_of(file) if file is not None else None
    if kind is Kind.ONNX and name != BUNDLED:
        raise UsageError(f"'{file}' contains its own network: name it alone, --model {file}")
    if file is None or kind not in SELF_CONTAINED or name != BUNDLED:
        return _from_architecture(name, file, weights, state, adjusted, labels)
    if weights is not None:
        raise UsageError(f"--weights {weights}: '{file}' contains its own weights")
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
    units = max(1, rows * columns // PASS_PIXELS)
    run_in_child(path, run_once, slack=PASS_MEMORY * units, seconds=PASS_SECONDS * units)
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
    entry = _published_entry(architecture, weights, checkpoint)
    preprocess = adjusted(entry.preprocess if entry else None)
    size, notes = preprocess.crop, entry.notes if entry else ()
    published = entry if weights != "none" else None
    if checkpoint is not None:
        hint = " (name its architecture with --model)" if name == BUNDLED else ""
        module, more = _with_weights(architecture, checkpoint, size, state, hint)
        notes = (*notes, *more)
    elif published is None:
        module = architecture.make(labels if architecture.needs_classes else None, size)
    elif published.network is not None:
        module = published.network(size)
    else:
        module, _ = _with_weights(architecture, fetch(published, architecture.name), size)
    module.eval()
    known = published.labels if published else ()
    digest = checkpoints.weights_sha256(module)
    return Trained(module, architecture.name, preprocess, known, digest, notes)


def _published_entry(
    architecture: Architecture, weights: str | None, checkpoint: Path | None
) -> Published | None:
    """The publisher's entry for the weights or, with a checkpoint, for the preprocessing."""
    entries = architecture.published
    if weights in (None, "none"):
        if weights is None and checkpoint is None and architecture.default:
            return entries[architecture.default]
        same = (
            e for e in entries.values() if checkpoint and e.file and e.file.name == checkpoint.name
        )
        return next(same, next(iter(entries.values()), None))
    name = str(weights).rpartition(".")[2]
    if name == "DEFAULT" and architecture.default:
        return entries[architecture.default]
    if name not in entries:
        known = ", ".join(["DEFAULT", *entries, "none"] if entries else ["none"])
        file = "; a file goes to --checkpoint" if Path(str(weights)).exists() else ""
        raise UsageError(f"no weights '{weights}' for {architecture.name}; there are {known}{file}")
    return entries[name]


def _state_dicts(path: Path) -> list[StateDict]:
    """Read the weights of a file; the program of an archive does not run."""
    kind = checkpoints.kind_of(path)
    checkpoints.check_zip(path)
    if kind not in SELF_CONTAINED:
        return read_state_dicts(path, kind)

    def tensors() -> dict[str, Tensor]:
        return script_weights(path) if kind is Kind.TORCHSCRIPT else open_archive(path, kind).state

    run_in_child(path, tensors)
    return [StateDict("", tensors())]


def _with_weights(
    architecture: Architecture,
    path: Path,
    size: tuple[int, int],
    state_name: str | None = None,
    hint: str = "",
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network for as many classes as the file's head has, with its weights; and notes."""
    states = _state_dicts(path)
    module = architecture.make(None, size)
    chosen = choose(states, module, state_name, path)
    state = {k: v for k, v in chosen.tensors.items() if not k.startswith(architecture.ignores)}
    classes = head_classes(module, state) if architecture.sets_classes else None
    if classes is not None:
        module = architecture.make(classes, size)
    fit(module, state, path, architecture.name + hint)
    return module, chosen.notes


@dataclass(frozen=True)
class Fitting:
    """A state dict under the names of the network, and a note on each decision."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A state dict of the file and a prefix of its names; `hits` counts the matching names."""

    state: StateDict
    prefix: str
    hits: int

    @property
    def name(self) -> str:
        return f"{self.state.key}.{self.prefix}".strip(".") or "the top"


def choose(states: Sequence[StateDict], module: nn.Module, name: str | None, path: Path) -> Fitting:
    """Choose the state dict that fits a network best (or by `name`), under the network's names."""
    shapes = {n: tuple(v.shape) for n, v in module.state_dict().items() if isinstance(v, Tensor)}
    candidates = [candidate for state in states for candidate in _candidates(state, shapes)]
    candidates = candidates or [_Candidate(state, "", 0) for state in states]
    best = max(candidate.hits for candidate in candidates)
    rivals = [candidate for candidate in candidates if 2 * candidate.hits >= best]
    taken = max(rivals, key=lambda c: (c.hits, bool(_AVERAGED.search(c.name))))
    notes = []
    if name is not None:
        named = [candidate for candidate in candidates if candidate.name == name]
        if not named:
            names = ", ".join(candidate.name for candidate in rivals)
            raise UsageError(f"no state '{name}' in '{path}'; --state takes {names}")
        taken = named[0]
    elif len(rivals) > 1:
        others = ", ".join(candidate.name for candidate in rivals if candidate is not taken)
        notes.append(
            f"'{path}' holds several sets of weights: took {taken.name} (--state takes {others})"
        )
    if omitted := taken.state.omitted:
        notes.append(f"'{path}': skipped objects other than tensors: {first_few(omitted)}")
    tensors, foreign = _split(taken, shapes)
    if foreign:
        roots = Counter(name.split(".")[0] for name in foreign)
        listed = first_few(f"{root} ({count})" for root, count in roots.items())
        notes.append(f"'{path}': skipped weights that are not the network's: {listed}")
    return Fitting(tensors, tuple(notes))


def _candidates(state: StateDict, shapes: Mapping[str, tuple[int, ...]]) -> list[_Candidate]:
    """The prefixes under which a state dict has names of the network, the empty one first."""
    hits: Counter[str] = Counter()
    for name, value in _renamed(state.tensors, shapes).items():
        parts = name.split(".", _DEEPEST)
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in shapes and len(shapes[rest]) == value.ndim:
                hits[name.removesuffix(rest)] += 1
    return [_Candidate(state, prefix, hits[prefix]) for prefix in sorted(hits, key=bool)]


def _renamed(tensors: Mapping[str, Tensor], required: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names that they have in a network that is not compiled."""
    tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
    if not any(".denselayer" in name for name in required):
        return tensors
    return {_DENSE_LAYER.sub(r"\1\2.", name): value for name, value in tensors.items()}


def _split(
    candidate: _Candidate, required: Mapping[str, object]
) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors under its names, and the names of the others."""
    tensors, prefix = _renamed(candidate.state.tensors, required), candidate.prefix
    foreign = [
        name
        for name in tensors
        if not name.startswith(prefix)
        or (name not in required and not prefix and _NO_LAYER.fullmatch(name.split(".")[0]))
    ]
    left = set(foreign)
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n not in left}, foreign


def head_classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The class count of a state dict whose only misfit is the first axis of the head."""
    counts = set()
    for name, value in module.state_dict().items():
        if name in state and state[name].shape != value.shape:
            if not state[name].shape or state[name].shape[1:] != value.shape[1:]:
                return None
            counts.add(len(state[name]))
    return counts.pop() if len(counts) == 1 else None


def _misfits(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    required = {name: v for name, v in module.state_dict().items() if isinstance(v, Tensor)}
    missing = [n for n in required if n not in state and not n.endswith(COUNTER)]
    unexpected = [name for name in state if name not in required]
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(value.shape)})"
        for name, value in required.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{what}: {first_few(names)}" for what, names in parts if names]


def _check_types(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that a network of floating-point weights cannot take."""
    required = module.state_dict()
    for name, value in state.items():
        target = required.get(name)
        odd = value.is_quantized or value.is_nested or value.is_meta or value.layout is not strided
        fits = (
            isinstance(target, Tensor) and target.is_floating_point() == value.is_floating_point()
        )
        if odd or (name in required and not fits):
            kind = "without values" if value.is_meta else str(value.dtype).removeprefix("torch.")
            layout = "" if value.layout is strided else f", {value.layout}".replace("torch.", "")
            raise CnnvizError(
                f"'{path}' holds {name} as {kind}{layout}, which no network here takes: save the "
                "weights of the network before it was quantised, pruned or converted"
            )


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copy a state dict into a network; raise if names, shapes or types differ, or for NaN."""
    _check_types(module, state, path)
    check_finite(state, path)
    entries: OrderedDict[str, Tensor] = OrderedDict(state)
    # Layers that changed their layout over time look up the version here.
    entries._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    try:
        # torch decides on names: layers know what they were called in earlier versions.
        left = module.load_state_dict(entries, strict=False)
        missing = [key for key in left.missing_keys if not key.endswith(COUNTER)]
        fits = not missing and not left.unexpected_keys
    except RuntimeError:  # a shape differs
        fits = False
    if not fits:
        misfits = "; ".join(_misfits(module, state))
        raise CnnvizError(f"'{path}' does not fit the model {name}; {misfits}")
