"""How a network groups images: penultimate features, PCA, t-SNE, and how far to trust them."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.embeddings.choices import EmbeddingSpec, Method, Pool
    from cnnviz.embeddings.experiment import embed
    from cnnviz.embeddings.pictures.figures import scatter
    from cnnviz.embeddings.result import EmbeddingResult
else:
    __getattr__ = lazily(
        __name__,
        {
            "choices": ("EmbeddingSpec", "Method", "Pool"),
            "experiment": ("embed",),
            "pictures.figures": ("scatter",),
            "result": ("EmbeddingResult",),
        },
    )

__all__ = ["EmbeddingResult", "EmbeddingSpec", "Method", "Pool", "embed", "scatter"]
