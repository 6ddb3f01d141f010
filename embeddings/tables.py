"""The tables of an embedding: where each image lies, and which images lie next to it.

Shapes: N images, k neighbours.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.files import shown_path
from cnnviz.core.output.numbers import fewer_digits
from cnnviz.embeddings.layout.tsne import Map
from cnnviz.embeddings.quality import UNKNOWN
from cnnviz.embeddings.result import EmbeddingResult

SHOWN_NEIGHBOURS = 5


def nearest_shared(result: EmbeddingResult) -> tuple[NDArray[np.int64], NDArray[np.bool_] | None]:
    """The five nearest (N, k), and whether each has the image's class; None without labels."""
    near = result.neighbors.indices[:, :SHOWN_NEIGHBOURS]
    labels = result.labels_N
    if (labels == UNKNOWN).all():
        return near, None
    return near, (labels[near] == labels[:, None]) & (labels != UNKNOWN)[:, None]


def _label_names(result: EmbeddingResult) -> list[str]:
    classes = result.data.classes or ()
    return ["" if label == UNKNOWN else classes[label] for label in result.labels_N]


def image_names(result: EmbeddingResult) -> list[str]:
    """The images that were laid out, by path, in order."""
    return [shown_path(result.data.examples[i].path) for i in result.features.indices_N]


EMBEDDING_HEADER = ("image", "label", "predicted", "x", "y")


def embedding_rows(result: EmbeddingResult, found: Map) -> Iterator[tuple[object, ...]]:
    """`embedding.csv`: each image's class, the model's verdict and its place on the map."""
    predicted = [result.model_labels[best] for best in result.features.predicted_N]
    names = zip(image_names(result), _label_names(result), predicted, strict=True)
    for (image, label, verdict), (x, y) in zip(names, found.places_N2, strict=True):
        yield image, label, verdict, fewer_digits(float(x)), fewer_digits(float(y))


def neighbors_header(result: EmbeddingResult) -> tuple[str, ...]:
    """The columns of `neighbors.csv`."""
    count = min(SHOWN_NEIGHBOURS, result.neighbors.indices.shape[1])
    each = [(f"neighbor{i}", f"label{i}", f"same{i}", f"distance{i}") for i in range(1, count + 1)]
    return ("image", "label", "predicted", "shared", *(name for four in each for name in four))


def neighbors_rows(result: EmbeddingResult) -> Iterator[tuple[object, ...]]:
    """`neighbors.csv`: each image's five nearest, those first whose neighbours disagree with it.

    Ties, and data without labels, are in the order of the images; unlabelled images come last.
    """
    near, same = nearest_shared(result)
    count, k = near.shape
    images, labels = image_names(result), _label_names(result)
    agree = np.zeros(count, np.int64) if same is None else same.sum(axis=1)
    order = np.lexsort((np.arange(count), agree, result.labels_N == UNKNOWN))
    for i in order:
        known = bool(labels[i])
        row: list[object] = [
            images[i],
            labels[i],
            result.model_labels[result.features.predicted_N[i]],
        ]
        row.append(int(agree[i]) if known else "")
        for place in range(k):
            j = near[i, place]
            verdict = "" if same is None or not (known and labels[j]) else int(same[i, place])
            distance = fewer_digits(float(result.neighbors.distances[i, place]))
            row += [images[j], labels[j], verdict, distance]
        yield tuple(row)
