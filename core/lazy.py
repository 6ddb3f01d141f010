"""Public faces: a package offers names that its modules have, and imports them when asked.

`--help` imports every package's `__init__`, and must import neither torch nor matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for `package`: looks a name up in the module of the package that has it.

    A name must not be that of a submodule, which would take its place once it is imported.

    Args:
        package: `__name__` of the `__init__` that this is for.
        names: by module (below the package) what it offers.
    """
    homes = {name: module for module, offered in names.items() for name in offered}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
