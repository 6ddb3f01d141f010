"""One embedding experiment end to end: a network's view of a data set, laid out in the plane.

Features of every image, their principal components, neighbours (exact ones, but of very many
images), a map per perplexity, and how far each map can be trusted, beside the same for plain PCA.

Shapes: N images, D features, k neighbours.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData, failures
from cnnviz.core.data.labels import match_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.embeddings.choices import EmbeddingSpec, Method
from cnnviz.embeddings.features.extract import Features, extract, features_key
from cnnviz.embeddings.features.file import load_features
from cnnviz.embeddings.features.penultimate import FeatureExtractor
from cnnviz.embeddings.layout.neighbors import near_points, nearest
from cnnviz.embeddings.layout.pca import Pca, pca
from cnnviz.embeddings.layout.tsne import (
    Map,
    check_perplexity,
    neighbours_needed,
    total_iterations,
    tsne,
)
from cnnviz.embeddings.quality import (
    FAR,
    UNKNOWN,
    LabelQuality,
    MapQuality,
    judged_points,
    label_quality,
    map_quality,
    preservation,
)
from cnnviz.embeddings.result import EmbeddingResult

COMPONENTS = 50
FEWEST = 4

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


def check_spec(spec: EmbeddingSpec, count: int) -> None:
    """Refuses what so many images cannot give, before the network runs.

    Raises:
        UsageError: too few images, or a perplexity that does not fit.
    """
    if count < FEWEST:
        raise UsageError(f"{count} images are too few to lay out; it takes {FEWEST} or more")
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
    """Which predictions are right, or why that cannot be told."""
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


def _maps(
    components: Pca, spec: EmbeddingSpec, model: Model, clock: _Clock, tell: Callable[[str], None]
) -> tuple[tuple[Map, ...], Map]:
    """The maps asked for, and that of PCA."""
    points = components.scores_Nc
    plane = np.zeros((len(points), 2), np.float32)
    plane[:, : min(2, points.shape[1])] = points[:, :2]
    flat = Map(plane)
    if spec.method == Method.PCA:
        return (flat,), flat
    k = neighbours_needed(max(spec.perplexities))
    with clock.part("neighbours", len(points)) as advance:
        near = near_points(
            points,
            min(k, len(points) - 1),
            device=model.device,
            seed=spec.seed,
            progress=advance,
        )
    maps = []
    for perplexity in dict.fromkeys(spec.perplexities):

        def watch(iteration: int, divergence: float, perplexity: float = perplexity) -> None:
            tell(f"perplexity {perplexity:g}: KL {divergence:.3f} after {iteration} iterations")

        with clock.part("embedding", total_iterations()) as advance:
            found = tsne(
                near,
                points,
                perplexity,
                backend=spec.backend,
                device=model.device,
                seed=spec.seed,
                progress=advance,
                watch=watch,
            )
        maps.append(found)
    return tuple(maps), flat


class Embedder:
    """An experiment on one data set, in two steps: features first, then the maps of them."""

    def __init__(
        self,
        model: Model,
        data: ImageData,
        spec: EmbeddingSpec,
        stage: Stage = _silent,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Checks the spec and finds the layer.

        Args:
            model: from `cnnviz.core.load_model`.
            data: from `cnnviz.core.open_data`.
            spec: what to do.
            stage: opens the progress of one part of the work.
            tell: called with a line about how far t-SNE has come.

        Raises:
            UsageError: no such layer, too few images, or a perplexity that does not fit.
        """
        check_spec(spec, len(data.examples))
        self._model, self._data, self._spec = model, data, spec
        self._extractor = FeatureExtractor(model, spec.layer, spec.pool)
        self._clock, self._tell = _Clock(stage), tell

    def known_features(self, path: Path) -> Features | None:
        """The features in an earlier run's `features.npz`, if this run would compute the same."""
        key = features_key(self._model, self._data, self._extractor)
        return load_features(path, key, self._data, self._extractor.layer)

    def features(self, scratch: Path | None = None) -> Features:
        """Runs every image through the network.

        Args:
            scratch: folder for features that exceed the memory budget.

        Raises:
            CnnvizError: the layer gives no features, or no image could be used.
        """
        with self._clock.part("features", len(self._data)) as advance:
            return extract(
                self._model,
                self._data,
                self._extractor,
                batch_size=self._spec.batch_size,
                scratch=scratch,
                progress=advance,
            )

    def lay_out(self, features: Features) -> EmbeddingResult:
        """Makes the maps and judges them.

        Raises:
            UsageError: too few images were left for the perplexity.
            CnnvizError: all features are the same.
        """
        model, spec, clock = self._model, self._spec, self._clock
        points, count = features.values_ND, len(features.values_ND)
        try:
            check_spec(spec, count)
        except UsageError as error:
            if not features.errors:
                raise
            raise CnnvizError(f"{error}; left out: {failures(features.errors)}") from error
        labels_N = _labels(self._data, features)
        correct_N, mismatch = _judge_predictions(model, self._data, features, labels_N)
        with clock.part("components", 1) as advance:
            components = _components(features, spec)
            advance(1)
        maps, flat = _maps(components, spec, model, clock, self._tell)
        with clock.part("neighbours", count) as advance:
            near = near_points(
                points,
                min(FAR, count - 1),
                device=model.device,
                seed=spec.seed,
                progress=advance,
            )
        judged = maps if maps[0] is flat else (*maps, flat)
        rows = judged_points(count, spec.seed)
        with clock.part("quality", len(rows) * (1 + len(judged))) as advance:
            reference = near.indices[rows]
            if not near.exact:
                found = nearest(points, near.indices.shape[1], rows=rows, device=model.device)
                reference = found.indices
            recall = preservation(reference, near.indices[rows])
            own, qualities = _judge(
                features, reference, judged, labels_N, rows, spec, model, advance
            )
        return EmbeddingResult(
            data=self._data,
            preprocess=model.preprocess,
            features=features,
            labels_N=labels_N,
            model_labels=model.labels if not model.unjudged else ("",) * model.classes,
            correct_N=correct_N,
            mismatch=mismatch,
            components=components,
            neighbors=near,
            neighbor_recall=recall,
            judged=len(rows),
            maps=maps,
            feature_quality=own,
            qualities=qualities[: len(maps)],
            pca_quality=qualities[-1],
            seconds=dict(clock.seconds),
        )


