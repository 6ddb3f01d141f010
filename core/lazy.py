"""Imports that wait: public faces of packages, and torchvision without torch's compiler.

`--help` imports every package's `__init__`, and must import neither torch nor matplotlib.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER, _USED = "torch._dynamo.utils", "is_compile_supported"


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make a `__getattr__` for a package that looks a name up in the module that defines it.

    A name must not be that of a submodule, which would replace it once it is imported.

    Args:
        package: `__name__` of the package.
        names: the names of each module, by its name below the package.
    """
    homes = {name: module for module, offered in names.items() for name in offered}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


class _Compiler(ModuleType):
    """Stands in for the compiler's module while torchvision is imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == _USED:
            return _is_compile_supported
        sys.modules.pop(_COMPILER, None)
        return getattr(import_module(_COMPILER), name)


def _is_compile_supported(device_type: str) -> Any:
    return getattr(import_module(_COMPILER), _USED)(device_type)


def torchvision(module: str) -> Any:
    """Imports a module of torchvision, as `models` or `transforms.v2.functional`.

    `torchvision.ops` imports torch's compiler for one function, which is called on GPUs only; that
    takes as long as importing torch. The function is imported when it is called.
    """
    if "torchvision" not in sys.modules and _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _Compiler(_COMPILER)
    try:
        return import_module(f"torchvision.{module}")
    finally:
        if isinstance(sys.modules.get(_COMPILER), _Compiler):
            del sys.modules[_COMPILER]
