"""What an embedding experiment is asked for, and what it finds.

Shapes: N images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.embeddings.features.extract import Features
from cnnviz.embeddings.layout.neighbors import Neighbors
from cnnviz.embeddings.layout.pca import Pca
from cnnviz.embeddings.layout.tsne import Map
from cnnviz.embeddings.quality import LabelQuality, MapQuality


@dataclass(frozen=True, eq=False)
class EmbeddingResult:
    """What was found.

    Attributes:
        data: the images.
        preprocess: how they were read.
        features: one vector for each image that could be used.
        labels_N: class of each in `data.classes`, -1 where unknown.
        model_labels: the model's class names.
        correct_N: whether the model is right on each; None where that cannot be told.
        mismatch: why it cannot be told, when there are labels.
        components: explained variance of the principal components.
        neighbors: nearest images in the features, at most 50.
        neighbor_recall: the share of the true ones among them; 1 where they are exact.
        judged: how many images the qualities are of.
        maps: one per perplexity, or the PCA map.
        feature_quality: how the features themselves stand by class.
        qualities: one per map.
        pca_quality: of the first two principal components.
        seconds: time spent, by part.
    """

    data: ImageData
    preprocess: Preprocess
    features: Features
    labels_N: NDArray[np.int64]
    model_labels: tuple[str, ...]
    correct_N: NDArray[np.bool_] | None
    mismatch: str | None
    components: Pca
    neighbors: Neighbors
    neighbor_recall: float
    judged: int
    maps: tuple[Map, ...]
    feature_quality: LabelQuality
    qualities: tuple[MapQuality, ...]
    pca_quality: MapQuality
    seconds: dict[str, float]
