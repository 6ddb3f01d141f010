"""What an embedding says in numbers and words: its summary, and the lines on its pictures."""

from collections import Counter
from typing import Annotated

from typing_extensions import TypedDict

from cnnviz.core.output.entries import (
    Change,
    Count,
    DataEntry,
    Positive,
    Said,
    Share,
    Unsigned,
    data_entry,
)
from cnnviz.core.output.numbers import fewer_digits
from cnnviz.embeddings.choices import Backend, Method
from cnnviz.embeddings.layout.tsne import Map
from cnnviz.embeddings.quality import UNKNOWN, LabelQuality, MapQuality
from cnnviz.embeddings.result import EmbeddingResult
from cnnviz.embeddings.tables import nearest_shared


class LabelEntry(TypedDict):
    """How classes lie in some space; null without labels."""

    knn_accuracy: Annotated[
        Share | None,
        Said("share of labelled images whose class is the commonest among their 10 nearest"),
    ]
    silhouette: Annotated[Change | None, Said("null with fewer than two classes")]


class QualityEntry(LabelEntry):
    """How far a map keeps the features' neighbours and distances."""

    preservation_10: Annotated[Share | None, Said("null with 11 images or fewer")]
    preservation_50: Annotated[Share | None, Said("null with 51 images or fewer")]
    trustworthiness: Annotated[Share | None, Said("null with 20 images or fewer")]
    spearman: Change


class MapEntry(TypedDict):
    """One map."""

    method: Method
    perplexity: Annotated[float | None, Said(minimum=1)]
    backend: Annotated[Backend | None, Said("who computed it; null for PCA")]
    kl_divergence: Annotated[float | None, Said("in nats, exact")]
    folder: Annotated[str, Said("where its files are, in the run's folder")]
    quality: QualityEntry


class Results(TypedDict):
    """The `results` of the summary."""

    images: Annotated[int, Said("that were laid out", minimum=4)]
    data: DataEntry
    images_in_data: Annotated[int, Said("before --limit", minimum=4)]
    labelled: Count
    classes: Count
    layer: str
    dimensions: Positive
    features_reused: bool
    components: Annotated[int, Said(minimum=1, maximum=50)]
    explained_variance: Share
    wrongly_predicted: Annotated[
        Count | None, Said("null where the classes of data and model do not match")
    ]
    labels_not_matched: str | None
    judged: Annotated[
        int, Said("images that the qualities are of, each against all; drawn by --seed", minimum=4)
    ]
    neighbor_recall: Annotated[
        Share, Said("share of an image's true nearest among those found; 1 where they are exact")
    ]
    features: LabelEntry
    pca: QualityEntry
    maps: Annotated[list[MapEntry], Said(minItems=1)]
    neighbors: Annotated[
        dict[str, Count] | None,
        Said(
            "how many labelled images share their class with 0, 1, … of their nearest; null "
            "without labels"
        ),
    ]
    seconds: dict[str, Unsigned]


def _label_entry(quality: LabelQuality) -> LabelEntry:
    return {
        "knn_accuracy": fewer_digits(quality.knn_accuracy),
        "silhouette": fewer_digits(quality.silhouette),
    }


def _quality_entry(quality: MapQuality) -> QualityEntry:
    return {
        "preservation_10": fewer_digits(quality.preservation_10),
        "preservation_50": fewer_digits(quality.preservation_50),
        "trustworthiness": fewer_digits(quality.trustworthiness),
        "spearman": fewer_digits(quality.spearman),
        **_label_entry(quality.labels),
    }


def map_name(found: Map) -> str:
    """`perplexity 30`, or `PCA`."""
    return "PCA" if found.perplexity is None else f"perplexity {found.perplexity:g}"


