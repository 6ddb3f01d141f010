"""What a plain network's exported graph may hold; anything else is refused.

`torch.export.load` evaluates some of the strings in a graph's JSON and pastes others into Python
source. What passes here has nothing to evaluate: operators are ATen's, names are letters, digits,
dots, hyphens and underscores, sizes are sums and products of symbols, and one tensor goes in and
one out.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

_NAME = re.compile(r"[\w.-]*")
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|neg)"
)
# Text arguments: an einsum's equation, an interpolation's mode.
_TEXT = re.compile(r"[\w., >-]*")
# Operators that reach files, print, or believe what a sparse tensor says of itself.
_NOT_PLAIN = re.compile(r"torch\.ops\.aten\.(from_file|_print|\w*sparse\w*)\b")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
# What sizes are written with; taken out part by part, which no text can make slow.
_SIZE_PART = re.compile(
    r"Symbol\('[a-z]+\d+'|(Integer|Add|Mul|Rational|FloorDiv|Mod|PythonMod|Max|Min)\("
    r"|(positive|integer|nonnegative|real)=True|[su]\d+|\d+|\*(?!\*)|[-+/(), ]"
)
_FORBIDDEN = ("as_operator", "as_custom_obj", "as_graph", "custom_obj", "token")
_SPECS = {"in_spec", "out_spec"}
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


class RefusedError(Exception):
    """Something in an archive is not on the list."""


def check_payloads(config: Any) -> Any:
    """Weights are raw bytes, not pickles; the config comes back as it went in."""
    for name, payload in config["config"].items():
        if payload.get("use_pickle", True) is not False:
            raise RefusedError(f"'{name}' in it is pickled")
        if not _PAYLOAD.fullmatch(payload["path_name"]):
            raise RefusedError(f"'{payload['path_name']}' in it is no tensor")
    for key, text in _strings(config):
        _check_string(key, text)
    return config


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON value, each with the key it stands under; keys are strings too."""
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
            raise RefusedError(f"'{text}' stands where a size should")
    elif key == "as_string":
        if not _TEXT.fullmatch(text):
            raise RefusedError(f"'{text[:60]}' stands where a mode should")
    elif key not in _SPECS and not _NAME.fullmatch(text):
        raise RefusedError(f"'{text[:60]}' stands where a name should")


def _check_specs(signature: dict[str, Any]) -> None:
    """One tensor goes in and one comes out."""
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
    """The program with everything checked, and left out what inference has no use for."""
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
    """The image tensor's sizes; None where any will do."""
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
