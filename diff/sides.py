"""What two runs are compared by, whatever command made them: plain columns, one side each.

A side has what its command found out and None for the rest. Images are known by name, classes too:
two networks may number them differently.
Shapes: N images, P positions of all masks one after the other, F filters, D features or weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.errors import UsageError

Floats = NDArray[np.float64]
SHOWN = 60
"""Letters of a value that a message shows."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What the network said of each image.

    Attributes:
        images: their names.
        labels: true classes by name; empty where they are not known.
        predicted: predicted classes by name.
        probability_N: of those; NaN where it is not known.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probability_N: Floats

    def take(self, rows: NDArray[np.int64]) -> "Answers":
        """Some images, in that order."""
        images, labels, predicted = (
            tuple(column[row] for row in rows)
            for column in (self.images, self.labels, self.predicted)
        )
        return Answers(images, labels, predicted, self.probability_N[rows])


@dataclass(frozen=True, eq=False)
class Evidence:
    """The map of each image's own prediction.

    Attributes:
        maps_NP: the drops at all positions.
        parts: how many positions each mask has.
        reliance_N: largest drop of the probability over the probability; NaN where it has none.
        inside_N: share of the positive evidence on the object; NaN where that is not known.
        pixels: a digest of each working image.
    """

    maps_NP: NDArray[np.float32]
    parts: tuple[int, ...]
    reliance_N: Floats
    inside_N: Floats
    pixels: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> "Evidence":
        """Some images, in that order."""
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
        strength_F: norm of the kernel, share of images it fires on, or what its loss costs.
        dead_F: which do nothing.
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
        question: what a comparison wants the same on both sides, by its name for messages.
        answers: one an image.
        evidence: likewise.
        features_ND: likewise.
        layers: by name.
        failed: images that could not be studied.
    """

    name: str
    question: Mapping[str, object]
    answers: Answers | None = None
    evidence: Evidence | None = None
    features_ND: NDArray[np.float32] | None = None
    layers: Mapping[str, Layer] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    def take(self, rows: NDArray[np.int64]) -> "Side":
        """Some images, in that order."""
        return replace(
            self,
            answers=None if self.answers is None else self.answers.take(rows),
            evidence=None if self.evidence is None else self.evidence.take(rows),
            features_ND=None if self.features_ND is None else self.features_ND[rows],
        )


def aligned(a: Side, b: Side) -> tuple[Side, Side, tuple[str, ...]]:
    """Both sides with the same images in the same order, and the images that one side lacks.

    Raises:
        UsageError: they cannot be compared; it says in what they differ.
    """
    names = list(dict.fromkeys([*a.question, *b.question]))
    differing = [
        f"{name} ({_short(a.question.get(name))} and {_short(b.question.get(name))})"
        for name in names
        if a.question.get(name) != b.question.get(name)
    ]
    if differing:
        raise UsageError(f"{a.name} and {b.name} differ in {', '.join(differing)}")
    if a.answers is None or b.answers is None:
        return a, b, ()
    places = [
        {image: row for row, image in enumerate(own.images)} for own in (a.answers, b.answers)
    ]
    for own, other, others in ((a, b, places[1]), (b, a, places[0])):
        assert own.answers is not None  # noqa: S101 (told to mypy)
        alone = [i for i in own.answers.images if i not in others and i not in other.failed]
        if alone:
            more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
            told = f"'{alone[0]}'{more} is in {own.name} alone"
            raise UsageError(f"{a.name} and {b.name} are of other data: {told}")
    common = [image for image in a.answers.images if image in places[1]]
    lost = tuple(sorted({*places[0], *places[1]} - set(common)))
    if not common:
        raise UsageError(f"{a.name} and {b.name} have no image in common that both could study")
    sides = [
        own.take(np.array([place[image] for image in common], np.int64))
        for own, place in zip((a, b), places, strict=True)
    ]
    _check_pictures(*sides)
    return sides[0], sides[1], lost


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _check_pictures(a: Side, b: Side) -> None:
    """Raises UsageError where an image or its label is another one on the other side."""
    assert a.answers is not None and b.answers is not None  # noqa: S101, PT018 (told to mypy)
    pairs = zip(a.answers.images, a.answers.labels, b.answers.labels, strict=True)
    for image, own, other in pairs:
        if own != other:
            raise UsageError(
                f"{a.name} and {b.name} are of other data: '{image}' is labelled "
                f"'{own}' in one and '{other}' in the other"
            )
    if a.evidence is None or b.evidence is None:
        return
    for image, own, other in zip(
        a.answers.images, a.evidence.pixels, b.evidence.pixels, strict=True
    ):
        if own != other:
            raise UsageError(
                f"the networks of {a.name} and {b.name} were shown other pixels of '{image}': "
                "the file has changed, or they resize and crop in other ways (--size)"
            )
