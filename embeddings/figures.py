"""The figures of an embedding: points colored by class, and the quality of every map.

Every figure states how far its map can be trusted. Up to ten classes have a color each, chosen so
that people with any kind of color blindness can tell them apart (Petroff 2021, "Accessible color
sequences for data visualization", with black for the second of its grays). Beyond ten the colors
repeat with another marker; beyond sixty the markers repeat too, and names are written on the map.

Shapes: N images.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from cnnviz.core.choices import percent, typeset
from cnnviz.core.output.canvas import Entry
from cnnviz.core.output.drawing import label_axes
from cnnviz.core.output.layout import PANEL, Cell, board, in_rows, plot
from cnnviz.core.output.style import SMALL, ink
from cnnviz.core.output.text import LINE, escape, text_width
from cnnviz.embeddings.quality import UNKNOWN, LabelQuality
from cnnviz.embeddings.results import MEASURES, Embedding, EmbeddingResult, Map

PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#1a1a1a", "#92dadd",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")
NO_LABEL = "#8c8c8c"
FEATURES_COLOR, PCA_COLOR = "#4d4d4d", "#bdbdbd"
DISTINCT = len(PALETTE) * len(MARKERS)
LEGEND_ROWS = 30
NAMED_BARS = 8
RING, CORNER = "o", "s"
_FEW = 3  # points that their name does not cover


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
        if measure.field == "preservation_50" or "-" in (text, measure.text(map_.quality)):
            continue
        others = [f"features {text}"] * bool(text)
        others += [f"PCA {measure.text(result.pca)}"] * is_tsne
        line = f"{measure.name}: {measure.text(map_.quality)}"
        lines.append(line + (f" ({', '.join(others)})" if others else ""))
    return lines


@dataclass(frozen=True, eq=False)
class Groups:
    """What points are coloured by: their classes, or, without labels, their predictions.

    `group_N` is the group of each image in `names`, -1 where it is unknown or a rare prediction.
    """

    names: tuple[str, ...]
    group_N: NDArray[np.int64]
    predicted: bool = False

    @property
    def present(self) -> list[int]:
        """The groups that occur."""
        return [int(group) for group in np.unique(self.group_N) if group != UNKNOWN]


def _natural(name: str) -> str:
    """A key that orders numbers in names by value."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(20), name)


def groups_of(result: Embedding) -> Groups:
    """The classes of labelled data; else the predictions, of which rare ones are one group."""
    if any(result.label_names):
        classes = tuple(sorted(set(result.label_names) - {""}, key=_natural))
        numbers = {name: number for number, name in enumerate(classes)} | {"": UNKNOWN}
        labels = [numbers[name] for name in result.label_names]
        return Groups(classes, np.array(labels, np.int64))
    common = Counter(result.predicted_names).most_common(len(PALETTE))
    names = tuple(name for name, _ in common)
    places = {name: place for place, name in enumerate(names)}
    found = [places.get(name, UNKNOWN) for name in result.predicted_names]
    return Groups(names, np.array(found or [UNKNOWN] * result.images, np.int64), predicted=True)


def looks_of(result: Embedding) -> dict[str, tuple[str, str]]:
    """The colour and marker of each group, and, of labelled data, of predictions of other names."""
    names = dict.fromkeys(groups_of(result).names)
    if any(result.label_names):
        names |= dict.fromkeys(name for name, _ in Counter(result.predicted_names).most_common())
    return {name: (color_of(place), marker_of(place)) for place, name in enumerate(names) if name}


def _point_size(count: int) -> float:
    """Marker size in points squared; large for few images."""
    return float(np.clip(9000 / count, 3, 40))


def entries(result: EmbeddingResult, wrong_marker: str) -> list[Entry]:
    """Legend entries of the groups that occur, and of wrong predictions."""
    groups = groups_of(result)
    present, wrong = groups.present, []
    if result.correct_N is not None and not result.correct_N.all():
        name = f"wrongly predicted ({int((~result.correct_N).sum()):,})"
        face = "none" if wrong_marker == RING else ink()
        wrong = [Entry(name, face, marker=wrong_marker, edge=ink())]
    if len(present) > DISTINCT:
        return [Entry(f"{len(present)} classes, named there", "none"), *wrong]
    as_ = "predicted " if groups.predicted else ""
    shown = [Entry(as_ + groups.names[k], ink(color_of(k)), marker=marker_of(k)) for k in present]
    if present and (groups.group_N == UNKNOWN).any():
        name = "other predictions" if groups.predicted else "no label"
        shown.append(Entry(name, color_of(UNKNOWN), marker=marker_of(UNKNOWN)))
    return [*shown, *wrong]


def _paint_points(axes: Axes, result: EmbeddingResult, map_: Map, *, named: bool = True) -> None:
    places, groups = map_.places_N2, groups_of(result)
    size = _point_size(len(places))
    for group in np.unique(groups.group_N):
        chosen = groups.group_N == group
        axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            s=size,
            c=ink(color_of(int(group))),
            marker=marker_of(int(group)),
            linewidths=0,
            alpha=0.9,
        )
    if result.correct_N is not None:
        x, y = places[~result.correct_N].T
        thin = min(0.7, 0.18 * size**0.5)
        axes.scatter(x, y, s=size * 2.8, facecolors="none", edgecolors=ink(), linewidths=thin)
    _fit(axes, places)
    axes.set_axis_off()
    if named:
        _name_groups(axes, groups, places)