def report(result: EmbeddingResult, folders: tuple[str, ...]) -> Results:
    """The `results` of the summary.

    Args:
        result: what `embed` returned.
        folders: where each map's files are, relative to the run's folder.
    """
    maps: list[MapEntry] = [
        {
            "method": Method.PCA if found.perplexity is None else Method.TSNE,
            "perplexity": found.perplexity,
            "backend": found.backend,
            "kl_divergence": fewer_digits(found.divergence),
            "folder": folder,
            "quality": _quality_entry(quality),
        }
        for found, quality, folder in zip(result.maps, result.qualities, folders, strict=True)
    ]
    correct = result.correct_N
    known = int((result.labels_N != UNKNOWN).sum())
    return {
        "images": len(result.labels_N),
        "data": data_entry(result.data, len(result.labels_N)),
        "images_in_data": result.data.total,
        "labelled": known,
        "classes": len(result.data.classes or ()),
        "layer": result.features.layer,
        "dimensions": int(result.features.values_ND.shape[1]),
        "features_reused": result.features.reused,
        "components": len(result.components.explained),
        "explained_variance": fewer_digits(float(result.components.explained.sum())),
        "wrongly_predicted": None if correct is None else int((~correct).sum()),
        "labels_not_matched": result.mismatch,
        "judged": result.judged,
        "neighbor_recall": fewer_digits(result.neighbor_recall),
        "features": _label_entry(result.feature_quality),
        "pca": _quality_entry(result.pca_quality),
        "maps": maps,
        "neighbors": _agreement(result),
        "seconds": {name: round(spent, 3) for name, spent in result.seconds.items()},
    }


def _agreement(result: EmbeddingResult) -> dict[str, int] | None:
    """How many labelled images have 0, 1, … of their nearest in their own class."""
    _, same = nearest_shared(result)
    if same is None:
        return None
    counts = Counter(same[result.labels_N != UNKNOWN].sum(axis=1).tolist())
    return {str(shared): counts.get(shared, 0) for shared in range(same.shape[1] + 1)}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


QUALITY_COLUMNS = ("layout", "kept 10", "kept 50", "trust", "dist.", "k-NN", "silh.", "KL")


def quality_rows(result: EmbeddingResult) -> list[tuple[str, ...]]:
    """The table of the findings: features, PCA, and every map."""
    own = result.feature_quality
    rows: list[tuple[str, ...]]
    rows = [("features", "", "", "", "", _percent(own.knn_accuracy), _plain(own.silhouette), "")]
    named: list[tuple[str, MapQuality, float | None]]
    named = [("PCA", result.pca_quality, None)]
    named += [
        (f"t-SNE {found.perplexity:g}", quality, found.divergence)
        for found, quality in zip(result.maps, result.qualities, strict=True)
        if found.perplexity is not None
    ]
    for name, quality, divergence in named:
        rows.append(
            (
                name,
                _percent(quality.preservation_10),
                _percent(quality.preservation_50),
                _plain(quality.trustworthiness),
                _plain(quality.spearman),
                _percent(quality.labels.knn_accuracy),
                _plain(quality.labels.silhouette),
                "" if divergence is None else _plain(divergence),
            )
        )
    return rows


def quality_lines(result: EmbeddingResult, index: int) -> list[str]:
    """What stands in the corner of a map's pictures: how far it can be trusted."""
    found, quality = result.maps[index], result.qualities[index]
    is_tsne = found.perplexity is not None
    beside = result.pca_quality

    def line(name: str, here: str, features: str, pca: str) -> str:
        rest = [f"features {features}"] * bool(features) + [f"PCA {pca}"] * is_tsne
        return f"{name}: {here}" + (f" ({', '.join(rest)})" if rest else "")

    what = f"t-SNE, {map_name(found)}, KL {found.divergence:.3f}" if is_tsne else "PCA"
    lines = [f"{len(result.labels_N):,} images, {what}"]
    lines.append(
        line(
            "10 nearest kept",
            _percent(quality.preservation_10),
            "",
            _percent(beside.preservation_10),
        )
    )
    lines.append(
        line(
            "trustworthiness",
            _plain(quality.trustworthiness),
            "",
            _plain(beside.trustworthiness),
        )
    )
    lines.append(
        line("distances, rank corr.", _plain(quality.spearman), "", _plain(beside.spearman))
    )
    own = result.feature_quality
    if own.knn_accuracy is not None:
        lines.append(
            line(
                "class by 10 nearest",
                _percent(quality.labels.knn_accuracy),
                _percent(own.knn_accuracy),
                _percent(beside.labels.knn_accuracy),
            )
        )
    if own.silhouette is not None:
        lines.append(
            line(
                "silhouette",
                _plain(quality.labels.silhouette),
                _plain(own.silhouette),
                _plain(beside.labels.silhouette),
            )
        )
    return lines
