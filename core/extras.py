"""Installed packages: our own version; optional ones, or an error says how to install them."""

import importlib
from importlib import metadata
from types import ModuleType

from cnnviz.core.errors import UsageError, one_line


def required(package: str, needs: str, extra: str) -> ModuleType:
    """Import a package; a UsageError names what `needs` it and the `extra` that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error)})"
        raise UsageError(
            f"{needs} needs the package {package.partition('.')[0]}: pip install '.[{extra}]' in "
            f"cnnviz's folder{reason}"
        ) from error


def version() -> str:
    """The installed version of cnnviz; `unknown` when run from a source tree."""
    try:
        return metadata.version("cnnviz")
    except metadata.PackageNotFoundError:
        return "unknown"