def _fit(axes: Axes, places_N2: NDArray[np.float32]) -> None:
    """Sets the limits so that both axes have one scale and all points are inside."""
    low, high = places_N2.min(0), places_N2.max(0)
    box = axes.bbox
    unit = 1.06 * max((high[0] - low[0]) / box.width, (high[1] - low[1]) / box.height, 1e-12)
    centre, half = (low + high) / 2, unit * np.array([box.width, box.height]) / 2
    axes.set_xlim(centre[0] - half[0], centre[0] + half[0])
    axes.set_ylim(centre[1] - half[1], centre[1] + half[1])


def _name_groups(axes: Axes, groups: Groups, places_N2: NDArray[np.float32]) -> None:
    """Writes the name of each group at the median of its images, where there is room for it.

    The largest groups come first; a name that would cover another one is moved up or down, or left
    to the legend. More groups than the legend can tell apart are named all.
    """
    crowded = len(groups.present) > DISTINCT
    size = 5.0 if crowded else SMALL
    halo = [withStroke(linewidth=2.0, foreground=rcParams["axes.facecolor"])]
    taken: list[Bbox] = []
    dots = axes.figure.dpi / 72
    for group in sorted(groups.present, key=lambda k: -int((groups.group_N == k).sum())):
        name = escape(groups.names[group], 20)
        members = places_N2[groups.group_N == group]
        middle = np.median(members, axis=0)
        few = len(members) <= _FEW  # which the name would hide; it is at one of them
        if few:
            middle = members[np.square(members - middle).sum(1).argmin()]
        x, y = axes.transData.transform(middle)
        wide, high = dots * text_width(name, size), dots * size * LINE
        x = np.clip(x, axes.bbox.x0 + wide / 2, axes.bbox.x1 - wide / 2)
        for step in (1, -1, 2, -2, 3, -3) if few else (0, 1, -1, 2, -2, 3, -3):
            box = Bbox.from_bounds(x - wide / 2, y - high / 2 + step * high, wide, high)
            if crowded or not any(box.overlaps(other) for other in taken):
                taken.append(box)
                place = axes.transData.inverted().transform((x, y + step * high))
                axes.text(place[0], place[1], name, fontsize=size, ha="center", va="center",
                          path_effects=halo)  # fmt: skip
                break


def margin_text(
    figure: Figure, result: EmbeddingResult, map_: Map, left: float, scale: float, wrong_marker: str
) -> None:
    """Writes the legend at the top of the right margin, and the quality at its bottom."""
    size = SMALL * scale
    handles = [
        Line2D(
            [], [], linestyle="", marker=entry.marker or "o", markersize=6 * scale,
            markerfacecolor=entry.colour, markeredgecolor=entry.edge or entry.colour,
            label=escape(entry.text, 28),
        )
        for entry in entries(result, wrong_marker)
    ]  # fmt: skip
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
    first, *quality = quality_lines(result, map_)
    title = f"{Path(result.data.name).name}: {first}\n{'; '.join(quality)}"
    cell = plot(
        lambda axes: _paint_points(axes, result, map_),
        title, width=2 * PANEL, height=1.6 * PANEL, left=0.0, bottom=4.0, right=0.0,
    )  # fmt: skip
    return board([[cell]], legend=entries(result, RING))


def preview(result: EmbeddingResult) -> Figure:
    """The figure that a notebook shows."""
    return scatter(result)


def side_by_side(result: EmbeddingResult) -> Figure:
    """Draws `perplexities.png`: all maps of a run as scatter panels."""
    cells: list[Cell] = []
    for map_ in result.maps:
        kept = map_.quality.preservation_10
        share = "" if kept is None else f"\n{percent(kept, 1)} of 10 nearest kept"
        cells.append(
            plot(
                lambda axes, map_=map_: _paint_points(axes, result, map_, named=False),  # type: ignore[misc]
                map_.name + share,
                width=PANEL,
                height=PANEL,
                left=0.0,
                bottom=0.0,
                right=0.0,
            )
        )
    return board(in_rows(cells, 3), legend=entries(result, RING))


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
    names = [MEASURES[m].name for m in measures]
    cell = plot(
        lambda axes: _bars(axes, bars, measures, names),
        "How much of the features' structure the map keeps\nhigher is better",
        width=max(84.0 * len(measures), 250.0), height=190.0, left=32.0, bottom=40.0,
    )  # fmt: skip
    return board([[cell]], legend=[Entry(name, color) for name, color, _ in bars])


def _bars(
    axes: Axes,
    bars: Sequence[tuple[str, str, list[float | None]]],
    measures: Sequence[int],
    names: Sequence[str],
) -> None:
    """A group of bars for each measure."""
    width = 0.8 / len(bars)
    for number, (_name, color, values) in enumerate(bars):
        for place, measure in enumerate(measures):
            value = values[measure]
            if value is None:
                continue
            left = place - 0.4 + width * (number + 0.5)
            axes.bar(left, value, width * 0.92, color=color)
            if len(bars) <= NAMED_BARS:
                up = "bottom" if value >= 0 else "top"
                size = SMALL - 1.5 if len(bars) <= 3 else 4.5
                axes.text(left, value, typeset(f"{value:.2f}"), ha="center", va=up, fontsize=size)
    axes.axhline(0, color=ink(), linewidth=0.6)
    axes.set_ylim(top=1.08)
    label_axes(axes)
    axes.set_xticks(range(len(measures)), [textwrap.fill(name, 16) for name in names])
