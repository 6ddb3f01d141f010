"""The pictures of an audit: a sheet for each class, and all classes at a glance."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnviz.audit.choices import ALARM
from cnnviz.audit.experiment import Audited, AuditResult
from cnnviz.audit.groups import SMALLEST
from cnnviz.audit.report import elsewhere, misled, name_of, wrong_reason
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import (
    Column,
    bare,
    beside,
    draw_bars,
    image_pixels,
    new_figure,
    title,
    under,
)
from cnnviz.core.output.look import Look
from cnnviz.core.output.panels import draw_map

CELL = 1.15  # inches of one patch
TEXT = 3.1  # inches left of a row
WHERE, CAPTION = 3.0, 0.42  # inches: the map at the top, the line under a patch
READ_FIRST = "images are by the class that they are predicted as"

Read = Callable[[Sequence[int]], dict[int, WorkingImage]]


def draw_class(result: AuditResult, entry: Audited, read: Read, top: int) -> Figure:
    """One class: where, what, whether it is a shortcut, and which images to look at.

    Args:
        result: of the audit.
        entry: the class.
        read: working images by rows.
        top: pictures in a row.

    Raises:
        CnnvizError: an image can no longer be read.
    """
    rows_shown = list(_rows(result, entry, top))
    columns = max(4, *(len(rows) for _, rows, _ in rows_shown))
    height = WHERE + (CELL + CAPTION) * len(rows_shown)
    figure = new_figure(TEXT + columns * CELL + 0.3, height)
    ratios = [WHERE, *[CELL + CAPTION] * len(rows_shown)]
    layout = figure.add_gridspec(1 + len(rows_shown), 1, height_ratios=ratios)
    where = layout[0].subgridspec(1, 2, width_ratios=[1.0, 1.6])
    left, right = (figure.add_subplot(where[place]) for place in range(2))
    _draw_where(left, right, result, entry)
    for number, (text, rows, labels) in enumerate(rows_shown, start=1):
        widths = [TEXT / CELL, *[1.0] * columns]
        strip = layout[number].subgridspec(1, columns + 1, width_ratios=widths)
        axes = [figure.add_subplot(strip[place]) for place in range(columns + 1)]
        beside(axes[0], text)
        images = read(rows)
        for place, own in enumerate(axes[1:]):
            bare(own)
            if place < len(rows):
                _draw_patch(own, images[rows[place]], result.rows.boxes_N4[rows[place]].tolist())
                under(own, labels[place], 18)
    return figure


def _rows(
    result: AuditResult, entry: Audited, top: int
) -> Iterator[tuple[str, list[int], list[str]]]:
    """Rows of pictures: what is said of them, which they are, and what stands under each."""
    rows, labels = result.rows, result.labels

    def true(row: int) -> str:
        return labels[rows.labels_N[row]] if rows.known_N[row] else f"{rows.probability_N[row]:.0%}"

    for number, part in enumerate(entry.of.groups):
        shown = part[:top].tolist()
        yield _group_text(result, entry, number), shown, [true(row) for row in shown]
    for heading, shown in (
        (
            "Evidence elsewhere than the class's:\nmaps least like the others'",
            elsewhere(entry, top),
        ),
        ("Misled: of another class\n(named below), the surest first", misled(result, entry, top)),
        (
            "Right for another reason: evidence\npeaks off the object, least inside first",
            wrong_reason(result, entry, top),
        ),
    ):
        if shown:
            yield heading, shown, [true(row) for row in shown]


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _group_text(result: AuditResult, entry: Audited, number: int) -> str:
    rows, part, verdict = result.rows, entry.of.groups[number], entry.verdicts[number]
    lines = [f"Group {number + 1}: {len(part)} images, {len(part) / len(entry.of.members_N):.0%}"]
    labelled = part[rows.known_N[part]]
    if len(labelled):
        covered = rows.covered_N[labelled] == rows.labels_N[labelled]
        lines.append(
            f"right {_percent(rows.right_N[labelled].mean())}, patch covered "
            f"{_percent(covered.mean())}"
        )
    if verdict is None:
        return "\n".join([*lines, "nothing is predicted otherwise: no paste test"])
    lines += [
        f"pasted into others: {_percent(verdict.carried)} become it",
        f"  (random patches {_percent(verdict.carried_random)})",
        f"covered: {_percent(verdict.lost)} change (any place {_percent(verdict.lost_random)})",
    ]
    if verdict.suspicion is None:
        lines.append("suspicion: too few other groups to tell")
    else:
        alarm = "  SUSPICIOUS" if verdict.suspicion > ALARM else ""
        lines.append(f"suspicion {verdict.suspicion:.2f}{alarm}")
    return "\n".join(lines)


def _draw_where(left: Axes, right: Axes, result: AuditResult, entry: Audited) -> None:
    spread = entry.concentration
    draw_map(left, entry.mean_RC, Look(), "mean drop ÷ each image's largest", one_sided=True)
    bare(left)
    title(left, f"{name_of(result, entry)}: where the evidence lies")
    rows, members_N = result.rows, entry.of.members_N
    labelled = members_N[rows.known_N[members_N]]
    few = f"as classes with fewer than {SMALLEST} each"
    kind = few if entry.of.index is None else f"as {name_of(result, entry)}"
    lines = [f"{len(members_N)} images predicted {kind}"]
    if len(labelled):
        lines.append(f"{_percent(rows.right_N[labelled].mean())} of the labelled ones rightly")
    relied = entry.reliance
    others = "" if relied.others is None else f"; other classes {relied.others:.2f}"
    alarm = "  SUSPICIOUS: evidence everywhere" if (relied.suspicion or 0.0) > ALARM else ""
    lines.append(f"reliance on one patch {relied.mean:.2f} (mean{others}){alarm}")
    inside_N = rows.inside_N[members_N]
    if not np.isnan(inside_N).all():
        lines.append(
            f"{_percent(float(np.nanmean(inside_N)))} of the evidence on the object (mean)"
        )
    if spread.area is None or spread.interval is None:
        lines.append("no evidence at all: covering nothing hurts")
    else:
        low, high = spread.interval
        others = "" if spread.others is None else f"; other classes {_percent(spread.others)}"
        lines.append(
            f"spread over {_percent(spread.area)} of the frame "
            f"(95 %: {_percent(low)} to {_percent(high)}{others})"
        )
    suspicion = entry.suspicion
    lines.append("suspicion: " + ("not judged" if suspicion is None else f"{suspicion:.2f}"))
    beside(right, "\n".join(lines))


def _draw_patch(axes: Axes, image: WorkingImage, box: Sequence[int]) -> None:
    """The patch with as much around it as it is large, outlined."""
    pixels = image_pixels(image)
    y0, x0, y1, x1 = box
    margin = max(y1 - y0, x1 - x0) // 2
    bottom, right = pixels.shape[:2]
    axes.imshow(pixels, interpolation="nearest")
    for colour, thick in (("black", 2.2), ("white", 1.0)):
        outline = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False)
        outline.set(edgecolor=colour, linewidth=thick)
        axes.add_patch(outline)
    side = max(y1 - y0, x1 - x0) + 2 * margin
    top = min(max(0, (y0 + y1 - side) // 2), max(0, bottom - side))
    left = min(max(0, (x0 + x1 - side) // 2), max(0, right - side))
    axes.set_xlim(left - 0.5, min(left + side, right) - 0.5)
    axes.set_ylim(min(top + side, bottom) - 0.5, top - 0.5)


def draw_overview(result: AuditResult) -> Figure:
    """All classes by suspicion, with accuracy, reliance and spread; of very many the first."""
    classes = sorted(result.classes, key=lambda entry: -(entry.suspicion or -1.0))
    return draw_bars(
        [f"{name_of(result, entry)} ({len(entry.of.members_N)})" for entry in classes],
        [
            Column("suspicion", [entry.suspicion for entry in classes], ALARM, "not judged"),
            Column("right, of those predicted so", [_right(result, entry) for entry in classes]),
            Column("reliance on one patch", [entry.reliance.mean for entry in classes]),
            Column("spread of the evidence", [entry.concentration.area for entry in classes]),
        ],
        f"{len(result.rows)} images; {READ_FIRST}",
        "classes",
    )


def _right(result: AuditResult, entry: Audited) -> float | None:
    members_N = entry.of.members_N
    labelled = members_N[result.rows.known_N[members_N]]
    return float(result.rows.right_N[labelled].mean()) if len(labelled) else None
