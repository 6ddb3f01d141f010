"""TorchScript archives: their weights without their program, and their program if nothing else.

An archive is a zip of pickled values (`data.pkl`, `data/`) and of a program (`code/`), which
torch's interpreter runs, parts of it while the archive is loaded. Weights alone are read out of
the values by torch's restricted unpickler, and the program is not looked at. To be run, it must not
name an operator that reaches files.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE
from cnnviz.core.models.checkpoints import refused

_VALUES = re.compile(r"data\.pkl|data/\d+|version|byteorder")
_OPERATOR = re.compile(r"\bops\s*\.\s*(\w+)\s*\.\s*(\w+)")
_CLASSES = re.compile(r"\btorch\s*\.\s*classes\b")
_WORD = re.compile(r"\w+")
_NAMESPACES = {"aten", "prim", "quantized", "_quantized", "torchvision", "mkldnn_prepacked"}
_DEEPEST = 64
_OWN = ("__torch__.", "torch.jit._pickle.")


class _Part:
    """A module of the archive's: its values, without its program."""

    def __init__(self, *_arguments: object) -> None:
        self.values: object = {}

    def __setstate__(self, values: object) -> None:
        self.values = values


def script_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive's modules by name; nothing of its program is run.

    Raises:
        CnnvizError: it is damaged, or keeps its weights in its program.
    """
    try:
        values = _read(path)
    except pickle.UnpicklingError as error:
        raise refused(path, error) from error
    except (*DAMAGE, AttributeError, AssertionError) as error:
        text = one_line(error)
        raise CnnvizError(f"the archive '{path}' cannot be read: {text}") from error
    found = dict(_tensors(values))
    if not found:
        raise CnnvizError(
            f"'{path}' holds no weights beside its program (it is frozen); save the network's "
            "state_dict() before it is frozen"
        )
    return found


def _read(path: Path) -> object:
    """What `data.pkl` holds, in an archive that has nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as values:
        for name in archive.namelist():
            if _VALUES.fullmatch(name.partition("/")[2]):
                values.writestr(name, archive.read(name))
    names = get_unsafe_globals_in_checkpoint(_rewound(buffer))
    modules: list[Any] = [(_Part, name) for name in names if name.startswith(_OWN)]
    with warnings.catch_warnings(action="ignore"), safe_globals(modules):
        content: object = torch.load(_rewound(buffer), map_location="cpu", weights_only=True)
        return content


def _rewound(buffer: io.BytesIO) -> io.BytesIO:
    buffer.seek(0)
    return buffer


def _tensors(part: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(part, _Part) or not isinstance(part.values, dict) or depth > _DEEPEST:
        return
    for key, value in part.values.items():
        inner = f"{name}.{key}".lstrip(".")
        if isinstance(value, Tensor):
            yield inner, value
        else:
            yield from _tensors(value, inner, depth + 1)


@cache
def _reaching_files() -> frozenset[str]:
    """Operators that take the name of a file, by torch's own account, without their namespace."""
    schemas: Any = torch._C._jit_get_all_schemas()
    named = [s.name for s in schemas if any(a.name == "filename" for a in s.arguments)]
    known = {"save", "from_file"}
    return frozenset({name.rpartition("::")[2] for name in named} | known)


def check_program(path: Path) -> None:
    """Refuses an archive whose program names an operator that reaches files.

    Raises:
        CnnvizError: it does, or brings operators of its own.
    """
    with zipfile.ZipFile(path) as archive:
        code = [n for n in archive.namelist() if n.partition("/")[2].startswith("code/")]
        programs = [archive.read(n).decode(errors="replace") for n in code if n.endswith(".py")]
    for text in programs:
        words = set(_WORD.findall(text))
        strange = [f"{a}::{b}" for a, b in _OPERATOR.findall(text) if a not in _NAMESPACES]
        if found := [*sorted(words & _reaching_files()), *strange, *_CLASSES.findall(text)]:
            raise CnnvizError(
                f"refused to run '{path}': its program names '{found[0]}', which may reach files; "
                "save the network's state_dict() and name the architecture with --model"
            )


def load_script(path: Path) -> nn.Module:
    """The network in an archive, on the CPU; its program is run now and whenever it is called.

    Raises:
        CnnvizError: it is damaged, or its program may reach files.
    """
    try:
        check_program(path)
        # torch announces TorchScript's end at every load; users' files are here all the same.
        with warnings.catch_warnings(action="ignore"):
            module: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            if hasattr(module, "training"):
                module.eval()
    except (*DAMAGE, AttributeError) as error:
        text = one_line(error)
        raise CnnvizError(f"the archive '{path}' cannot be read: {text}") from error
    network: nn.Module = module
    return network
