"""From what a user can name to a network with its weights, wherever these come from.

The weights are the publisher's, those of a checkpoint, those of an archive that is a network too,
or random ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnviz.core.errors import UsageError
from cnnviz.core.models import checkpoints
from cnnviz.core.models.architectures import find_architecture
from cnnviz.core.models.archives import SELF_CONTAINED, open_archive
from cnnviz.core.models.checkpoints import Kind, StateDict, read_state_dicts
from cnnviz.core.models.fitting import choose, fit, head_classes
from cnnviz.core.models.preprocess import Preprocess, plain
from cnnviz.core.models.probing import probe
from cnnviz.core.models.published import Architecture, Published, fetch
from cnnviz.core.models.torchscript import script_weights
from cnnviz.core.models.trial import tried

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
