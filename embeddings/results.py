"""The results of `cnnviz tsne`: what its summary and its tables contain, and how to read them back.

Shapes: N images, k neighbors.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.choices import percent
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import csv_rows, read_text
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.notebook import Displayed
from cnnviz.core.output.record import (
    HIDDEN,
    Count,
    Positive,
    Record,
    Says,
    Share,
    Unsigned,
    from_json,
    from_table,
    rounded,
)
from cnnviz.core.output.summary import DataRecord, FinishedRun, read_summary
from cnnviz.embeddings.features import Features
from cnnviz.embeddings.neighbors import Neighbors
from cnnviz.embeddings.options import Method
from cnnviz.embeddings.quality import UNKNOWN, LabelQuality, MapQuality

PLACES, NEIGHBORS = "embedding.csv", "neighbors.csv"
LISTED_NEIGHBORS = 5


@dataclass(frozen=True)
class ImagePlace(Record):
    """An image on a map: a row of `embedding.csv`."""

    image: str
    label: str
    predicted: str
    x: Annotated[float, Says(digits=6)]
    y: Annotated[float, Says(digits=6)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Map(Record):
    """The images laid out in the plane; `places_N2` holds their x and y."""

    method: Method
    perplexity: Annotated[float | None, Says("null for PCA", minimum=1)] = None
    backend: Annotated[str | None, Says("the program that computed it; null for PCA")] = None
    kl_divergence: Annotated[float | None, Says("in nats, exact; null for PCA", digits=6)] = None
    folder: Annotated[str, Says("where its files are, relative to the run's folder")] = "."
    quality: MapQuality
    places_N2: Annotated[NDArray[np.float32], HIDDEN] = field(
        default_factory=lambda: np.empty((0, 2), np.float32)
    )

    @property
    def name(self) -> str:
        """`perplexity 30`, or `PCA`."""
        return "PCA" if self.perplexity is None else f"perplexity {self.perplexity:g}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Embedding(Record):
    """The result of an embedding, as `load` reads it from a run's folder.

    Not in the summary: the paths of the images, their labels ("" where unknown), the predicted
    classes, and which images are nearest to each, (N, k).
    """

    images: Annotated[int, Says("laid out", minimum=4)]
    data: DataRecord
    images_in_data: Annotated[int, Says("before --limit", minimum=4)]
    labelled: Count
    classes: Count
    layer: str
    dimensions: Positive
    features_reused: bool
    components: Annotated[int, Says(minimum=1, maximum=50)]
    explained_variance: Annotated[Share, Says(digits=6)]
    wrongly_predicted: Annotated[
        Count | None, Says("null where the classes of data and model do not match")
    ]
    labels_not_matched: Annotated[str | None, Says("why not")]
    judged: Annotated[
        int, Says("images that were judged, each against all; drawn by --seed", minimum=4)
    ]
    neighbor_recall: Annotated[
        Share,
        Says("share of an image's true neighbors among its neighbors; 1 if exact", digits=6),
    ]
    features: LabelQuality
    pca: MapQuality
    maps: Annotated[tuple[Map, ...], Says(minItems=1)]
    neighbors: Annotated[
        dict[str, Count] | None,
        Says(
            "how many labelled images share their class with 0, 1, … of their nearest; null "
            "without labels"
        ),
    ]
    seconds: dict[str, Unsigned]
    image_names: Annotated[tuple[str, ...], HIDDEN] = ()
    label_names: Annotated[tuple[str, ...], HIDDEN] = ()
    predicted_names: Annotated[tuple[str, ...], HIDDEN] = ()
    nearest_Nk: Annotated[NDArray[np.int64], HIDDEN] = field(
        default_factory=lambda: np.empty((0, 0), np.int64)
    )

    def on(self, map_: Map) -> Iterator[ImagePlace]:
        """The rows of a map's `embedding.csv`."""
        names = zip(self.image_names, self.label_names, self.predicted_names, strict=True)
        for (image, label, predicted), (x, y) in zip(names, map_.places_N2.tolist(), strict=True):
            yield ImagePlace(image, label, predicted, x, y)


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddingResult(Displayed, Embedding):
    """The result of `embed`: an `Embedding` with its data.

    Attributes:
        image_data: the data set.
        preprocess: how its images were read.
        vectors: the features of each image that could be used.
        labels_N: class of each in `image_data.classes`, -1 where unknown.
        correct_N: whether the prediction is right; None where labels and model do not match.
        near: the nearest images in the features, at most 50.
    """

    image_data: Annotated[ImageData, HIDDEN]
    preprocess: Annotated[Preprocess, HIDDEN]
    vectors: Annotated[Features, HIDDEN]
    labels_N: Annotated[NDArray[np.int64], HIDDEN]
    correct_N: Annotated[NDArray[np.bool_] | None, HIDDEN]
    near: Annotated[Neighbors, HIDDEN]


def same_class(
    nearest_Nk: NDArray[np.int64], labels_N: NDArray[np.int64]
) -> NDArray[np.bool_] | None:
    """(N, k) whether neighbors share the image's class; None without labels."""
    if (labels_N == UNKNOWN).all():
        return None
    known_N1 = (labels_N != UNKNOWN)[:, None]
    same_Nk: NDArray[np.bool_] = (labels_N[nearest_Nk] == labels_N[:, None]) & known_N1
    return same_Nk


def agreement(nearest_Nk: NDArray[np.int64], labels_N: NDArray[np.int64]) -> dict[str, int] | None:
    """How many labelled images have 0, 1, … of their nearest in their own class."""
    same_Nk = same_class(nearest_Nk, labels_N)
    if same_Nk is None:
        return None
    counts = Counter(same_Nk[labels_N != UNKNOWN].sum(axis=1).tolist())
    return {str(shared): counts.get(shared, 0) for shared in range(nearest_Nk.shape[1] + 1)}


