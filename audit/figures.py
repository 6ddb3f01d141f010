"""The figures of an audit: a sheet for each class, and an overview of all classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cnnviz.audit.groups import SMALLEST
from cnnviz.audit.options import ALARM
from cnnviz.audit.residual import PARTS, RGB, Added
from cnnviz.audit.results import TESTS, AuditResult, ClassAudit, Group, Shown
from cnnviz.core.choices import percent
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.output.drawing import (
    Column,
    draw_bars,
    image_pixels,
    in_colour,
    to_uint8,
)
from cnnviz.core.output.layout import Cell, board, picture, words
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import SMALL_SIDE, draw_picture, paint_map, scales

TEXT = 223.0
"""Points of the text at the left of a row, and of the pictures of the first row."""
GAP = 8.0
RESIDUALS = {
    "plain": "Residual\nmean image minus the others', stretched",
    "high_passed": "Residual, high-passed\nfine structure alone, stretched",
    "colour": "Residual, colour\nwithout brightness, stretched",
}
Read = Callable[[Sequence[int]], dict[int, WorkingImage]]


def draw_class(entry: ClassAudit, read: Read) -> Figure:
    """Draws a class: where and what its evidence is, its suspicion, and images to look at."""
    bands = next(iter(read([int(entry.members_N[0])]).values())).bands
    strips = list(_strips(entry))
    places = max([6, *(len(shown) for _heading, shown in strips)])
    across = TEXT + places * (SMALL_SIDE + GAP)
    blank = words("", SMALL_SIDE)
    rows: list[list[Cell | None]] = [
        [words(_class_text(entry), across, spans=True)],
        [_evidence(entry, bands), *_residuals(entry, bands, min(places // 3, 3))],
    ]
    for heading, shown in strips:
        images = read([image.row for image in shown])
        patches = [
            picture(
                partial(_draw_patch, images[image.row], image.box),
                (1, 1),
                below=image.label or percent(image.probability),
                width=SMALL_SIDE,
            )
            for image in shown
        ]
        rows.append([words(heading, TEXT), *patches, *[blank] * (places - len(shown))])
    return board(rows, heading=f"{entry.class_} · {_verdict(entry)}", gap=GAP)


def _evidence(entry: ClassAudit, bands: tuple[int, ...]) -> Cell:
    """The mean map over the mean image."""
    mean = to_uint8(in_colour(entry.image_CYX, bands))
    (scale,) = scales([entry.mean_RC], Look(), "mean drop ÷ each image's largest", one_sided=True)
    return picture(
        lambda axes: paint_map(axes, entry.mean_RC, scale, over=mean),
        mean.shape[:2],
        "Evidence\nmean map, over the mean image",
        bar=scale.bar_over,
        width=TEXT,
    )


def _residuals(entry: ClassAudit, bands: tuple[int, ...], columns: int) -> Iterator[Cell | None]:
    """The residuals, each over some columns of patches, and what they do to other classes."""
    kinds = [kind for kind in RESIDUALS if kind != "colour" or len(entry.residual_CYX) == RGB]
    for kind in kinds if entry.residual_CYX.any() else []:
        pixels = in_colour(PARTS[kind](entry.residual_CYX), bands)
        added = entry.residual.kinds.get(kind)
        does = "not tested" if added is None else f"added to other classes' images: {_flips(added)}"
        width = min(TEXT, columns * (SMALL_SIDE + GAP) - GAP)
        shown = picture(_residual(pixels), pixels.shape[:2], RESIDUALS[kind], does, width=width)
        yield from [replace(shown, spans=True), *[None] * (columns - 1)]


def _strips(entry: ClassAudit) -> Iterator[tuple[str, Sequence[Shown]]]:
    """The rows of pictures with their texts."""
    for number, group in enumerate(entry.groups, start=1):
        yield _group_text(group, number), group.typical
    lists = {
        "Atypical evidence: maps\nleast like the rest of the class": entry.elsewhere,
        "Misclassified as this class, most\nconfident first (true class below)": entry.misled,
        "Right for another reason: evidence\npeaks off the object, least inside first": (
            entry.wrong_reason
        ),
    }
    yield from ((heading, shown) for heading, shown in lists.items() if shown)


def _group_text(group: Group, number: int) -> str:
    lines = [f"Group {number}: {group.images} images, {percent(group.share)}"]
    if group.accuracy is not None:
        covered = percent(group.accuracy_covered)
        lines.append(f"right {percent(group.accuracy)}, {covered} with the patch occluded")
    if not group.pastes:
        return "\n".join([*lines, "no images of other classes: no paste test"])
    lines += [
        f"pasted into other classes: {percent(group.carried)} flip",
        f"  to this class (random patches {percent(group.carried_random)})",
        f"occluded: {percent(group.lost)} change (any position {percent(group.lost_random)})",
    ]
    return "\n".join(lines)


def _class_text(entry: ClassAudit) -> str:
    few = f"classes with fewer than {SMALLEST} each"
    name = few if entry.index is None else entry.class_
    facts = [f"{entry.images} images predicted as {name}"]
    if entry.accuracy is not None:
        facts.append(f"accuracy {percent(entry.accuracy)} on labelled images")
    reliance, spread, recoded = entry.reliance, entry.concentration, entry.residual.recoded
    others = "" if reliance.others is None else f"; other classes {reliance.others:.2f}"
    facts.append(f"reliance on one patch {reliance.mean:.2f} (mean{others})")
    if entry.inside is not None:
        facts.append(f"{percent(entry.inside)} of the evidence on the object (mean)")
    if spread.area is None or spread.interval is None:
        facts.append("no evidence: no occluded position lowers the score")
    else:
        low, high = spread.interval
        others = "" if spread.others is None else f"; other classes {percent(spread.others)}"
        facts.append(
            f"evidence spread over {percent(spread.area)} of the image "
            f"(95 %: {percent(low)} to {percent(high)}{others})"
        )
    if recoded is not None:
        facts.append(f"images of other classes stored as JPEG: {_flips(recoded)}")
    return " · ".join(facts)


def _flips(added: Added) -> str:
    """How many images of other classes become the class."""
    untested = "" if added.p is not None else "; too few classes to test"
    became, random = percent(added.became), percent(added.became_random)
    return f"{became} flip to this class (random residuals {random}{untested})"


def _verdict(entry: ClassAudit) -> str:
    if entry.suspicion is None or entry.decisive is None:
        return f"not judged: {entry.not_judged}"
    if entry.suspicion <= ALARM:
        return f"suspicion {entry.suspicion:.2f}: not above the alarm level {ALARM:g}"
    return f"SUSPICIOUS ({entry.suspicion:.2f}, above {ALARM:g}): {TESTS[entry.decisive]}"


def _residual(residual: NDArray[np.float32]) -> Callable[[Axes], None]:
    """Draws a residual (rows, columns, 3) around grey, its contrast stretched."""
    limit = max(float(np.abs(residual).max(initial=0.0)), 1e-12)
    pixels = to_uint8(0.5 + residual / (2 * limit))
    return lambda axes: draw_picture(axes, pixels, (pixels.shape[0], pixels.shape[1]))


def _draw_patch(image: WorkingImage, box: Sequence[int], axes: Axes) -> None:
    """Draws the patch, outlined, with a margin of half its size on each side."""
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
    """Draws classes by suspicion, with precision, reliance and spread."""
    classes = result.ranked
    columns = [
        Column("suspicion", [entry.suspicion for entry in classes], ALARM, "not judged"),
        Column("precision", [entry.accuracy for entry in classes], text=percent),
        Column("reliance on one patch", [entry.reliance.mean for entry in classes]),
        Column("spread of the evidence", [e.concentration.area for e in classes], text=percent),
        Column("flip to it with its residual", [e.residual.became for e in classes], text=percent),
    ]
    return draw_bars(
        [f"{entry.class_} ({entry.images})" for entry in classes],
        columns,
        f"{result.images} images, grouped by predicted class; {result.verdict}",
        "classes",
    )


preview = draw_overview  # the figure that a notebook shows
