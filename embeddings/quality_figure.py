"""`quality.png`: what each map keeps of the features, in bars beside those of plain PCA."""

from collections.abc import Callable

from matplotlib.figure import Figure

from cnnviz.core.drawing import FONT_SIZE, escape, new_figure
from cnnviz.embeddings.class_colours import PALETTE
from cnnviz.embeddings.quality import LabelQuality, MapQuality
from cnnviz.embeddings.report import map_name
from cnnviz.embeddings.result import EmbeddingResult

FEATURES_COLOUR = "#4d4d4d"
PCA_COLOUR = "#bdbdbd"
NAMED_BARS = 8

MEASURES: tuple[tuple[str, Callable[[MapQuality], float | None]], ...] = (
    ("10 nearest kept", lambda quality: quality.preservation_10),
    ("50 nearest kept", lambda quality: quality.preservation_50),
    ("trustworthiness", lambda quality: quality.trustworthiness),
    ("distances,\nrank correlation", lambda quality: quality.spearman),
    ("class by\n10 nearest", lambda quality: quality.labels.knn_accuracy),
    ("silhouette", lambda quality: quality.labels.silhouette),
)


def _as_map(quality: LabelQuality) -> MapQuality:
    """The features judged as a map of themselves: what a perfect map would have."""
    return MapQuality(1.0, 1.0, 1.0, 1.0, quality)


def quality_figure(result: EmbeddingResult) -> Figure:
    """A group of bars per measure: features (where 1 is no news, left out), PCA, every map."""
    bars = [("features", FEATURES_COLOUR, _as_map(result.feature_quality))]
    bars.append(("first 2 of PCA", PCA_COLOUR, result.pca_quality))
    bars += [
        (f"t-SNE, {map_name(found)}", PALETTE[i % len(PALETTE)], quality)
        for i, (found, quality) in enumerate(zip(result.maps, result.qualities, strict=True))
        if found.perplexity is not None
    ]
    measures = [m for m in MEASURES if any(m[1](quality) is not None for _, _, quality in bars[1:])]
    figure = new_figure(2.2 + 1.5 * len(measures), 4)
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for number, (name, colour, quality) in enumerate(bars):
        for place, (_, value_of) in enumerate(measures):
            value = value_of(quality)
            if value is None or (number == 0 and place < 4):
                continue
            left = place - 0.4 + width * (number + 0.5)
            axes.bar(left, value, width * 0.92, color=colour)
            if len(bars) <= NAMED_BARS:
                up = "bottom" if value >= 0 else "top"
                axes.text(left, value, f"{value:.2f}", ha="center", va=up, fontsize=6)
        axes.bar(0, 0, color=colour, label=escape(name))
    axes.set_xticks(range(len(measures)), [name for name, _ in measures], fontsize=FONT_SIZE - 1)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylim(top=1.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 1.14),
        ncols=min(4, len(bars)),
        fontsize=FONT_SIZE - 1,
        frameon=False,
    )
    return figure
