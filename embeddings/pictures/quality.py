"""`quality.png`: what each map keeps of the features, in bars beside those of plain PCA."""

from matplotlib.figure import Figure

from cnnviz.core.output.drawing import escape, new_figure
from cnnviz.core.output.style import FONT_SIZE, ink
from cnnviz.embeddings.pictures.class_colours import PALETTE
from cnnviz.embeddings.quality import LabelQuality, MapQuality
from cnnviz.embeddings.report import map_name
from cnnviz.embeddings.result import EmbeddingResult

FEATURES_COLOUR = "#4d4d4d"
PCA_COLOUR = "#bdbdbd"
NAMED_BARS = 8

MEASURES = (
    "10 nearest kept",
    "50 nearest kept",
    "trustworthiness",
    "distances,\nrank correlation",
    "class by\n10 nearest",
    "silhouette",
)


def _by_class(quality: LabelQuality) -> list[float | None]:
    return [quality.knn_accuracy, quality.silhouette]


def _values(quality: MapQuality) -> list[float | None]:
    """One value per measure."""
    return [
        quality.preservation_10,
        quality.preservation_50,
        quality.trustworthiness,
        quality.spearman,
        *_by_class(quality.labels),
    ]


def quality_figure(result: EmbeddingResult) -> Figure:
    """A group of bars per measure: features (where 1 is no news, left out), PCA, every map."""
    features = [None, None, None, None, *_by_class(result.feature_quality)]
    bars = [
        ("features", FEATURES_COLOUR, features),
        ("first 2 of PCA", PCA_COLOUR, _values(result.pca_quality)),
    ]
    bars += [
        (f"t-SNE, {map_name(found)}", PALETTE[i % len(PALETTE)], _values(quality))
        for i, (found, quality) in enumerate(zip(result.maps, result.qualities, strict=True))
        if found.perplexity is not None
    ]
    bars = [bar for bar in bars if any(value is not None for value in bar[2])]
    measures = [m for m in range(len(MEASURES)) if any(bar[2][m] is not None for bar in bars)]
    figure = new_figure(2.2 + 1.5 * len(measures), 4)
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for number, (name, colour, values) in enumerate(bars):
        for place, measure in enumerate(measures):
            value = values[measure]
            if value is None:
                continue
            left = place - 0.4 + width * (number + 0.5)
            axes.bar(left, value, width * 0.92, color=colour)
            if len(bars) <= NAMED_BARS:
                up = "bottom" if value >= 0 else "top"
                axes.text(left, value, f"{value:.2f}", ha="center", va=up, fontsize=6)
        axes.bar(0, 0, color=colour, label=escape(name))
    axes.set_xticks(range(len(measures)), [MEASURES[m] for m in measures], fontsize=FONT_SIZE - 1)
    axes.axhline(0, color=ink(), linewidth=0.6)
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
