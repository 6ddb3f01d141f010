"""What is known of each image once it was studied: a line of JSON each, and all as columns.

Shapes: N images, R C rows and columns of the grid of positions, D features.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

UNKNOWN = -1
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class Row(TypedDict):
    """One image.

    Of the predicted class: its probability, the largest and the mean drop of the map in the score's
    units, the box (y0, x0, y1, x1) of the largest, reliance, the share of positions that change
    the prediction, and the class that it becomes with the box covered. Of the label, where it is
    another class, likewise. `map` holds the drops at all positions and `features` what the
    network's features of the image lose when the box is covered, float16 as base64. `pixels` is a
    digest of the working image, `crop` where it was cut from the file (y0, x0, y1, x1).
    """

    image: str
    place: int
    label: int | None
    predicted: int
    probability: float
    max_drop: float
    mean_drop: float
    box: list[int]
    reliance: float
    flips: float
    covered: int
    inside: NotRequired[float | None]
    object_share: NotRequired[float]
    hit: NotRequired[bool]
    label_probability: NotRequired[float]
    label_max_drop: NotRequired[float]
    label_box: NotRequired[list[int]]
    pixels: str
    crop: list[float]
    grid: list[int]
    map: str
    features: str


def digest(pixels: NDArray[np.float32]) -> str:
    """What tells one working image from another."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def packed(values: NDArray[np.floating]) -> str:
    """Numbers as text, rounded to float16."""
    limit = float(np.finfo(np.float16).max)
    return base64.b64encode(values.clip(-limit, limit).astype("<f2").tobytes()).decode("ascii")


def unpacked(text: str) -> NDArray[np.float32]:
    """What `packed` has made."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


@dataclass(frozen=True, eq=False)
class Rows:
    """All images, as columns in the order of the data set.

    Attributes:
        images: their names.
        places_N: where each stands in the data set.
        labels_N: its class; `UNKNOWN` where that is not known.
        predicted_N: the predicted class.
        probability_N: its probability.
        max_drop_N: the largest drop of its map, in the score's units.
        reliance_N: largest drop of the probability over the probability.
        flips_N: share of positions that change the prediction.
        covered_N: what the prediction becomes with the box covered.
        boxes_N4: of the largest drop, (y0, x0, y1, x1).
        of_label_N6: where the label is another class, its probability, its map's largest drop and
            the box of that; NaN where it is not, or not known.
        inside_N: share of the positive evidence on the object; NaN where that is not known.
        hit_N: 1 where the map's peak is on the object, 0 where not; NaN where that is not known.
        maps_NRC: the drops at all positions.
        features_ND: what the features of the image lose when the box is covered.
    """

    images: tuple[str, ...]
    places_N: Whole
    labels_N: Whole
    predicted_N: Whole
    probability_N: Floats
    max_drop_N: Floats
    reliance_N: Floats
    flips_N: Floats
    covered_N: Whole
    boxes_N4: Whole
    of_label_N6: Floats
    inside_N: Floats
    hit_N: Floats
    maps_NRC: NDArray[np.float32]
    features_ND: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known_N(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape)
        """Which labels are known."""
        return np.not_equal(self.labels_N, UNKNOWN)

    @property
    def right_N(self) -> NDArray[np.bool_]:  # noqa: N802
        """Where the prediction is the label."""
        return np.equal(self.labels_N, self.predicted_N)


def _of_label(entry: Mapping[str, Any]) -> list[float]:
    if "label_box" not in entry:
        return [np.nan] * 6
    return [entry["label_probability"], entry["label_max_drop"], *entry["label_box"]]


def columns(entries: Iterable[Mapping[str, Any]]) -> Rows:
    """Entries (`Row`), at least one, in any order."""
    listed = sorted(entries, key=lambda entry: int(entry["place"]))

    def whole(name: str) -> Whole:
        return np.array([entry[name] for entry in listed], np.int64)

    def real(name: str) -> Floats:
        found = [entry.get(name) for entry in listed]
        return np.array([np.nan if value is None else value for value in found], np.float64)

    labels = [UNKNOWN if entry["label"] is None else entry["label"] for entry in listed]
    maps = [unpacked(entry["map"]).reshape(entry["grid"]) for entry in listed]
    return Rows(
        images=tuple(str(entry["image"]) for entry in listed),
        places_N=whole("place"),
        labels_N=np.array(labels, np.int64),
        predicted_N=whole("predicted"),
        probability_N=real("probability"),
        max_drop_N=real("max_drop"),
        reliance_N=real("reliance"),
        flips_N=real("flips"),
        covered_N=whole("covered"),
        boxes_N4=whole("box"),
        of_label_N6=np.array([_of_label(entry) for entry in listed], np.float64),
        inside_N=real("inside"),
        hit_N=real("hit"),
        maps_NRC=np.stack(maps),
        features_ND=np.stack([unpacked(entry["features"]) for entry in listed]),
    )
