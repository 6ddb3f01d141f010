"""Weight files from strangers: read without running anything in them, or refused.

Pickles go through torch's restricted unpickler alone (`weights_only=True`): nothing in them runs.
Objects of other packages (settings, as Lightning saves them) become empty placeholders; a file that
needs more than that is refused. The result is flat state dicts, which `core/models/fitting.py`
copies into a network.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import DAMAGE
from cnnviz.core.models.files.child import MEMORY_TIMES, run_in_child
from cnnviz.core.models.files.kinds import Kind, damaged, first_few, kind_of

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net")
COUNTER = "num_batches_tracked"
"""Batch norm's counter: inference does not use it, and some formats drop it."""
STATISTICS = ("running_mean", "running_var")
DEPTH = 2  # nested dicts in which state dicts are searched
DEEPEST, MOST_PARTS = 32, 50_000  # of a pickled network

_PROTOCOL_4 = range(0x8C, 0x99)  # operands that pickle protocols 4 and 5 added
_CHUNK = 2**20
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|global) ([\w.]+)")
# Settings and numbers that training scripts save with the weights. `_Inert` takes the place of
# these names: no code of theirs runs, and their values are discarded.
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
# No training script saves names of these modules; a file that has one is refused.
_FORBIDDEN = frozenset(
    {"builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "socket"}
    | {"importlib", "runpy", "ctypes", "pty"}
)
_HARMLESS_DICTS = (
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


@dataclass(frozen=True)
class StateDict:
    """One of the state dicts in a file."""

    key: str
    """Its place in the file, as `model.ema`; empty at the top."""
    tensors: dict[str, Tensor]
    omitted: tuple[str, ...] = ()
    """Classes of other packages in the file, which were not read."""


class _Inert:
    """Placeholder for an object of no interest; accepts any state and keeps nothing."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


class _Part(_Inert):
    """Placeholder for a pickled object that keeps its attributes, and runs nothing."""

    held: Mapping[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.held = state if isinstance(state, dict) else {}


class _InertArray(_Inert):
    """Placeholder for an array of numpy."""


class _InertDict:
    """Placeholder for a kind of dict: the unpickler fills only dicts that it knows."""

    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _InertList:
    """Placeholder for a kind of list."""

    def __new__(cls, *_args: object) -> list[Any]:  # type: ignore[misc]
        return []


def unsafe_pickle(path: Path, cause: Exception | str) -> CnnvizError:
    """The error to raise for a pickle that needs more than tensors.

    `cause` is the restricted unpickler's error, or the name of what it needs.
    """
    text = " ".join(str(cause).split()).rpartition("WeightsUnpickler error:")[2].strip()
    operand = re.match(r"Unsupported operand (\d+)", text)
    if operand and int(operand[1]) in _PROTOCOL_4 and zipfile.is_zipfile(path):
        return CnnvizError(
            f"refused to read '{path}': it was saved with pickle protocol 4 or 5, which torch's "
            "restricted unpickler does not read; save it again without pickle_protocol, or as "
            ".safetensors"
        )
    match = _GLOBAL.search(text)
    # Without torch's advice to lift the restriction.
    needs = match.group(1) if match else text.partition(" Check the documentation")[0][:100]
    return CnnvizError(
        f"refused to read '{path}': it holds more than tensors ({needs}) and reading it could run "
        "code; save the network's state_dict() alone, best as .safetensors"
    )


def check_zip(path: Path) -> None:
    """Refuse an archive with a wrong checksum, or that unpacks to `MEMORY_TIMES` its size.

    Entries without a checksum (torch writes none on request) pass.
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
        raise damaged(path, error) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a network's state dict.

    Entries are sorted by name; batch norm's counters are left out.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor) or name.endswith(COUNTER):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        try:
            flat = value.detach().cpu().contiguous().reshape(-1)
        except RuntimeError as error:  # as an expanded tensor of one number may be
            raise CnnvizError(
                f"the tensor '{name}' of shape {tuple(value.shape)} does not fit the memory"
            ) from error
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _placeholders() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What the restricted unpickler calls under harmless names."""
    named = ((module, names.split()) for module, names in _HARMLESS.items())
    plain = [
        (_InertArray if name == "_reconstruct" else _Inert, f"{module}.{name}")
        for module, names in named
        for name in names
    ]
    dicts = [(_InertDict, name) for name in _HARMLESS_DICTS]
    return [*plain, *dicts, (_InertList, "collections.deque")]


def _foreign_names(path: Path) -> list[str]:
    """Classes and functions of other packages that a file names, which placeholders can replace.

    Nothing is loaded. A file of torch's old format is not searched.
    """
    try:
        with safe_globals(_placeholders()):
            named = get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        return []
    return sorted(name for name in named if name.partition(".")[0] not in _FORBIDDEN)


def _unpickled(
    path: Path, foreign: type[_Inert], *, skip_values: bool
) -> tuple[object, tuple[str, ...]]:
    """The content of a pickle with placeholders for foreign objects, and the names of these."""
    try:
        omitted = tuple(_foreign_names(path))
        inert = [(foreign, name) for name in omitted]
        with warnings.catch_warnings(action="ignore"), safe_globals([*_placeholders(), *inert]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=skip_values)
        return content, omitted
    except pickle.UnpicklingError as error:
        raise unsafe_pickle(path, error) from error
    except (*DAMAGE, AttributeError, AssertionError, ArithmeticError, struct.error) as error:
        raise damaged(path, error) from error


def _read_pickle(path: Path, *, skip_values: bool = False) -> list[StateDict]:
    content, omitted = _unpickled(path, _Inert, skip_values=skip_values)
    try:
        return [replace(state, omitted=omitted) for state in find_state_dicts(content, path)]
    except CnnvizError as error:
        if not omitted:
            raise
        raise unsafe_pickle(path, omitted[0]) from error


def find_state_dicts(content: object, path: Path) -> list[StateDict]:
    """Find the state dicts in a checkpoint's content: outermost first, usual keys before others."""
    states = list(_state_dicts(content, "", DEPTH))
    if states:
        return states
    if any(isinstance(value, _InertArray) for value in _values(content, DEPTH)):
        raise CnnvizError(
            f"'{path}' holds numpy arrays instead of tensors; save them as tensors "
            "(torch.from_numpy), best as .safetensors"
        )
    held = f"its keys are {first_few(map(str, content))}" if isinstance(content, Mapping) else ""
    raise CnnvizError(
        f"'{path}' holds no state dict at the top or under {', '.join(STATE_DICT_KEYS)}; "
        f"{held or f'the file holds a {type(content).__name__}'}"
    )


def _values(content: object, depth: int) -> Iterator[object]:
    for value in content.values() if isinstance(content, Mapping) else ():
        yield value
        if depth:
            yield from _values(value, depth - 1)


def _state_dicts(content: object, key: str, depth: int) -> Iterator[StateDict]:
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield StateDict(key, tensors)
    if depth:
        usual = [inner for inner in STATE_DICT_KEYS if inner in content]
        for inner in (*usual, *(k for k in content if k not in STATE_DICT_KEYS)):
            if isinstance(inner, str):
                yield from _state_dicts(content[inner], f"{key}.{inner}".lstrip("."), depth - 1)


def read_state_dicts(path: Path, kind: Kind) -> list[StateDict]:
    """Read the state dicts of a pickle or .safetensors file, on the CPU.

    A child process first builds the pickle's objects without reading the tensors' values, since
    keys can be made to take for ever to hash, or buffers to fill the memory.
    """
    if kind is Kind.SAFETENSORS:
        return [StateDict("", _read_safetensors(path))]
    run_in_child(path, lambda: _read_pickle(path, skip_values=zipfile.is_zipfile(path)))
    return _read_pickle(path)


def read_network(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The state dict of a whole pickled network, as ultralytics saves it, and its attributes.

    Averaged weights (`ema`) come before raw ones (`model`). The objects of the file are never
    made: placeholders keep their tensors and plain values.

    Raises:
        CnnvizError: the file is not such a pickle, or is damaged.
    """

    def read(skip_values: bool) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        content, _ = _unpickled(path, _Part, skip_values=skip_values)
        held = content if isinstance(content, dict) else {}
        found = (held[key] for key in ("ema", "model") if isinstance(held.get(key), _Part))
        if (network := next(found, None)) is None:
            raise CnnvizError(f"'{path}' holds no network of ultralytics under 'model' or 'ema'")
        return dict(_tensors_below(network, "", DEEPEST, [MOST_PARTS], path)), network.held

    if kind_of(path) is not Kind.PICKLE:
        raise CnnvizError(f"'{path}' is a {kind_of(path)}, not a checkpoint of ultralytics")
    check_zip(path)
    run_in_child(path, lambda: read(zipfile.is_zipfile(path)))
    return read(skip_values=False)


def _tensors_below(
    part: _Part, prefix: str, depth: int, left: list[int], path: Path
) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a pickled module; `left` counts the parts still allowed."""
    left[0] -= 1
    if not depth or left[0] < 0:
        raise CnnvizError(f"'{path}' holds a network of too many parts")
    for kind in ("_parameters", "_buffers", "_modules"):
        values = part.held.get(kind)
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, Tensor) and kind != "_modules":
                yield f"{prefix}{name}", value
            elif isinstance(value, _Part) and kind == "_modules":
                yield from _tensors_below(value, f"{prefix}{name}.", depth - 1, left, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors, also under the names that the metadata gives as other names of one of them."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            others = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    return {name: tensors[one] for name, one in others.items() if one in tensors} | tensors


def read_shards(files: Iterable[Path]) -> StateDict:
    """Read the state dict of a checkpoint in several files."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        kind = kind_of(file)
        check_zip(file)
        if kind not in (Kind.SAFETENSORS, Kind.PICKLE):
            raise CnnvizError(f"'{file}' is a {kind}, not a part of a checkpoint")
        part = read_state_dicts(file, kind)[0].tensors
        if double := sorted(tensors.keys() & part.keys()):
            raise CnnvizError(f"'{file}' holds {first_few(double)}, as another part does, too")
        tensors |= part
    return StateDict("", tensors)


def check_finite(state: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    """Refuse weights with NaN or infinity; the message names the first few tensors.

    Of a network's buffers only the statistics of norms count: masks hold infinity, counters NaN.
    """
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    spoilt = [
        name
        for name, value in state.items()
        if (name in weights or name.endswith(STATISTICS)) and not _is_finite(value)
    ]
    if spoilt:
        raise CnnvizError(f"'{path}' holds NaN or infinity in {first_few(spoilt)}")


def _is_finite(value: Tensor) -> bool:
    if value.is_floating_point():
        try:
            value = value.float()  # 8 bits have no such operation
        except NotImplementedError:  # 4 bits cannot even be converted, and are refused later
            return True
    return bool(torch.isfinite(value).all())
