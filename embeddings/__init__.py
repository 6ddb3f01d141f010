"""How a network groups images: penultimate features, PCA, t-SNE, and how far to trust them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnviz.embeddings.experiment import embed
    from cnnviz.embeddings.result import EmbeddingResult, EmbeddingSpec

__all__ = ["EmbeddingResult", "EmbeddingSpec", "embed"]


def __getattr__(name: str) -> Any:
    """Imports the experiment (and torch) only when it is asked for, which `--help` does not."""
    if name in __all__:
        from cnnviz.embeddings import experiment

        return getattr(experiment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
