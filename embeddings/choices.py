"""What `tsne` lets its user choose; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import BatchSize, Option, Seed, Spec

PENULTIMATE = "penultimate"
"""Stands for what goes into the classifier head."""


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


@dataclass(frozen=True)
class EmbeddingSpec(Spec):
    """What `tsne` does; every default is the one of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    layer: Annotated[
        str,
        Option("Layer whose output is laid out; penultimate: what goes into the classifier head."),
    ] = PENULTIMATE
    pool: Annotated[
        Pool, Option("How a map becomes a vector: its mean over positions, or all of it.")
    ] = Pool.MEAN
    method: Annotated[Method, Option("t-SNE, or the first two principal components.")] = Method.TSNE
    perplexities: Annotated[
        tuple[float, ...],
        Option(
            "About how many neighbours hold each image; repeat for several maps. Default: 30.",
            ("--perplexity",),
        ),
    ] = (30.0,)
    backend: Annotated[
        Backend,
        Option(
            "Who computes t-SNE: opentsne, torch (exact), or auto: torch on CUDA unless there "
            "are very many images."
        ),
    ] = Backend.AUTO
    batch_size: BatchSize = None
    seed: Seed = 0
