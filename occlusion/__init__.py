"""Which parts of an image carry the prediction: cover them one by one and watch the scores."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnviz.occlusion.experiment import OcclusionResult, OcclusionSpec, occlude

__all__ = ["OcclusionResult", "OcclusionSpec", "occlude"]


def __getattr__(name: str) -> Any:
    """Imports the experiment (and torch) only when it is asked for, which `--help` does not."""
    if name in __all__:
        from cnnviz.occlusion import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
