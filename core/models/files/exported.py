"""torch.export archives (.pt2), rewritten before torch reads them.

`torch.export.load` trusts its file: it unpickles, evaluates the strings of symbolic sizes, and
pastes names into Python source. So no part of a stranger's archive reaches it unchecked. The
archive is taken apart, its graph is compared with a short list of what a plain network needs,
tensors must be raw bytes or load without pickled code, and a clean archive is assembled in memory
from what passed. Anything else is refused. What passes has nothing to evaluate: operators are
ATen's, names are letters, digits, dots, hyphens and underscores, sizes are sums and products of
symbols, one tensor goes in and one comes out.
"""

import io
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
LEGACY = "serialized_exported_program.json"

LEGACY_TENSORS = ("serialized_state_dict.pt", "serialized_constants.pt")
LEGACY_SAMPLES = "serialized_example_inputs.pt"

_NEEDED = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|"
    r"data/(weights|constants)/(\w+|model_\w+_config\.json)|version|"
    r"serialized_(exported_program\.json|(state_dict|constants)\.pt)"
)

_NAME = re.compile(r"[\w.-]*")
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|neg)"
)
# Text arguments: the equation of an einsum, the mode of an interpolation.
_TEXT = re.compile(r"[\w., >-]*")
# Operators that access files, print, or trust a sparse tensor's indices.
_NOT_PLAIN = re.compile(r"torch\.ops\.aten\.(from_file|_print|\w*sparse\w*)\b")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
# Parts of a symbolic size; removed one by one, so that no text can make the check slow.
_SIZE_PART = re.compile(
    r"Symbol\('[a-z]+\d+'|(Integer|Add|Mul|Rational|FloorDiv|Mod|PythonMod|Max|Min)\("
    r"|(positive|integer|nonnegative|real)=True|[su]\d+|\d+|\*(?!\*)|[-+/(), ]"
)
_FORBIDDEN = ("as_operator", "as_custom_obj", "as_graph", "custom_obj", "token")
_SPECS = {"in_spec", "out_spec"}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}

