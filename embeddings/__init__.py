"""How a network groups images: penultimate features, PCA, t-SNE, and how far to trust them."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.embeddings.experiment import embed
    from cnnviz.embeddings.figures import scatter
    from cnnviz.embeddings.likeness import describe, like
    from cnnviz.embeddings.options import EmbeddingSpec, Method, Pool
    from cnnviz.embeddings.results import EmbeddingResult, load
else:
    __getattr__ = lazily(
        __name__,
        {
            "experiment": ("embed",),
            "figures": ("scatter",),
            "likeness": ("describe", "like"),
            "options": ("EmbeddingSpec", "Method", "Pool"),
            "results": ("EmbeddingResult", "load"),
        },
    )

__all__ = [
    "EmbeddingResult",
    "EmbeddingSpec",
    "Method",
    "Pool",
    "describe",
    "embed",
    "like",
    "load",
    "scatter",
]
