"""Archives that contain their own network: TorchScript, torch.export and ONNX.

A TorchScript archive is a zip of pickled values (`data.pkl`, `data/`) and of a program (`code/`),
which torch's interpreter runs, parts of it while the archive is loaded. The interpreter offers
tensor operations and no Python, but no guarantee against a hostile author. Weights alone are read
from the values with torch's restricted unpickler, without running the program. To be run, the
program must not name an operator that accesses files. torch.export archives are checked and
rewritten first (`exported.py`). ONNX files run as black boxes in onnxruntime: outputs can be read,
layers and gradients cannot, and custom operators are never loaded.

Shapes: N images, C channels, H W rows and columns, K classes.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import DAMAGE
from cnnviz.core.models.behaviour import Wrapper
from cnnviz.core.models.files.checkpoints import check_finite, unsafe_pickle
from cnnviz.core.models.files.exported import Archive, load_exported, unreadable
from cnnviz.core.models.files.kinds import Kind

SELF_CONTAINED = (Kind.TORCHSCRIPT, Kind.EXPORTED, Kind.ONNX)

_VALUES = re.compile(r"data\.pkl|data/\d+|version|byteorder")
_OPERATOR = re.compile(r"\bops\s*\.\s*(\w+)\s*\.\s*(\w+)")
_CLASSES = re.compile(r"\btorch\s*\.\s*classes\b")
_WORD = re.compile(r"\w+")
_NAMESPACES = {"aten", "prim", "quantized", "_quantized", "torchvision", "mkldnn_prepacked"}
_DEEPEST = 64
_MODULES = ("__torch__.", "torch.jit._pickle.")

COLOURS = (1, 3)
NUMBERS = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}


def open_archive(path: Path, kind: Kind) -> Archive:
    """Load the network of an archive, on the CPU and for batches of any size."""
    load = {Kind.TORCHSCRIPT: _load_script, Kind.EXPORTED: load_exported, Kind.ONNX: _load_onnx}
    archive = load[kind](path)
    check_finite(archive.state, archive.module, path)
    if archive.batch is None:
        return archive
    return replace(archive, module=FixedBatch(archive.module, archive.batch).eval())


class FixedBatch(Wrapper):
    """Feeds a network that takes exactly `batch` images at a time; the last batch is padded."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__(network)
        self.batch = batch

    def forward(self, x: Any) -> Tensor:
        """Images (N, 3, H, W) of any N to (N, K)."""
        if isinstance(x, fx.Proxy):
            images = "image" if self.batch == 1 else "images"
            raise TypeError(
                f"its graph takes {self.batch} {images} at a time and no other number; export it "
                "with a dynamic batch"
            )
        outputs = []
        for part in torch.split(x, self.batch):
            blank = part.new_zeros(self.batch - len(part), *part.shape[1:])
            outputs.append(self.network(torch.cat([part, blank]))[: len(part)])
        return torch.cat(outputs)


# TorchScript


class _Part:
    """A module of the archive: its values, without its program."""

    def __init__(self, *_arguments: object) -> None:
        self.values: object = {}

    def __setstate__(self, values: object) -> None:
        self.values = values


def script_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an archive's modules by name; nothing of its program runs."""
    try:
        values = _read(path)
    except pickle.UnpicklingError as error:
        raise unsafe_pickle(path, error) from error
    except (*DAMAGE, AttributeError, AssertionError) as error:
        raise unreadable(path, error) from error
    weights = dict(_tensors(values))
    if not weights:
        raise CnnvizError(
            f"'{path}' holds no weights outside its program (it is frozen); save the network's "
            "state_dict() before it is frozen"
        )
    return weights


