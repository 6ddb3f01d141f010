"""The columns that two runs of any command are compared by, one side each.

A side has the columns that its command measures and None for the rest. Images and classes are
identified by name: two networks may number them differently.
Shapes: N images, P positions of all masks one after the other, F filters, D features or weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.errors import UsageError

Floats = NDArray[np.float64]
SHOWN = 60
"""Maximum length of a value in a message."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The network's predictions.

    Attributes:
        images: names of the images.
        labels: names of the true classes; empty where unknown.
        predicted: names of the predicted classes.
        probability_N: of those; NaN where unknown.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probability_N: Floats

    def take(self, rows: NDArray[np.int64]) -> "Answers":
        """Selects images by row."""
        images, labels, predicted = (
            tuple(column[row] for row in rows)
            for column in (self.images, self.labels, self.predicted)
        )
        return Answers(images, labels, predicted, self.probability_N[rows])


@dataclass(frozen=True, eq=False)
class Evidence:
    """The map of each image's predicted class.

    Attributes:
        maps_NP: the drops at all positions.
        parts: number of positions of each mask.
        reliance_N: largest drop of the probability over the probability; NaN where unknown.
        inside_N: share of the positive evidence on the object; NaN where unknown.
        pixels: a digest of each working image.
    """

    maps_NP: NDArray[np.float32]
    parts: tuple[int, ...]
    reliance_N: Floats
    inside_N: Floats
    pixels: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> "Evidence":
        """Selects images by row."""
        return replace(
            self,
            maps_NP=self.maps_NP[rows],
            reliance_N=self.reliance_N[rows],
            inside_N=self.inside_N[rows],
            pixels=tuple(self.pixels[row] for row in rows),
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """The filters of a layer.

    Attributes:
        filters: their numbers.
        strength_F: norm of the kernel, share of images it is active on, or harm of its removal.
        dead_F: whether it does nothing.
        kernels_FD: their weights.
        images: the images of each filter's strongest patches.
    """

    filters: tuple[int, ...]
    strength_F: Floats
    dead_F: NDArray[np.bool_]
    kernels_FD: NDArray[np.float32] | None = None
    images: tuple[frozenset[str], ...] | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One run.

    Attributes:
        name: its folder.
        question: settings that must be the same on both sides, by name.
        answers: predictions of the images.
        evidence: maps of the images.
        features_ND: features of the images.
        layers: by name.
        failed: images that failed.
    """

    name: str
    question: Mapping[str, object]
    answers: Answers | None = None
    evidence: Evidence | None = None
    features_ND: NDArray[np.float32] | None = None
    layers: Mapping[str, Layer] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    def take(self, rows: NDArray[np.int64]) -> "Side":
        """Selects images by row."""
        return replace(
            self,
            answers=None if self.answers is None else self.answers.take(rows),
            evidence=None if self.evidence is None else self.evidence.take(rows),
            features_ND=None if self.features_ND is None else self.features_ND[rows],
        )


def aligned(a: Side, b: Side) -> tuple[Side, Side, tuple[str, ...]]:
    """Both sides with the same images in the same order, and the images that one side lacks."""
    differing = [
        f"{name} ({_short(a.question.get(name))} and {_short(b.question.get(name))})"
        for name in dict.fromkeys([*a.question, *b.question])
        if a.question.get(name) != b.question.get(name)
    ]
    if differing:
        raise UsageError(f"{a.name} and {b.name} differ in {', '.join(differing)}")
    if a.answers is None or b.answers is None:
        return a, b, ()
    rows_a, rows_b = ({i: row for row, i in enumerate(x.images)} for x in (a.answers, b.answers))
    for side, rows, other, others in ((a, rows_a, b, rows_b), (b, rows_b, a, rows_a)):
        alone = [image for image in rows if image not in others and image not in other.failed]
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise UsageError(
                f"{a.name} and {b.name} are of other data: only {side.name} has '{alone[0]}'{more}"
            )
    common = [image for image in rows_a if image in rows_b]
    if not common:
        raise UsageError(f"no image was processed in both {a.name} and {b.name}")
    a, b = (
        side.take(np.array([rows[image] for image in common], np.int64))
        for side, rows in ((a, rows_a), (b, rows_b))
    )
    _check_images(a, b)
    return a, b, tuple(sorted({*rows_a, *rows_b} - set(common)))


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _check_images(a: Side, b: Side) -> None:
    """Raises UsageError where an image has another label or other pixels on the other side."""
    if a.answers is None or b.answers is None:
        return
    pairs = zip(a.answers.images, a.answers.labels, b.answers.labels, strict=True)
    for image, label, other in pairs:
        if label != other:
            raise UsageError(
                f"{a.name} and {b.name} are of other data: '{image}' is labelled "
                f"'{label}' in one and '{other}' in the other"
            )
    if a.evidence is None or b.evidence is None:
        return
    for image, digest, other in zip(
        a.answers.images, a.evidence.pixels, b.evidence.pixels, strict=True
    ):
        if digest != other:
            raise UsageError(
                f"the networks of {a.name} and {b.name} received other pixels of '{image}': "
                "the file has changed, or they resize and crop in other ways (--size)"
            )
