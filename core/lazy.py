"""Public faces: a package offers names of its modules, and imports them on first access.

`--help` imports every package's `__init__`, and must import neither torch nor matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


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