def _read(path: Path) -> object:
    """Read `data.pkl`, from a copy of the archive without its program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as values:
        for name in archive.namelist():
            if _VALUES.fullmatch(name.partition("/")[2]):
                values.writestr(name, archive.read(name))
    buffer.seek(0)
    names = get_unsafe_globals_in_checkpoint(buffer)
    modules: list[Any] = [(_Part, name) for name in names if name.startswith(_MODULES)]
    buffer.seek(0)
    with warnings.catch_warnings(action="ignore"), safe_globals(modules):
        content: object = torch.load(buffer, map_location="cpu", weights_only=True)
        return content


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
def _file_operators() -> frozenset[str]:
    """Names of the operators that take a file name, by torch's schemas, without namespaces."""
    schemas: Any = torch._C._jit_get_all_schemas()
    named = [s.name for s in schemas if any(a.name == "filename" for a in s.arguments)]
    return frozenset(name.rpartition("::")[2] for name in named) | {"save", "from_file"}


def check_program(path: Path) -> None:
    """Refuse an archive whose program names an operator that accesses files, or a custom one."""
    with zipfile.ZipFile(path) as archive:
        code = [n for n in archive.namelist() if n.partition("/")[2].startswith("code/")]
        programs = [archive.read(n).decode(errors="replace") for n in code if n.endswith(".py")]
    for text in programs:
        words = set(_WORD.findall(text))
        custom = [f"{a}::{b}" for a, b in _OPERATOR.findall(text) if a not in _NAMESPACES]
        if names := [*sorted(words & _file_operators()), *custom, *_CLASSES.findall(text)]:
            raise CnnvizError(
                f"refused to run '{path}': its program names '{names[0]}', which may access files; "
                "save the network's state_dict() and name the architecture with --model"
            )


def load_script(path: Path) -> nn.Module:
    """Load the network of an archive; its program runs now and whenever it is called."""
    try:
        check_program(path)
        # torch deprecates TorchScript at every load; users have such files all the same.
        with warnings.catch_warnings(action="ignore"):
            module: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            if hasattr(module, "training"):
                module.eval()
    except (*DAMAGE, AttributeError) as error:
        raise unreadable(path, error) from error
    network: nn.Module = module
    return network


def _load_script(path: Path) -> Archive:
    module = load_script(path)
    return Archive(module, dict(module.state_dict()))


# ONNX


class OnnxNetwork(nn.Module):
    """Images (N, C, H, W) to the outputs of an ONNX file, on the CPU.

    One output is a tensor; several are a dict by name.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        runtime = required("onnxruntime", f"'{path}'", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its warnings about graphs are for their authors
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except USER_CODE_ERRORS as error:
            raise CnnvizError(
                f"the ONNX file '{path}' cannot be read: {one_line(error)}"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in NUMBERS:
            listed = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise CnnvizError(
                f"the ONNX file '{path}' takes {listed or 'nothing'}; it must take one batch of "
                "images, of floating-point numbers (N, C, H, W)"
            )
        self._input, self._dtype = inputs[0].name, NUMBERS[inputs[0].type]
        sides = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.channels_last = sides[3] in COLOURS and sides[1] not in COLOURS
        if self.channels_last:
            sides = [sides[0], sides[3], sides[1], sides[2]]
        self.batch, self.channels, rows, columns = sides
        self.size = (rows, columns) if rows and columns else None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __deepcopy__(self, _memo: object) -> "OnnxNetwork":
        return self  # a run does not change a session

    def forward(self, x: Any) -> Tensor | dict[str, Tensor]:
        """Return the outputs, on the device of the images."""
        if isinstance(x, fx.Proxy):
            raise TypeError("an ONNX file is run as a black box")
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(
                f"expected its input to have {self.channels} channels, but got {x.shape[1]}"
            )
        images = x.detach().to("cpu", self._dtype)
        if self.channels_last:
            images = images.movedim(1, 3)
        values = self._session.run(None, {self._input: images.contiguous().numpy()})
        tensors = [torch.from_numpy(value).to(x.device) for value in values]
        return tensors[0] if len(tensors) == 1 else dict(zip(self._outputs, tensors, strict=True))


def _load_onnx(path: Path) -> Archive:
    network = OnnxNetwork(path)
    return Archive(network.eval(), {}, network.batch, network.size)
