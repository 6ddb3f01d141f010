"""Weight files from strangers: read without running anything in them, fitted or refused.

A checkpoint is recognised by its content, not by its suffix. Pickles go through torch's restricted
unpickler alone (`weights_only=True`): a file that needs more is refused, and nothing in it runs.
What comes out is a flat state dict; `fit` puts it into a network, or says which names are missing,
unexpected or of another shape. Archives that bring their own network are in `archives.py`.
"""

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError, UsageError, one_line

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net")
PREFIXES = ("module.", "model.", "_orig_mod.")
SHOWN = 3

_COUNTER = "num_batches_tracked"
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|global) ([\w.]+)")
# torchvision's published DenseNets write norm.1 for what the network calls norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


class Kind(StrEnum):
    """What a weight file is, by its content."""

    SAFETENSORS = "safetensors"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive"
    PICKLE = "checkpoint"


def _kind_of_zip(path: Path) -> Kind:
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] or name for name in archive.namelist()]
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Kind.TORCHSCRIPT
    if "archive_format" in names or "serialized_exported_program.json" in archive.namelist():
        return Kind.EXPORTED
    return Kind.PICKLE


def kind_of(path: Path) -> Kind:
    """What the file is.

    Raises:
        UsageError: there is no such file.
        CnnvizError: it is empty, truncated, or no weight file of any kind.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint file '{path}'")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CnnvizError(f"the checkpoint '{path}' is empty")
    if head.startswith(b"version https://git-lfs"):
        raise CnnvizError(f"'{path}' is a Git LFS pointer, not the file itself; run git lfs pull")
    if head.startswith(b"PK"):
        try:
            return _kind_of_zip(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CnnvizError(
                f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}"
            ) from error
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Kind.SAFETENSORS
    if head.startswith(b"\x80"):
        return Kind.PICKLE
    raise CnnvizError(
        f"'{path}' is no checkpoint: neither a PyTorch file (.pth .pt .th .ckpt .pt2) "
        "nor .safetensors"
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """The SHA-256 over names, types, shapes and bytes of a network's state dict.

    Entries are taken in order of their names; batch norm's counters are left out, since they play
    no part in inference and some formats drop them.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor) or name.endswith(_COUNTER):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _refuse(path: Path, error: Exception) -> CnnvizError:
    """What torch's restricted unpickler stopped at, without its advice to lift the restriction."""
    text = one_line(error).rpartition("WeightsUnpickler error:")[2].strip()
    found = _GLOBAL.search(text)
    needs = found.group(1) if found else text.partition(" Check the documentation")[0][:100]
    return CnnvizError(
        f"refused to read '{path}': it holds more than tensors ({needs}) and reading it could run "
        "code; save the network's state_dict() alone, best as .safetensors"
    )


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refuse(path, error) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise CnnvizError(
            f"the checkpoint '{path}' is truncated or damaged: {one_line(error)[:200]}"
        ) from error


def _tensors(content: object) -> dict[str, Tensor]:
    """The tensors of a mapping by name; empty for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def find_state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict in what a checkpoint holds: the content itself, or under a customary key.

    Raises:
        CnnvizError: there is none.
    """
    if isinstance(content, Mapping):
        for key in STATE_DICT_KEYS:
            if found := _tensors(content.get(key)):
                return found
    if found := _tensors(content):
        return found
    held = f"its keys are {_first(map(str, content))}" if isinstance(content, Mapping) else ""
    looked = ", ".join(STATE_DICT_KEYS)
    raise CnnvizError(
        f"'{path}' holds no state dict; it was looked for at the top and under {looked}; "
        f"{held or f'the file holds a {type(content).__name__}'}"
    )


def read_state_dict(path: Path, kind: Kind) -> dict[str, Tensor]:
    """The state dict in a pickle or .safetensors file, on the CPU.

    Raises:
        CnnvizError: the file is damaged, needs more than tensors, or holds no state dict.
    """
    if kind is Kind.SAFETENSORS:
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CnnvizError(
                f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}"
            ) from error
    return find_state_dict(_read_pickle(path), path)


def _first(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def match_names(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Strips wrappers' prefixes that all names share, as far as that makes more names fit."""
    known = set(wanted)
    best = candidate = state
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in candidate)), None):
        if not candidate:
            break
        candidate = {name.removeprefix(prefix): value for name, value in candidate.items()}
        if len(known & candidate.keys()) > len(known & best.keys()):
            best = candidate
    renamed = {_DENSE_LAYER.sub(r"\1\2.", name): value for name, value in best.items()}
    return renamed if len(known & renamed.keys()) > len(known & best.keys()) else best


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
    return [f"{what}: {_first(names)}" for what, names in parts if names]


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuses weights that are not numbers.

    Raises:
        CnnvizError: a tensor holds NaN or infinity; the first few are named.
    """
    spoilt = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not torch.isfinite(value.float()).all()
    ]
    if spoilt:
        raise CnnvizError(f"'{path}' holds NaN or infinity in {_first(spoilt)}")


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Copies a state dict into a network.

    Raises:
        CnnvizError: names or shapes differ, or a tensor holds NaN or infinity.
    """
    if misfits := _misfits(module, state):
        raise CnnvizError(f"'{path}' does not fit the model {name}; {'; '.join(misfits)}")
    check_finite(state, path)
    entries: OrderedDict[str, Tensor] = OrderedDict(state)
    # Layers that changed their layout over time look the version up here.
    entries._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(entries, strict=False)