# What torch raises on an inconsistent graph.
_LOADING_ERRORS = (
    *DAMAGE,
    ArithmeticError,
    AssertionError,
    AttributeError,
    NameError,
    StopIteration,
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging to stderr what an error will say."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Archive:
    """A network from an archive, in eval mode.

    Attributes:
        state: parameters and buffers; empty for ONNX.
        batch: the only number of images it takes; None if it takes any.
        size: the only (rows, columns) it takes; None if it takes any.
    """

    module: nn.Module
    state: dict[str, Tensor]
    batch: int | None = None
    size: tuple[int, int] | None = None


class RefusedError(Exception):
    """An archive holds something that is not on the list."""


def unreadable(path: Path, error: Exception) -> CnnvizError:
    """The error to raise for an archive that its reader fails on."""
    return CnnvizError(f"the archive '{path}' cannot be read: {one_line(error)}")


def _read(path: Path) -> dict[str, bytes]:
    """Read the required entries of an archive, by name without the top folder."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
            raise RefusedError("it is compressed, as torch never writes it")
        names = [info.filename for info in infos]
        if LEGACY not in names:
            names = [name.partition("/")[2] for name in names]
        if len(set(names)) != len(names):
            raise RefusedError("two entries in it have one name")
        return {
            name: archive.read(info)
            for name, info in zip(names, infos, strict=True)
            if _NEEDED.fullmatch(name)
        }


def _json(entries: dict[str, bytes], name: str) -> Any:
    if name not in entries:
        raise RefusedError(f"it has no {name}")
    return json.loads(entries[name])


def _clean(entries: dict[str, bytes]) -> list[int | None]:
    """Replace the entries by checked ones; return the sizes of the image tensor."""
    program = clean_program(_json(entries, MODEL))
    entries[MODEL] = json.dumps(program).encode()
    for name in (WEIGHTS, CONSTANTS):
        entries[name] = json.dumps(check_payloads(_json(entries, name))).encode()
    entries[SAMPLES] = b""
    return input_sizes(program)


def _clean_legacy(entries: dict[str, bytes]) -> list[int | None]:
    """Clean an archive from before torch 2.8, whose tensors torch.save has pickled."""
    program = clean_program(_json(entries, LEGACY))
    entries[LEGACY] = json.dumps(program).encode()
    for name in LEGACY_TENSORS:
        try:
            tensors = torch.load(io.BytesIO(entries[name]), weights_only=True)
        except pickle.UnpicklingError as error:
            raise RefusedError(f"{name} in it holds more than tensors") from error
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        entries[name] = buffer.getvalue()
    entries[LEGACY_SAMPLES] = b""
    return input_sizes(program)


def _rewrite(entries: dict[str, bytes], folder: str) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(folder + name, content)
    buffer.seek(0)
    return buffer


def _load(path: Path) -> Archive:
    entries = _read(path)
    if LEGACY in entries:
        sizes, folder = _clean_legacy(entries), ""
    else:
        sizes, folder = _clean(entries), "model/"
    loaded = torch.export.load(_rewrite(entries, folder))
    module = loaded.module()
    # torch forbids to switch the mode; here both modes are the same, and callers may switch.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    rows, columns = sizes[2:]
    size = (rows, columns) if rows is not None and columns is not None else None
    return Archive(module.eval(), dict(loaded.state_dict), sizes[0], size)


def load_exported(path: Path) -> Archive:
    """Load the network of a .pt2 archive; refuse it if it holds more than a plain network."""
    from torch._export.verifier import SpecViolationError

    try:
        with _quiet():
            return _load(path)
    except RefusedError as error:
        raise CnnvizError(
            f"refused to read '{path}': {error}; export the plain network again, or save its "
            "state_dict() and name the architecture with --model"
        ) from error
    except (*_LOADING_ERRORS, SpecViolationError) as error:
        raise unreadable(path, error) from error


def check_payloads(config: Any) -> Any:
    """Check that weights are raw bytes, not pickles; return the config unchanged."""
    for name, payload in config["config"].items():
        if payload.get("use_pickle", True) is not False:
            raise RefusedError(f"'{name}' in it is pickled")
        if not _PAYLOAD.fullmatch(payload["path_name"]):
            raise RefusedError(f"'{payload['path_name']}' in it is not a tensor")
    for key, text in _strings(config):
        _check_string(key, text)
    return config


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON value, each with its key; keys are yielded as well."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield "", name
            yield from _strings(item, name)


def _check_string(key: str, text: str) -> None:
    if key == "target":
        if not _TARGET.fullmatch(text) or _NOT_PLAIN.match(text):
            raise RefusedError(f"it uses '{text}', which is not among ATen's plain operators")
    elif key == "expr_str":
        if _SIZE_PART.sub("", text):
            raise RefusedError(f"'{text}' is not a size")
    elif key == "as_string":
        if not _TEXT.fullmatch(text):
            raise RefusedError(f"'{text[:60]}' is not a mode")
    elif key not in _SPECS and not _NAME.fullmatch(text):
        raise RefusedError(f"'{text[:60]}' is not a name")


def _check_specs(signature: dict[str, Any]) -> None:
    """Check that one tensor goes in and one comes out."""
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]}
    keywords = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    both = {"type": "builtins.tuple", "context": "null", "children_spec": [arguments, keywords]}
    takes, gives = json.loads(signature["in_spec"]), json.loads(signature["out_spec"])
    if takes != [1, both] or gives != [1, _LEAF]:
        raise RefusedError("it does not take one tensor and give one")


def _check_inference(nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        for argument in node["inputs"]:
            training = argument.get("name") in ("training", "train")
            if training and argument["arg"].get("as_bool") is True:
                raise RefusedError("it was exported in training mode; call .eval() first")


def clean_program(program: Any) -> dict[str, Any]:
    """Return the program, checked, without what inference does not need."""
    module = program["graph_module"]
    graph = module["graph"]
    for node in graph["nodes"]:
        node["metadata"] = {}
    _check_inference(graph["nodes"])
    root = next(call for call in module["module_call_graph"] if call["fqn"] == "")
    _check_specs(root["signature"])
    module["module_call_graph"] = [root]
    for holder, name, blank in (
        (module, "metadata", {}),
        (module, "treespec_namedtuple_fields", {}),
        (program, "guards_code", []),
        (program, "torch_version", "0"),
    ):
        if name in holder:
            holder[name] = blank
    for key, text in _strings(program):
        if text in _FORBIDDEN and not key:
            raise RefusedError(f"it holds an argument of the kind {text}")
        _check_string(key, text)
    cleaned: dict[str, Any] = program
    return cleaned


def input_sizes(program: dict[str, Any]) -> list[int | None]:
    """Sizes of the image tensor; None for a size that may vary."""
    module = program["graph_module"]
    inputs = [
        s["user_input"]["arg"] for s in module["signature"]["input_specs"] if "user_input" in s
    ]
    if len(inputs) != 1 or "as_tensor" not in inputs[0]:
        raise RefusedError("it takes more than one image tensor")
    sizes = module["graph"]["tensor_values"][inputs[0]["as_tensor"]["name"]]["sizes"]
    if len(sizes) != 4:
        raise RefusedError(f"it takes a tensor of {len(sizes)} dimensions, not 4")
    return [size.get("as_int") for size in sizes]
