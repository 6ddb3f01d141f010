"""Weight files from strangers: read without running anything in them, fitted or refused.

A checkpoint is recognised by its content, not by its suffix. Pickles go through torch's restricted
unpickler alone (`weights_only=True`), so nothing in it runs: objects of others' packages (settings,
as Lightning saves them) are replaced by nothing, and a file that still needs more is refused.
What comes out are flat state dicts; `fitting.py` puts one into a network. Archives that bring their
own network are in `archives.py`.
"""

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE
from cnnviz.core.models.files.child import MEMORY_TIMES, tried

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net")
SUFFIXES = frozenset({".pth", ".pt", ".th", ".ckpt", ".safetensors", ".pt2", ".onnx"})
SHOWN = 3
LONGEST = 120  # letters of a name that is shown
DEPTH = 2  # dicts within dicts in which state dicts are looked for

_COUNTER = "num_batches_tracked"
_CHUNK = 2**20
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|global) ([\w.]+)")
# What training scripts save beside the weights: settings and numbers. A name here stands for no
# code that runs: whatever the file says of it is thrown away (`_Inert`).
_HARMLESS = {
    "builtins": "int float bool complex str bytes list dict",
    "__builtin__": "int float bool complex str bytes list dict",
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "numpy": "dtype ndarray bool_ int64 float64 float32",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "numpy.dtypes": " ".join(name for name in dir(np.dtypes) if name.endswith("DType")),
    "pathlib": "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "datetime": "datetime date time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID",
}
# Names that no training script saves; a file that has them is not read at all.
_NEVER = frozenset(
    {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "socket"}
    | {"importlib", "runpy", "ctypes", "pty"}
)
_HARMLESS_DICTS = (
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class Kind(StrEnum):
    """What a weight file is, by its content."""

    SAFETENSORS = "safetensors"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive"
    ONNX = "ONNX file"
    PICKLE = "checkpoint"


@dataclass(frozen=True)
class StateDict:
    """One of the state dicts that a file holds.

    Attributes:
        key: where it lies, as `model.ema`; empty at the top.
        tensors: by name.
        strangers: classes of others' packages in the file, of which nothing was read.
    """

    key: str
    tensors: dict[str, Tensor]
    strangers: tuple[str, ...] = ()


class _Inert:
    """Stands in for an object of no interest; takes whatever the file says and keeps nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _InertDict:
    """Stands in for a kind of dict: the unpickler fills dicts of its own alone."""

    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _InertList:
    """Stands in for a kind of list."""

    def __new__(cls, *_args: object) -> list[Any]:  # type: ignore[misc]
        return []


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
    if path.suffix.lower() == ".onnx":  # a protocol buffer says nothing of itself
        return Kind.ONNX
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
        "nor .safetensors nor .onnx"
    )


def check_zip(path: Path) -> None:
    """Refuses an archive that is another than was written, or unpacks to far more than its size.

    Entries without a checksum (torch can be told to write none) are taken as they are.

    Raises:
        CnnvizError: a checksum is wrong, or it unpacks to more than `MEMORY_TIMES` its size.
    """
    if not zipfile.is_zipfile(path):
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > MEMORY_TIMES * size:
                raise CnnvizError(
                    f"refused to read '{path}': its {size:,} bytes unpack to {unpacked:,}"
                )
            for entry in entries:
                with archive.open(entry) as stream:
                    while entry.CRC and stream.read(_CHUNK):
                        pass
    except DAMAGE as error:
        raise CnnvizError(
            f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}"
        ) from error


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


def refused(path: Path, cause: Exception | str) -> CnnvizError:
    """What to raise where a pickle needs more than tensors.

    Args:
        path: the file.
        cause: torch's restricted unpickler's error, or the name of what it needs.
    """
    text = " ".join(str(cause).split()).rpartition("WeightsUnpickler error:")[2].strip()
    found = _GLOBAL.search(text)
    # Without torch's advice to lift the restriction.
    needs = found.group(1) if found else text.partition(" Check the documentation")[0][:100]
    return CnnvizError(
        f"refused to read '{path}': it holds more than tensors ({needs}) and reading it could run "
        "code; save the network's state_dict() alone, best as .safetensors"
    )


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """For the restricted unpickler: what it calls under a harmless name."""
    named = ((module, names.split()) for module, names in _HARMLESS.items())
    plain = [(_Inert, f"{module}.{name}") for module, names in named for name in names]
    dicts = [(_InertDict, name) for name in _HARMLESS_DICTS]
    return [*plain, *dicts, (_InertList, "collections.deque")]


def _strangers(path: Path) -> list[str]:
    """Classes and functions of others' packages that a file names, which stand-ins can replace.

    Nothing is loaded for it. A file of torch's old format is not looked through.
    """
    try:
        with safe_globals(_stand_ins()):
            named = get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        return []
    return sorted(name for name in named if name.partition(".")[0] not in _NEVER)


def _read_pickle(path: Path) -> tuple[Any, list[str]]:
    """What a pickle holds, and the names of what was replaced by nothing."""
    try:
        strangers = _strangers(path)
        inert = [(_Inert, name) for name in strangers]
        with warnings.catch_warnings(action="ignore"), safe_globals([*_stand_ins(), *inert]):
            return torch.load(path, map_location="cpu", weights_only=True), strangers
    except pickle.UnpicklingError as error:
        raise refused(path, error) from error
    except (*DAMAGE, AttributeError, AssertionError, ArithmeticError, struct.error) as error:
        raise CnnvizError(
            f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}"
        ) from error


def _tensors(content: object) -> dict[str, Tensor]:
    """The tensors of a mapping by name; empty for anything else."""
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def find_state_dicts(content: object, path: Path) -> list[StateDict]:
    """The state dicts in what a checkpoint holds, outermost first, customary keys before others.

    Raises:
        CnnvizError: there is none.
    """
    found = list(_state_dicts(content, "", DEPTH))
    if found:
        return found
    held = f"its keys are {first(map(str, content))}" if isinstance(content, Mapping) else ""
    looked = ", ".join(STATE_DICT_KEYS)
    raise CnnvizError(
        f"'{path}' holds no state dict; it was looked for at the top and under {looked}; "
        f"{held or f'the file holds a {type(content).__name__}'}"
    )


def _state_dicts(content: object, key: str, depth: int) -> Iterator[StateDict]:
    if not isinstance(content, Mapping):
        return
    if tensors := _tensors(content):
        yield StateDict(key, tensors)
    if depth:
        customary = [inner for inner in STATE_DICT_KEYS if inner in content]
        for inner in (*customary, *(k for k in content if k not in STATE_DICT_KEYS)):
            if isinstance(inner, str):
                yield from _state_dicts(content[inner], f"{key}.{inner}".lstrip("."), depth - 1)


def read_state_dicts(path: Path, kind: Kind) -> list[StateDict]:
    """The state dicts in a pickle or .safetensors file, on the CPU.

    Raises:
        CnnvizError: the file is damaged, needs more than tensors, or holds no state dict.
    """
    if kind is Kind.SAFETENSORS:
        try:
            return [StateDict("", load_file(path))]
        except (SafetensorError, OSError, ValueError) as error:
            raise CnnvizError(
                f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}"
            ) from error
    tried(path, lambda: _from_pickle(path))
    return _from_pickle(path)


def _from_pickle(path: Path) -> list[StateDict]:
    content, strangers = _read_pickle(path)
    try:
        found = find_state_dicts(content, path)
    except CnnvizError as error:
        if not strangers:
            raise
        raise refused(path, strangers[0]) from error
    return [replace(state, strangers=tuple(strangers)) for state in found]


def first(items: Iterable[str]) -> str:
    """The first few of some names, and how many more there are; long ones are cut."""
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    shown = (name if len(name) <= LONGEST else name[:LONGEST] + "…" for name in listed[:SHOWN])
    return ", ".join(shown) + more


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
        raise CnnvizError(f"'{path}' holds NaN or infinity in {first(spoilt)}")
