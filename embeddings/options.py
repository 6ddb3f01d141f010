"""The options of `cnnviz tsne`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import BatchSize, Option, Seed, Spec

PENULTIMATE = "penultimate"
"""Name for the input of the classifier head."""


class Method(StrEnum):
    """How features become two dimensions."""

    TSNE = "tsne"
    PCA = "pca"


class Pool(StrEnum):
    """How a layer's spatial map becomes one vector."""

    MEAN = "mean"
    FLATTEN = "flatten"


@dataclass(frozen=True)
class EmbeddingSpec(Spec):
    """What to compute; the defaults are those of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    layer: Annotated[
        str,
        Option("Layer whose output is laid out; penultimate: the input of the classifier head."),
    ] = PENULTIMATE
    pool: Annotated[
        Pool, Option("How a map becomes a vector: its mean over positions, or all of it.")
    ] = Pool.MEAN
    method: Annotated[Method, Option("t-SNE, or the first two principal components.")] = Method.TSNE
    perplexities: Annotated[
        tuple[float, ...],
        Option(
            "Effective number of neighbors of each image; repeat for several maps. Default: 30.",
            ("--perplexity",),
        ),
    ] = (30.0,)
    batch_size: BatchSize = None
    seed: Seed = 0
