"""An embedding experiment: a network's view of a data set, laid out in the plane.

It computes features of every image, their principal components and neighbors (exact except for
very many images), a map per perplexity, and how far each map can be trusted, next to plain PCA.

Shapes: N images, D features, k neighbors, M images that are judged.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData, failures
from cnnviz.core.data.labels import match_labels, with_class_names
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import shown_path
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import Elsewhere, alone
from cnnviz.core.output.summary import DataRecord
from cnnviz.embeddings.features import Features, extract, features_key, load_features
from cnnviz.embeddings.neighbors import near_points, nearest
from cnnviz.embeddings.options import EmbeddingSpec, Method
from cnnviz.embeddings.pca import Pca, pca
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.embeddings.quality import (
    FAR,
    UNKNOWN,
    MapQuality,
    judged_points,
    label_quality,
    map_quality,
    preservation,
)
from cnnviz.embeddings.results import LISTED_NEIGHBORS, EmbeddingResult, Map, agreement
from cnnviz.embeddings.tsne import (
    NEIGHBORS_PER_PERPLEXITY,
    TOTAL_ITERATIONS,
    check_perplexity,
    neighbors_needed,
    tsne,
)

COMPONENTS = 50
MIN_IMAGES = 4

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Opens the progress of one part of the work: its name and its number of steps."""


