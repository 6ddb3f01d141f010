"""The audit's measurements of each image: a record per image, and all of them as columns.

Shapes: N images, R C rows and columns of the grid of positions, D features.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.errors import CnnvizError
from cnnviz.core.output.record import OPTIONAL, Box, Count, Record, Says, Share, Sides, from_json

UNKNOWN = -1
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Row(Record):
    """The measurements of an image: a line of `images.jsonl`."""

    image: str
    place: Annotated[Count, Says("in the data set")]
    label: Annotated[Count | None, Says("index of its class; null where unknown")]
    predicted: Annotated[Count, Says("index of the predicted class, of which the map is")]
    probability: Share
    max_drop: Annotated[float, Says("the largest value of the map, in the score's units")]
    mean_drop: float
    box: Annotated[Box, Says("of its evidence (the largest drop, or its plateau): y0, x0, y1, x1")]
    reliance: Annotated[
        float, Says("largest drop of the probability over the probability", maximum=1)
    ]
    flips: Annotated[Share, Says("share of positions that change the prediction")]
    covered: Annotated[
        Count, Says("index of the class predicted with the mask nearest to the box's centre")
    ]
    inside: Annotated[
        Share | None,
        Says(
            "share of the positive evidence on the object; null where there is none",
            optional=True,
            null=True,
        ),
    ] = None
    object_share: Annotated[Share | None, OPTIONAL] = None
    hit: Annotated[
        bool | None,
        Says("the map's peak is on the object; null without positive evidence", beside="inside"),
    ] = None
    label_probability: Annotated[
        Share | None, Says("where another class is predicted", optional=True)
    ] = None
    label_max_drop: Annotated[float | None, OPTIONAL] = None
    label_box: Annotated[Box | None, OPTIONAL] = None
    pixels: Annotated[str, Says("digest of the working image", pattern="^[0-9a-f]*$")] = ""
    crop: Annotated[tuple[float, ...], Says("of the file: y0, x0, y1, x1")] = ()
    grid: Annotated[Sides, Says("rows, columns of the map")]
    map: Annotated[str, Says("drops at all positions, float16 as base64")]
    features: Annotated[
        str, Says("what the features lose when the box is occluded, float16 as base64")
    ]

    def __post_init__(self) -> None:
        """Raises a ValueError if the map does not fit the grid, or a number is missing."""
        rows, columns = self.grid
        values = unpacked(self.map)
        if len(values) != rows * columns or not np.isfinite(values).all():
            raise ValueError("its map does not fit its grid")
        if not np.isfinite(unpacked(self.features)).all():
            raise ValueError("its features are not numbers")


def digest(pixels: NDArray[np.float32]) -> str:
    """Identifies a working image."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def packed(values: NDArray[np.floating]) -> str:
    """Numbers as text, rounded to float16."""
    limit = float(np.finfo(np.float16).max)
    return base64.b64encode(values.clip(-limit, limit).astype("<f2").tobytes()).decode("ascii")


def unpacked(text: str) -> NDArray[np.float32]:
    """The numbers in a text made by `packed`."""
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


@dataclass(frozen=True, eq=False)
class Rows:
    """All images as columns, in the order of the data set; the names are those of `Row`.

    `labels_N` has `UNKNOWN`, and numbers have NaN, where something is not known. `of_label_N6`
    holds the label's probability, largest drop and box where another class is predicted.
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
    pixels: tuple[str, ...] = ()
    crops: tuple[tuple[float, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def known_N(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape)
        """Which labels are known."""
        return np.not_equal(self.labels_N, UNKNOWN)

    @property
    def right_N(self) -> NDArray[np.bool_]:  # noqa: N802
        """Which predictions are the label."""
        return np.equal(self.labels_N, self.predicted_N)


def columns(entries: Iterable[Row | Mapping[str, Any]]) -> Rows:
    """The columns of at least one image, from records or lines of `images.jsonl` in any order."""
    records = [entry if isinstance(entry, Row) else from_json(Row, entry) for entry in entries]
    records.sort(key=lambda row: row.place)

    if len({(row.grid, len(row.features)) for row in records}) > 1:
        raise CnnvizError("the images have maps or features of different sizes")

    def column(name: str, kind: type) -> NDArray[Any]:
        return np.array([getattr(row, name) for row in records], kind)

    of_label = [
        [row.label_probability, row.label_max_drop, *(row.label_box or (None,) * 4)]
        for row in records
    ]
    floats = ("probability", "max_drop", "reliance", "flips", "inside", "hit")
    return Rows(
        images=tuple(row.image for row in records),
        places_N=column("place", np.int64),
        labels_N=np.array([UNKNOWN if row.label is None else row.label for row in records]),
        predicted_N=column("predicted", np.int64),
        covered_N=column("covered", np.int64),
        boxes_N4=column("box", np.int64),
        of_label_N6=np.array(of_label, np.float64),
        **{f"{name}_N": column(name, np.float64) for name in floats},
        maps_NRC=np.stack([unpacked(row.map).reshape(row.grid) for row in records]),
        features_ND=np.stack([unpacked(row.features) for row in records]),
        pixels=tuple(row.pixels for row in records),
        crops=tuple(row.crop for row in records),
    )
