"""The user's networks: `net.py:make` or `package.module:make`, where make() builds one.

The file is run, as Python would: it is the user's. An error in it is reported on one line, with the
file and line where it was raised.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, located, nearest
from cnnviz.core.models.behaviour import with_lazy_layers
from cnnviz.core.models.zoo.published import Architecture

CLASS_PARAMETERS = ("num_classes", "classes", "n_classes", "num_class", "n_class", "nb_classes")
UNKNOWN_CLASSES = 1000  # for a factory that requires a number, until a checkpoint gives it


def factory_architecture(name: str) -> Architecture:
    """Import the factory `path/to/file.py:function` or `package.module:function`."""
    function, shown, folder = _import(name, "factory", "--model")
    build = (lambda: function) if isinstance(function, nn.Module) else function
    parameters = _parameters(build)
    required = [name for name, parameter in parameters.items() if _is_required(parameter)]
    class_parameter = _class_parameter(parameters)

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        options = {}
        if class_parameter in required or (class_parameter and classes is not None):
            options = {class_parameter: UNKNOWN_CLASSES if classes is None else classes}
        if missing := [name for name in required if name not in options]:
            raise CnnvizError(
                f"the factory '{shown}' needs {', '.join(missing)}; write one that takes "
                "nothing, or the number of classes, and returns the network"
            )
        try:
            with _importable(folder):
                module = build(**options)
        except USER_CODE_ERRORS as error:
            raise CnnvizError(f"the factory '{shown}' failed: {located(error)}") from error
        if not isinstance(module, nn.Module):
            raise CnnvizError(
                f"the factory '{shown}' returned {type(module).__name__}, not an nn.Module; write "
                "one that returns the network alone"
            )
        return with_lazy_layers(unwrapped(module), shown, size)

    needs_classes = class_parameter in required
    return Architecture(shown, make, class_parameter is not None, needs_classes=needs_classes)


def find_function(name: str) -> Callable[[Any], Any]:
    """Import the function `path/to/file.py:function` or `package.module:function`."""
    function: Callable[[Any], Any] = _import(name, "function", "--output")[0]
    return function


def unwrapped(module: nn.Module) -> nn.Module:
    """Remove `torch.compile`, `DataParallel` and similar wrappers from a network and its parts.

    A compiled network ignores hooks that are set later; its original does not.
    """
    module = _original(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (original := _original(child)) is not child:
                setattr(parent, name, original)
    return module


def _original(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(original := getattr(module, "_orig_mod", None), nn.Module):
            module = original
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    # Last, so that a user's file can never replace a module of Python. Other changes of the user's
    # code to the path stay: it may import more when it runs.
    entry = str(folder)
    missing = entry not in sys.path
    if missing:
        sys.path.append(entry)
    arguments = sys.argv[1:]
    sys.argv[1:] = []  # the command line is ours: the user's parser gets an empty one
    try:
        yield
    finally:
        sys.argv[1:] = arguments
        if missing:
            sys.path.remove(entry)


def _import_from_package(path: Path) -> ModuleType:
    """Import a file with relative imports as a part of the package that its folder is."""
    path = path.resolve()
    root, names = path.parent, [path.stem]
    while not names[1:] or (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root = root.parent
    name = ".".join(names)
    with _importable(root):
        module = importlib.import_module(name)
    if Path(str(module.__file__)).resolve() != path:
        raise ImportError(f"another package is called '{names[0]}': {module.__file__}")
    return module


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cnnviz_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "no known parent package" not in str(error):
            raise
        return _import_from_package(path)
    return module


def _parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variable


def _class_parameter(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """The parameter that takes the number of classes; None if there is none."""
    named = next((key for key in CLASS_PARAMETERS if key in parameters), None)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return named or (CLASS_PARAMETERS[0] if takes_any else None)


def _import(name: str, what: str, option: str) -> tuple[Any, str, Path]:
    """The object `path/to/file.py:name` or `package.module:name`, its name to show, its folder."""
    source, _, attribute = name.rpartition(":")
    path = Path(source).expanduser()
    is_file = source.endswith(".py")
    if is_file and not path.is_file():
        raise UsageError(f"no file '{source}' ({option} {name})")
    folder = path.resolve().parent if is_file else Path.cwd()
    try:
        with _importable(folder):
            module = _import_file(path) if is_file else importlib.import_module(source)
    except USER_CODE_ERRORS as error:
        raise UsageError(f"'{source}' cannot be imported: {located(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = ", ".join(nearest(attribute, [k for k, v in vars(module).items() if callable(v)]))
        raise UsageError(
            f"no {what} '{attribute}' in '{source}'; the nearest are {near or '(it has none)'}"
        )
    return function, f"{path.name}:{attribute}" if is_file else name, folder
