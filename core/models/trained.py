"""From a name, a file or both to a network with its weights.

The weights are the publisher's, a checkpoint's (`fitting.py`), an archive's, or random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import UsageError
from cnnviz.core.models.behaviour import probe
from cnnviz.core.models.files import checkpoints
from cnnviz.core.models.files.archives import SELF_CONTAINED, open_archive, script_weights
from cnnviz.core.models.files.checkpoints import StateDict, read_shards, read_state_dicts
from cnnviz.core.models.files.child import run_in_child
from cnnviz.core.models.files.kinds import SUFFIXES, Kind, kind_of, shards
from cnnviz.core.models.fitting import choose, fit, head_classes, matches
from cnnviz.core.models.preprocess import Assumed, Preprocess, plain, plain_for
from cnnviz.core.models.zoo import find_architecture
from cnnviz.core.models.zoo.published import Architecture, Published, fetch, nearest_in_size
from cnnviz.core.models.zoo.towers import ImageTower

BUNDLED = "bundled"
_USUAL_SIZE = (224, 224)
PASS_PIXELS, PASS_MEMORY, PASS_SECONDS = 512**2, 4 * 2**30, 120
"""Limits for the first pass of an archive's network: bytes and seconds per so many pixels."""

Adjust = Callable[[Preprocess, bool], Preprocess]
"""A preprocessing, and whether it is the publisher's, to the user's."""


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
    head: HeadChoice = HeadChoice.AUTO
    """What the publisher says about the outputs."""
    headless: str = ""
    """Why it has no classifier: its outputs are features; empty if it has one."""
    assumed: Assumed | None = None
    """Whose preprocessing it has, if nothing says how its images were prepared."""


def find_trained(
    name: str,
    file: Path | None,
    weights: str | None,
    state: str | None,
    adjusted: Adjust,
    labels: int | None,
    features: bool = False,
) -> Trained:
    """Find the network for a name, a checkpoint or archive, or both; see `load_model`.

    `name` can be the file itself; `labels` is the number of class names that were given; with
    `features`, a checkpoint may lack the classifier.
    """
    if file is None and Path(name).suffix.lower() in SUFFIXES and ":" not in name:
        name, file = BUNDLED, Path(name)
    kind = kind_of(file) if file is not None else None
    if kind is Kind.ONNX and name != BUNDLED:
        raise UsageError(f"'{file}' contains its own network: name it alone, --model {file}")
    if file is None or kind not in SELF_CONTAINED or name != BUNDLED:
        return _from_architecture(name, file, weights, state, adjusted, labels, features)
    if weights is not None:
        raise UsageError(f"--weights {weights}: '{file}' contains its own weights")
    if state is not None:
        raise UsageError(f"--state {state}: '{file}' holds one network with its weights")
    return _from_archive(file, kind, adjusted)


def _from_archive(path: Path, kind: Kind, adjusted: Adjust) -> Trained:
    def opened() -> Trained:
        archive = open_archive(path, kind)
        preprocess = adjusted(plain_for(archive.size), False)
        digest, assumed = checkpoints.file_sha256(path), Assumed(f"'{path}'")
        return Trained(archive.module, path.name, preprocess, (), digest, assumed=assumed)

    def run_once() -> None:
        network = opened()
        size, channels = network.preprocess.crop, network.preprocess.channels
        probe(network.module, path.name, channels, size, torch.float32, torch.device("cpu"))

    checkpoints.check_zip(path)
    rows, columns = adjusted(plain(None), False).crop
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
    features: bool,
) -> Trained:
    architecture, notes = find_architecture(name), tuple[str, ...]()
    states = [] if checkpoint is None else _state_dicts(checkpoint)
    if checkpoint is not None and name == BUNDLED:
        architecture, notes = _recognised(architecture, checkpoint, states)
    entry = _published_entry(architecture, weights, checkpoint)
    assumed = _assumed(architecture, entry, weights, checkpoint)
    if assumed and architecture.transforms_input and entry:
        entry = architecture.transforms_input(entry)
    published = entry is not None and entry.assumed is None
    preprocess = adjusted(entry.preprocess if entry else plain(None), published)
    size, notes = preprocess.crop, (*notes, *(entry.notes if entry else ()))
    ready, headless = entry if weights != "none" else None, ""
    if checkpoint is not None:
        loaded = _with_weights(architecture, checkpoint, states, size, state, features)
        module, headless, notes = loaded.module, loaded.headless, (*notes, *loaded.notes)
        if assumed and architecture.transforms_input:
            network: Any = module
            network.transform_input = False  # its preprocessing is that of the inner network
    elif ready is None:
        module = architecture.make(labels if architecture.needs_classes else None, size)
    elif ready.network is not None:
        module, headless = ready.network(size)
    else:
        file = fetch(ready, architecture.name)
        module = _with_weights(architecture, file, _state_dicts(file), size).module
        for norm in module.modules():
            if ready.eps is not None and isinstance(norm, nn.BatchNorm2d):
                norm.eps = ready.eps
    module.eval()
    return Trained(
        module,
        architecture.name,
        preprocess,
        ready.labels if ready else (),
        checkpoints.weights_sha256(module),
        notes,
        entry.head if entry else HeadChoice.AUTO,
        headless or _headless(module, architecture.name),
        assumed,
    )


