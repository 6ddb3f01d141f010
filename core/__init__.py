"""What every analysis stands on: models, images, layers, graphs, results, drawing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model, load_model

__all__ = ["Model", "load_model"]


def __getattr__(name: str) -> Any:
    """Imports the models (and torch) only when they are asked for, which `--help` does not."""
    if name in __all__:
        from cnnviz.core.models import load as models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
