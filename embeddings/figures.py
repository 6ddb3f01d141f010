"""The figures of an embedding: points colored by class, and the quality of every map.

Every figure states how far its map can be trusted. Up to ten classes have a color each, chosen so
that people with any kind of color blindness can tell them apart (Petroff 2021, "Accessible color
sequences for data visualization", with black for the second of its grays). Beyond ten the colors
repeat with another marker; beyond sixty the markers repeat too, and names are written on the map.

Shapes: N images.
"""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cnnviz.core.output.drawing import bare, escape, new_figure
from cnnviz.core.output.overlays import grid_of_axes
from cnnviz.core.output.style import FONT_SIZE, ink
from cnnviz.embeddings.quality import UNKNOWN, LabelQuality
from cnnviz.embeddings.results import MEASURES, EmbeddingResult, Map

PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#1a1a1a", "#92dadd",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
NO_LABEL, ONLY_COLOR = "#8c8c8c", "#3f90da"
FEATURES_COLOR, PCA_COLOR = "#4d4d4d", "#bdbdbd"
DISTINCT = len(PALETTE) * len(MARKERS)
LEGEND_ROWS = 30
NAMED_BARS = 8
RING, CORNER = "o", "s"


def color_of(label: int) -> str:
    """The color of a class, as #rrggbb; gray where the class is unknown (-1)."""
    return NO_LABEL if label < 0 else PALETTE[label % len(PALETTE)]


def marker_of(label: int) -> str:
    """The marker of a class, in matplotlib's letters."""
    return "o" if label < 0 else MARKERS[label // len(PALETTE) % len(MARKERS)]


def quality_lines(result: EmbeddingResult, map_: Map) -> list[str]:
    """The text in the corner of a map's pictures: how far it can be trusted."""
    is_tsne = map_.perplexity is not None
    kind = f"t-SNE, {map_.name}, KL {map_.kl_divergence:.3f}" if is_tsne else "PCA"
    lines = [f"{result.images:,} images, {kind}"]
    for measure in MEASURES:
        text = measure.text(result.features)
        if measure.field == "preservation_50" or text == "-":
            continue
        others = [f"features {text}"] * bool(text)
        others += [f"PCA {measure.text(result.pca)}"] * is_tsne
        line = f"{measure.name}: {measure.text(map_.quality)}"
        lines.append(line + (f" ({', '.join(others)})" if others else ""))
    return lines


def _point_size(count: int) -> float:
    """Marker size in points squared; large for few images."""
    return float(np.clip(9000 / count, 3, 40))


def _handles(result: EmbeddingResult, size: float, wrong_marker: str) -> list[Line2D]:
    """Legend entries of the classes that occur, and of wrong predictions."""

    def entry(name: str, face: str, marker: str, edge: str | None = None) -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=marker, markersize=size, color=face,
            markeredgecolor=edge or face, label=escape(name, 28),
        )  # fmt: skip

    classes = result.image_data.classes or ()
    present = [int(label) for label in np.unique(result.labels_N) if label != UNKNOWN]
    handles = [entry(classes[k], ink(color_of(k)), marker_of(k)) for k in present]
    if len(handles) > DISTINCT:
        handles = [entry(f"{len(present)} classes, named there", "white", "o")]
    if present and (result.labels_N == UNKNOWN).any():
        handles.append(entry("no label", color_of(UNKNOWN), marker_of(UNKNOWN)))
    if result.correct_N is not None and not result.correct_N.all():
        name = f"wrongly predicted ({int((~result.correct_N).sum()):,})"
        face = "none" if wrong_marker == RING else ink()
        handles.append(entry(name, face, wrong_marker, ink()))
    return handles


def _paint_points(axes: Axes, result: EmbeddingResult, map_: Map) -> None:
    places = map_.places_N2
    unlabelled = not result.image_data.classes
    size = _point_size(len(places))
    for label in np.unique(result.labels_N):
        chosen = result.labels_N == label
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=size,
            c=ONLY_COLOR if unlabelled else ink(color_of(int(label))),
            marker=marker_of(int(label)),
            linewidths=0,
            alpha=0.9,
        )
    if result.correct_N is not None:
        x, y = places[~result.correct_N].T
        thin = min(0.7, 0.18 * size**0.5)
        axes.scatter(x, y, s=size * 2.8, facecolors="none", edgecolors=ink(), linewidths=thin)
    if len(np.unique(result.labels_N)) > DISTINCT:
        _name_classes(axes, result, places)
    axes.set_aspect("equal", adjustable="datalim")
    bare(axes)


