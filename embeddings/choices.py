"""What `tsne` lets its user choose; imports nothing heavy."""

from enum import StrEnum


class Method(StrEnum):
    """How features become two dimensions."""

    TSNE = "tsne"
    PCA = "pca"


class Backend(StrEnum):
    """Who computes t-SNE."""

    AUTO = "auto"
    OPENTSNE = "opentsne"
    TORCH = "torch"


class Pool(StrEnum):
    """How a layer's spatial map becomes one vector."""

    MEAN = "mean"
    FLATTEN = "flatten"