class _Clock:
    """Measures the parts of the work and shows their progress."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, steps: int) -> Iterator[Callable[[int], None]]:
        started = time.perf_counter()
        with self._stage(name, steps) as advance:
            yield advance
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _silent(_name: str, _steps: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _steps: None)


def fitting(spec: EmbeddingSpec, count: int) -> EmbeddingSpec:
    """The spec, its perplexity reduced if it is the default and too large for so few images."""
    largest = (count - 1) // NEIGHBORS_PER_PERPLEXITY
    default = EmbeddingSpec().perplexities
    if spec.method != Method.TSNE or spec.perplexities != default or not 1 <= largest < default[0]:
        return spec
    return replace(spec, perplexities=(float(largest),))


def check_spec(spec: EmbeddingSpec, count: int) -> None:
    """Raises a UsageError if the spec does not fit the number of images."""
    if count < MIN_IMAGES:
        raise UsageError(f"{count} images are too few to lay out; it takes {MIN_IMAGES} or more")
    if spec.method == Method.TSNE:
        if not spec.perplexities:
            raise UsageError("no perplexity; --perplexity takes a number from 1")
        for perplexity in spec.perplexities:
            check_perplexity(perplexity, count)


def _labels(data: ImageData, features: Features) -> NDArray[np.int64]:
    labels = (data.examples[index].label for index in features.indices_N)
    return np.array([UNKNOWN if label is None else label for label in labels], np.int64)


def _judge_predictions(
    model: Model, data: ImageData, features: Features, labels_N: NDArray[np.int64]
) -> tuple[NDArray[np.bool_] | None, str | None]:
    """Which predictions are right, or why that is unknown."""
    if not data.classes:
        return None, None
    if model.unjudged:
        return None, model.unjudged
    try:
        classes = np.array(match_labels(data, model), np.int64)
    except UsageError as error:
        return None, str(error)
    expected = np.where(labels_N == UNKNOWN, UNKNOWN, classes[labels_N])
    return np.asarray((expected == features.predicted_N) | (expected == UNKNOWN)), None


@dataclass(frozen=True, eq=False)
class _Layout:
    """Places of the images in the plane, not judged yet."""

    places_N2: NDArray[np.float32]
    perplexity: float | None = None
    divergence: float | None = None

    def judged(self, quality: MapQuality) -> Map:
        """The map."""
        return Map(
            method=Method.PCA if self.perplexity is None else Method.TSNE,
            perplexity=self.perplexity,
            backend=None if self.perplexity is None else "opentsne",
            kl_divergence=self.divergence,
            quality=quality,
            places_N2=self.places_N2,
        )


def _flat(components: Pca) -> _Layout:
    """The first two principal components."""
    points = components.scores_Nc
    plane = np.zeros((len(points), 2), np.float32)
    plane[:, : min(2, points.shape[1])] = points[:, :2]
    return _Layout(plane)


def _by_tsne(
    components: Pca, spec: EmbeddingSpec, model: Model, clock: _Clock, note: Callable[[str], None]
) -> Iterator[_Layout]:
    """The layout of each perplexity."""
    points = components.scores_Nc
    k = neighbors_needed(max(spec.perplexities))
    with clock.part("neighbours", len(points)) as advance:
        near = near_points(
            points,
            min(k, len(points) - 1),
            device=model.device,
            seed=spec.seed,
            progress=advance,
        )
    for perplexity in dict.fromkeys(spec.perplexities):

        def watch(iteration: int, divergence: float, perplexity: float = perplexity) -> None:
            note(
                f"perplexity {perplexity:g}: KL about {divergence:.2f} after {iteration} iterations"
            )

        with clock.part("embedding", TOTAL_ITERATIONS) as advance:
            places_N2, divergence = tsne(
                near,
                points,
                perplexity,
                device=model.device,
                seed=spec.seed,
                progress=advance,
                watch=watch,
            )
        yield _Layout(places_N2, float(perplexity), divergence)


class Embedder:
    """An experiment on one data set, in two steps: features, then maps of them."""

    def __init__(
        self,
        model: Model,
        data: ImageData,
        spec: EmbeddingSpec,
        stage: Stage = _silent,
        note: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Checks the spec and finds the layer; `note` takes lines about the progress of t-SNE."""
        check_spec(spec, len(data.examples))
        self._model, self._spec = model, spec
        self._data = with_class_names(data, model)
        self._extractor = FeatureExtractor(model, spec.layer, spec.pool)
        self._clock, self._note = _Clock(stage), note

    def known_features(self, path: Path) -> Features | None:
        """The features in an earlier run's `features.npz`, if this run would compute the same."""
        key = features_key(self._model, self._data, self._extractor)
        known = load_features(path, key, self._data, self._extractor.layer)
        if known is None or known.predicted_N.max(initial=0) >= self._model.classes:
            return None
        return known

    def features(self, scratch: Path | None = None, spread: Elsewhere = alone) -> Features:
        """Runs every image through the network; `scratch` and `spread` as for `extract`."""
        with self._clock.part("features", len(self._data)) as advance:
            return extract(
                self._model,
                self._data,
                self._extractor,
                batch_size=self._spec.batch_size,
                scratch=scratch,
                progress=advance,
                spread=spread,
            )

    def lay_out(self, features: Features) -> EmbeddingResult:
        """Makes the maps and judges them; refuses too few images, and features that are equal."""
        model, data, spec, clock = self._model, self._data, self._spec, self._clock
        points, count = features.values_ND, len(features.values_ND)
        try:
            check_spec(spec, count)
        except UsageError as error:
            if not features.errors:
                raise
            raise CnnvizError(f"{error}; left out: {failures(features.errors)}") from error
        labels_N = _labels(data, features)
        correct_N, mismatch = _judge_predictions(model, data, features, labels_N)
        with clock.part("components", 1) as advance:
            components = _components(features, spec)
            advance(1)
        flat, layouts = _flat(components), list[_Layout]()
        if spec.method == Method.TSNE:
            layouts += _by_tsne(components, spec, model, clock, self._note)
        with clock.part("neighbours", count) as advance:
            near = near_points(
                points,
                min(FAR, count - 1),
                device=model.device,
                seed=spec.seed,
                progress=advance,
            )
        rows = judged_points(count, spec.seed)
        with clock.part("quality", 2 + len(layouts)) as advance:
            reference = near.indices[rows]
            if not near.exact:
                k = near.indices.shape[1]
                reference = nearest(points, k, rows=rows, device=model.device).indices
            recall = preservation(reference, near.indices[rows])
            of_features = label_quality(points, reference, labels_N, rows)
            advance(1)
            qualities = []
            for layout in [*layouts, flat]:
                quality = map_quality(
                    points,
                    reference,
                    layout.places_N2,
                    labels_N,
                    rows,
                    device=model.device,
                    seed=spec.seed,
                )
                qualities.append(quality)
                advance(1)
        classes = data.classes or ()
        labels = ["" if label == UNKNOWN else classes[label] for label in labels_N]
        names = model.labels if not model.unjudged else ()
        nearest_Nk = near.indices[:, :LISTED_NEIGHBORS]
        return EmbeddingResult(
            images=count,
            data=DataRecord.of(data, count),
            images_in_data=data.total,
            labelled=int((labels_N != UNKNOWN).sum()),
            classes=len(classes),
            layer=features.layer,
            dimensions=points.shape[1],
            features_reused=features.reused,
            components=len(components.explained),
            explained_variance=float(components.explained.sum()),
            wrongly_predicted=None if correct_N is None else int((~correct_N).sum()),
            labels_not_matched=mismatch,
            judged=len(rows),
            neighbor_recall=recall,
            features=of_features,
            pca=qualities[-1],
            maps=tuple(
                layout.judged(quality)
                for layout, quality in zip(layouts or [flat], qualities, strict=False)
            ),
            neighbors=agreement(nearest_Nk, labels_N),
            seconds={part: round(spent, 3) for part, spent in clock.seconds.items()},
            image_names=tuple(shown_path(data.examples[i].path) for i in features.indices_N),
            label_names=tuple(labels),
            predicted_names=tuple(names[best] if names else "" for best in features.predicted_N),
            nearest_Nk=nearest_Nk,
            image_data=data,
            preprocess=model.preprocess,
            vectors=features,
            labels_N=labels_N,
            correct_N=correct_N,
            near=near,
        )


def _components(features: Features, spec: EmbeddingSpec) -> Pca:
    try:
        return pca(features.values_ND, COMPONENTS, seed=spec.seed)
    except CnnvizError as error:
        raise CnnvizError(f"layer '{features.layer}': {error}") from error


def embed(
    model: Model, data: ImageData, spec: EmbeddingSpec | None = None, *, stage: Stage = _silent
) -> EmbeddingResult:
    """Lays out a data set as the network sees it, and measures how far the maps can be trusted.

    Args:
        model: from `cnnviz.core.load_model`.
        data: from `cnnviz.core.open_data`.
        spec: what to compute; None for the defaults.
        stage: opens the progress of one part of the work.

    Raises:
        UsageError: no such layer, too few images, or a perplexity that does not fit.
        CnnvizError: no image could be used, or all features are the same.
    """
    embedder = Embedder(model, data, spec or EmbeddingSpec(), stage)
    return embedder.lay_out(embedder.features())
