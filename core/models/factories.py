"""Networks of the user's own: `net.py:make` or `package.module:make`, where make() builds one.

The file is run, as Python would: it is the user's. What goes wrong in it is told in one line, with
the place.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, nearest

CLASS_PARAMETERS = ("num_classes", "classes", "n_classes")


@dataclass(frozen=True)
class Factory:
    """A function of the user's that builds a network.

    Attributes:
        name: `net.py:make`, without the folders.
        function: what builds it.
        folder: where its neighbours can be imported from.
        class_parameter: the parameter that takes the number of classes; None if there is none.
    """

    name: str
    function: Callable[..., object]
    folder: Path
    class_parameter: str | None

    def build(self, classes: int | None) -> nn.Module:
        """The network, for that many classes where the factory allows it.

        Raises:
            CnnvizError: the factory failed, or returned something else.
        """
        set_classes = classes is not None and self.class_parameter is not None
        options = {str(self.class_parameter): classes} if set_classes else {}
        try:
            with _importable(self.folder):
                module = self.function(**options)
        except USER_CODE_ERRORS as error:
            raise CnnvizError(f"the factory '{self.name}' failed: {_where(error)}") from error
        if isinstance(module, nn.Module):
            return module
        kind = type(module).__name__
        raise CnnvizError(f"the factory '{self.name}' returned {kind}, not an nn.Module")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    # Last, so that a user's file can never stand in for a module of Python's. Other changes that
    # the user's code makes to the path stay: it may import more when it runs.
    place = str(folder)
    missing = place not in sys.path
    if missing:
        sys.path.append(place)
    try:
        yield
    finally:
        if missing:
            sys.path.remove(place)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cnnviz_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _where(error: BaseException) -> str:
    """The error in one line, with the innermost place it was raised at."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        place = ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def _class_parameter(function: Callable[..., object]) -> str | None:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return None
    return next((key for key in CLASS_PARAMETERS if key in parameters), None)


def find_factory(name: str) -> Factory:
    """The factory that `path/to/file.py:function` or `package.module:function` names.

    Raises:
        UsageError: there is no such file, module or function, or importing it fails.
    """
    source, _, attribute = name.rpartition(":")
    path = Path(source).expanduser()
    is_file = source.endswith(".py")
    if is_file and not path.is_file():
        raise UsageError(f"no file '{source}' (--model {name})")
    folder = path.resolve().parent if is_file else Path.cwd()
    try:
        with _importable(folder):
            module = _import_file(path) if is_file else importlib.import_module(source)
    except USER_CODE_ERRORS as error:
        raise UsageError(f"'{source}' cannot be imported: {_where(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        near = ", ".join(nearest(attribute, [k for k, v in vars(module).items() if callable(v)]))
        raise UsageError(
            f"no factory '{attribute}' in '{source}'; the nearest are {near or '(it has none)'}"
        )
    shown = f"{path.name}:{attribute}" if is_file else name
    return Factory(shown, function, folder, _class_parameter(function))