def neighbors_table(
    result: EmbeddingResult,
) -> tuple[tuple[str, ...], Iterator[tuple[object, ...]]]:
    """`neighbors.csv`: each image's five nearest; first those that share fewest classes with it.

    Ties, and data without labels, are in the order of the images; unlabelled images come last.
    """
    each = [
        (f"neighbor{i}", f"label{i}", f"same{i}", f"distance{i}")
        for i in range(1, result.nearest_Nk.shape[1] + 1)
    ]
    header = ("image", "label", "predicted", "shared", *(name for four in each for name in four))
    return header, _neighbor_rows(result)


def _neighbor_rows(result: EmbeddingResult) -> Iterator[tuple[object, ...]]:
    near_Nk, images, labels = result.nearest_Nk, result.image_names, result.label_names
    same_Nk = same_class(near_Nk, result.labels_N)
    shared_N = np.zeros(len(images), np.int64) if same_Nk is None else same_Nk.sum(axis=1)
    order = np.lexsort((np.arange(len(images)), shared_N, result.labels_N == UNKNOWN))
    for i in order.tolist():
        row: list[object] = [images[i], labels[i], result.predicted_names[i]]
        row.append(int(shared_N[i]) if labels[i] else "")
        for k, j in enumerate(near_Nk[i].tolist()):
            known = same_Nk is not None and labels[i] and labels[j]
            same = int(same_Nk[i, k]) if same_Nk is not None and known else ""
            row += [images[j], labels[j], same, rounded(float(result.near.distances[i, k]), 6)]
        yield tuple(row)


def load(folder: Path | FinishedRun) -> Embedding:
    """Reads the results of a finished run of `cnnviz tsne`.

    Raises:
        UsageError: the folder does not hold one, or only a share of one.
        CnnvizError: a file of the run is missing or damaged.
    """
    run = read_summary(folder)
    if run.summary.results is None:
        raise UsageError(f"{folder} is a share; cnnviz merge joins the shares to a run")
    result = from_json(Embedding, run.summary.results)
    tables = [
        from_table(ImagePlace, read_text(run.file(f"{map_.folder}/{PLACES}")))
        for map_ in result.maps
    ]
    names = tuple(row.image for row in tables[0])
    if len(names) != result.images or any(
        tuple(row.image for row in rows) != names for rows in tables
    ):
        raise CnnvizError(
            f"the tables in {folder} are not of the {result.images} images of the run"
        )
    return replace(
        result,
        maps=tuple(
            replace(map_, places_N2=np.array([(row.x, row.y) for row in rows], np.float32))
            for map_, rows in zip(result.maps, tables, strict=True)
        ),
        image_names=names,
        label_names=tuple(row.label for row in tables[0]),
        predicted_names=tuple(row.predicted for row in tables[0]),
        nearest_Nk=_nearest(run.file(NEIGHBORS), names),
    )


def _nearest(path: Path, names: tuple[str, ...]) -> NDArray[np.int64]:
    """The nearest images of each in `neighbors.csv`, by their places in `names`."""
    place_of = {name: place for place, name in enumerate(names)}
    header, *rows = csv_rows(read_text(path))
    columns = [n for n, name in enumerate(header) if name.startswith("neighbor")]
    nearest_Nk = np.full((len(names), len(columns)), -1, np.int64)
    try:
        for row in rows:
            nearest_Nk[place_of[row[0]]] = [place_of[row[column]] for column in columns]
    except LookupError as error:
        raise CnnvizError(f"{path} is not of the images in {PLACES}") from error
    if (nearest_Nk < 0).any():
        raise CnnvizError(f"{path} does not have all of the images in {PLACES}")
    return nearest_Nk


@dataclass(frozen=True)
class Measure:
    """A field of `MapQuality` and `LabelQuality` as people read it."""

    field: str
    name: str
    short: str
    percent: bool = False

    def value(self, quality: LabelQuality) -> float | None:
        """None where the space does not have the measure, or it is not defined."""
        value: float | None = getattr(quality, self.field, None)
        return value

    def text(self, quality: LabelQuality) -> str:
        """The value; a dash where it is not defined, nothing where the space does not have it."""
        value = self.value(quality)
        if value is None:
            return "-" if hasattr(quality, self.field) else ""
        return percent(value, 1) if self.percent else f"{value:.3f}"


MEASURES = (
    Measure("preservation_10", "10 nearest kept", "10-NN kept", percent=True),
    Measure("preservation_50", "50 nearest kept", "50-NN kept", percent=True),
    Measure("trustworthiness", "trustworthiness", "trustworthiness"),
    Measure("spearman", "distances, rank correlation", "distances"),
    Measure("knn_accuracy", "class by 10 nearest", "k-NN accuracy", percent=True),
    Measure("silhouette", "silhouette", "silhouette"),
)
QUALITY_COLUMNS = ("layout", *(measure.short for measure in MEASURES), "KL")


def quality_rows(result: Embedding) -> list[tuple[str, ...]]:
    """The terminal's table: features, PCA, and every map of t-SNE."""
    spaces: list[tuple[str, LabelQuality, float | None]]
    spaces = [("features", result.features, None), ("PCA", result.pca, None)]
    spaces += [
        (f"t-SNE {map_.perplexity:g}", map_.quality, map_.kl_divergence)
        for map_ in result.maps
        if map_.perplexity is not None
    ]
    return [
        (
            name,
            *(measure.text(quality) for measure in MEASURES),
            "" if divergence is None else f"{divergence:.3f}",
        )
        for name, quality, divergence in spaces
    ]