def _components(features: Features, spec: EmbeddingSpec) -> Pca:
    try:
        return pca(features.values_ND, COMPONENTS, seed=spec.seed)
    except CnnvizError as error:
        raise CnnvizError(f"layer '{features.layer}': {error}") from error


def _judge(
    features: Features,
    reference_Mk: NDArray[np.int64],
    maps: tuple[Map, ...],
    labels_N: NDArray[np.int64],
    rows_M: NDArray[np.int64],
    spec: EmbeddingSpec,
    model: Model,
    advance: Callable[[int], None],
) -> tuple[LabelQuality, tuple[MapQuality, ...]]:
    """How the features stand by class, and what each map keeps of them."""
    points, count, done = features.values_ND, len(rows_M), 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        advance(steps)

    own = label_quality(points, reference_Mk, labels_N, rows_M, progress)
    qualities = []
    for number, each in enumerate(maps, start=1):
        # Measures that do not apply are left out, and with them their share of the work.
        progress(number * count - done)
        quality = map_quality(
            points,
            reference_Mk,
            each.places_N2,
            labels_N,
            rows_M,
            device=model.device,
            seed=spec.seed,
            progress=progress,
        )
        qualities.append(quality)
    progress((1 + len(maps)) * count - done)
    return own, tuple(qualities)


def embed(
    model: Model, data: ImageData, spec: EmbeddingSpec | None = None, *, stage: Stage = _silent
) -> EmbeddingResult:
    """Lays out a data set as the network sees it, and measures how far the map can be trusted.

    Args:
        model: from `cnnviz.core.load_model`.
        data: from `cnnviz.core.open_data`.
        spec: what to do; None for the defaults.
        stage: opens the progress of one part of the work.

    Raises:
        UsageError: no such layer, too few images, or a perplexity that does not fit.
        CnnvizError: no image could be used, or all features are the same.
    """
    embedder = Embedder(model, data, spec or EmbeddingSpec(), stage)
    return embedder.lay_out(embedder.features())
