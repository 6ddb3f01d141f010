"""Packages that not every user needs: brought in when a name asks for them, or a line says how."""

import importlib
from types import ModuleType

from cnnviz.core.errors import UsageError, one_line


def required(package: str, asked: str, extra: str) -> ModuleType:
    """The package, imported.

    Args:
        package: its name in Python.
        asked: what asks for it, as the user typed it.
        extra: which of cnnviz's extras brings it.

    Raises:
        UsageError: it is not installed, or does not start.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error)})"
        raise UsageError(
            f"{asked} needs the package {package}: pip install 'cnnviz[{extra}]'{reason}"
        ) from error