def _name_classes(axes: Axes, result: EmbeddingResult, places_N2: NDArray[np.float32]) -> None:
    """Writes the name of each class at the median of its images."""
    classes = result.image_data.classes or ()
    for label in np.unique(result.labels_N[result.labels_N != UNKNOWN]):
        x, y = np.median(places_N2[result.labels_N == label], axis=0)
        axes.text(x, y, escape(classes[label], 16), fontsize=5, ha="center", va="center")


def margin_text(
    figure: Figure, result: EmbeddingResult, map_: Map, left: float, scale: float, wrong_marker: str
) -> None:
    """Writes the legend at the top of the right margin, and the quality at its bottom."""
    handles = _handles(result, 6 * scale, wrong_marker)
    size = (FONT_SIZE - 1) * scale
    if handles:
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left, 0.985),
            ncols=1 + (len(handles) - 1) // LEGEND_ROWS,
            fontsize=size,
            frameon=False,
            borderaxespad=0,
        )
    text = "\n".join(escape(line, 90) for line in quality_lines(result, map_))
    figure.text(left, 0.015, text, fontsize=size, va="bottom", linespacing=1.4)


def scatter(result: EmbeddingResult, map_: Map | None = None) -> Figure:
    """Draws `scatter.png`: a point for each image, colored by class; wrong predictions have rings.

    The map is the first one if none is given.
    """
    map_ = map_ or result.maps[0]
    figure = new_figure(11, 7)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0.01, 0.015, 0.68, 0.97))
    _paint_points(axes, result, map_)
    margin_text(figure, result, map_, 0.7, 1.0, RING)
    return figure


def side_by_side(result: EmbeddingResult) -> Figure:
    """Draws `perplexities.png`: all maps of a run as scatter panels."""
    figure, axes = grid_of_axes(len(result.maps), (4.2, 4.4), columns=3)
    for panel, map_ in zip(axes, result.maps, strict=False):
        _paint_points(panel, result, map_)
        kept = map_.quality.preservation_10
        share = "" if kept is None else f": {kept:.1%} of 10 nearest kept"
        panel.set_title(f"{map_.name}{share}", fontsize=FONT_SIZE)
    return figure


def quality_figure(result: EmbeddingResult) -> Figure:
    """Draws `quality.png`: a group of bars per measure, for features, PCA and every map."""
    spaces: list[tuple[str, str, LabelQuality]]
    spaces = [
        ("features", FEATURES_COLOR, result.features),
        ("first 2 of PCA", PCA_COLOR, result.pca),
    ]
    spaces += [
        (f"t-SNE, {map_.name}", PALETTE[i % len(PALETTE)], map_.quality)
        for i, map_ in enumerate(result.maps)
        if map_.perplexity is not None
    ]
    bars = [(name, color, [m.value(quality) for m in MEASURES]) for name, color, quality in spaces]
    bars = [bar for bar in bars if any(value is not None for value in bar[2])]
    measures = [m for m in range(len(MEASURES)) if any(bar[2][m] is not None for bar in bars)]
    figure = new_figure(2.2 + 1.5 * len(measures), 4)
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for number, (name, color, values) in enumerate(bars):
        for place, measure in enumerate(measures):
            value = values[measure]
            if value is None:
                continue
            left = place - 0.4 + width * (number + 0.5)
            axes.bar(left, value, width * 0.92, color=color)
            if len(bars) <= NAMED_BARS:
                up = "bottom" if value >= 0 else "top"
                axes.text(left, value, f"{value:.2f}", ha="center", va=up, fontsize=6)
        axes.bar(0, 0, color=color, label=escape(name))
    names = [textwrap.fill(MEASURES[m].name, 16) for m in measures]
    axes.set_xticks(range(len(measures)), names, fontsize=FONT_SIZE - 1)
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