def _headless(module: nn.Module, name: str) -> str:
    """Why a whole network has no classifier; empty if it has one."""
    if isinstance(module, ImageTower):
        return f"{name} has a tower for images and one for texts (--text), no classifier"
    none = 0 in (getattr(module, "num_classes", None), getattr(module, "num_labels", None))
    return f"{name} has no classifier (0 classes)" if none else ""


def _recognised(
    bundled: Architecture, path: Path, states: Sequence[StateDict]
) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture of a checkpoint that is given without one, by names and shapes.

    It is the bundled one if no model of torchvision matches.
    """
    count = max(sum(value.numel() for value in state.tensors.values()) for state in states)
    for name in (BUNDLED, *nearest_in_size(count, path.name)):
        architecture = bundled if name == BUNDLED else find_architecture(name)
        try:
            with torch.device("meta"):
                module = architecture.make(None, _USUAL_SIZE)
        except NotImplementedError:  # it computes its widths with tensors
            module = architecture.make(None, _USUAL_SIZE)
        if matches(module, architecture.needed(choose(states, module, None, path).tensors)):
            note = f"'{path}' has the names and shapes of {name}: loaded as --model {name}"
            return architecture, () if name == BUNDLED else (note,)
    return bundled, ()


def _assumed(
    architecture: Architecture, entry: Published | None, weights: str | None, file: Path | None
) -> Assumed | None:
    """Whose preprocessing is taken for weights that do not define any; None if they do."""
    if entry is None:
        return Assumed(architecture.name)
    if entry.assumed is not None or file is None or weights not in (None, "none"):
        return entry.assumed
    if entry.holds(file) or architecture.names_weights:
        return None
    option = "--weights" if len(architecture.published) > 1 else ""
    return Assumed(f"'{file}'", f"for {entry.name} of {architecture.name}", option)


def _published_entry(
    architecture: Architecture, weights: str | None, checkpoint: Path | None
) -> Published | None:
    """The publisher's entry for the weights or, with a checkpoint, for the preprocessing."""
    entries = architecture.published
    if weights in (None, "none"):
        if weights is None and checkpoint is None and architecture.default:
            return entries[architecture.default]
        same = (entry for entry in entries.values() if checkpoint and entry.holds(checkpoint))
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
    kind = kind_of(path)
    if parts := shards(path):
        return [read_shards(parts)]
    checkpoints.check_zip(path)
    if kind not in SELF_CONTAINED:
        return read_state_dicts(path, kind)

    def tensors() -> dict[str, Tensor]:
        return script_weights(path) if kind is Kind.TORCHSCRIPT else open_archive(path, kind).state

    run_in_child(path, tensors)
    return [StateDict("", tensors())]


@dataclass(frozen=True)
class _Loaded:
    """A network with the weights of a file."""

    module: nn.Module
    headless: str
    """Why its classifier was removed; empty if it was not."""
    notes: tuple[str, ...]


def _with_weights(
    architecture: Architecture,
    path: Path,
    states: Sequence[StateDict],
    size: tuple[int, int],
    state_name: str | None = None,
    features: bool = False,
) -> _Loaded:
    """Build the network for as many classes as the file's head has, with its weights."""
    module = architecture.make(None, size)
    chosen = choose(states, module, state_name, path)
    state = architecture.needed(chosen.tensors)
    classes = head_classes(module, state) if architecture.sets_classes else None
    if classes is not None:
        module = architecture.make(classes, size)
    hint = " (name its architecture with --model)" if architecture.name == BUNDLED else ""
    headless = fit(module, state, path, architecture.name + hint, features)
    return _Loaded(module, headless, chosen.notes)
