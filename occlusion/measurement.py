"""What an occlusion experiment measures, and `scores.npz`, which keeps it.

The `Measurement` holds all that needed the network: the scores of every class at every position.
`scores.npz` keeps it, enough to draw everything again without the network (`load`). Its arrays:
`logits` (P, K) and `base_logits` (K,) float32; `boxes` (P, 4) int64, y0 x0 y1 x1; `maps`
(panels, H, W) float32 with `map_target` and `map_mask`, the class and the mask of each; `score` and
`upsample` (what they show); with a gradient, `gradients` (targets, H, W) float32,
`gradient_target` and `gradient_name`; with `--sufficient`, `sufficient_T` and `losing_T` (rows,
columns of cells) bool for class index T; `labels` (K,); `masks` (masks, 2) and `grids` (masks, 2):
rows and columns of each mask and of its grid of positions; `stride` (its rows and columns where
they differ) and `border`; `head`,
`probabilities_given`, `threshold` and `word` (what the outputs mean); of a dense output, `pixels`
(places, h, w) that were read, `shares` (K,) of them and `place`; of a detector, `box_corners`
(B, 4), `box_scores` (B,) and `box_names` (B,); with a layer, `activation` (P,),
`activation_base`, `activation_channel` and `activation_layer`. No array holds objects: nothing is
ever unpickled.
Shapes: P positions, K classes, H W rows and columns of the working image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage, read_rgb
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE, exists, open_arrays
from cnnviz.core.models.boxes import BoxReading
from cnnviz.core.models.heads import VALUE, WORDS, Head, Kind
from cnnviz.core.models.targets import Reading, RegionReading
from cnnviz.core.output.record import ABSENT, Count, Hidden, Record
from cnnviz.occlusion.masks import Grid
from cnnviz.occlusion.options import Border, Score, Upsample

SCORES = "scores.npz"
INPUT = "input.png"
CROP = "crop.png"


@dataclass(frozen=True, eq=False)
class Gradient:
    """Maps (H, W) of a gradient method (`name`, with its layer) by class; positive is evidence."""

    name: str
    maps: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation(Record):
    """The channel of a layer that is strongest on the original image: the sum of its map.

    `sums_P` are the sums at each position, float32.
    """

    layer: str
    channel: Count
    sum: float
    sum_min: float
    sum_max: float
    sums_P: Hidden[Tensor] = ABSENT

    @classmethod
    def of(cls, layer: str, channel: int, original: float, sums_P: Tensor) -> "Activation":
        """Describes the sums of a channel."""
        low, high = (float(end) for end in sums_P.aminmax())
        return cls(
            layer=layer,
            channel=channel,
            sum=original,
            sum_min=low,
            sum_max=high,
            sums_P=sums_P,
        )


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that needed the network, on the CPU.

    Attributes:
        image: the working image.
        labels: class names, one per class.
        base_logits_K: float32 logits of the original image.
        logits_PK: float32 logits at each position, grid after grid.
        grids: one per mask, in the order of the positions.
        activation: with `--layer`, its strongest channel.
        head: what the outputs mean.
        reading: what was frozen of the image: the pixels that were read, the boxes.
        place: of a dense output, the place that the user named; empty for each class's own pixels.
        score: the default score to compare.
        upsample: the default way from positions to pixels.
        gradient: a gradient method's maps of the classes, if there are any.
    """

    image: WorkingImage
    labels: tuple[str, ...]
    base_logits_K: Tensor
    logits_PK: Tensor
    grids: tuple[Grid, ...]
    activation: Activation | None = None
    head: Head = field(default_factory=Head)
    reading: Reading | None = None
    place: str = ""
    score: Score = Score.PROBABILITY
    upsample: Upsample = Upsample.COVERAGE
    gradient: Gradient | None = None

    @property
    def ranking_K(self) -> Tensor:  # noqa: N802 (a shape)
        """Larger for a class that the original image shows more of: by score, or by pixels."""
        if self.reading is None:
            return self.base_logits_K
        return self.reading.ranking(self.labels, self.base_logits_K)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the working image."""
        height, width = self.image.pixels.shape[1:]
        return int(height), int(width)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What `scores.npz` keeps of it."""
        grids, head, reading = self.grids, self.head, self.reading
        arrays: dict[str, Any] = {
            "logits": self.logits_PK,
            "base_logits": self.base_logits_K,
            "boxes": torch.cat([grid.boxes_P4 for grid in grids]),
            "labels": self.labels,
            "masks": [grid.mask for grid in grids],
            "grids": [grid.shape for grid in grids],
            "stride": grids[0].stride,
            "border": grids[0].border.value,
            "head": head.kind.value,
            "probabilities_given": head.probabilities_given,
            "threshold": head.threshold,
            "word": head.word,
            "score": self.score.value,
            "upsample": self.upsample.value,
        }
        if self.gradient:
            arrays |= {
                "gradients": torch.stack(list(self.gradient.maps.values())),
                "gradient_target": list(self.gradient.maps),
                "gradient_name": self.gradient.name,
            }
        if isinstance(reading, RegionReading):
            arrays |= {
                "pixels": reading.pixels_Rhw,
                "shares": reading.shares_K,
                "place": self.place,
            }
        if isinstance(reading, BoxReading):
            arrays |= {
                "box_corners": reading.corners_B4,
                "box_scores": reading.scores_B,
                "box_names": reading.names,
            }
        if self.activation:
            arrays |= {
                "activation": self.activation.sums_P,
                "activation_base": self.activation.sum,
                "activation_channel": self.activation.channel,
                "activation_layer": self.activation.layer,
            }
        return {name: np.asarray(values) for name, values in arrays.items()}


def load(folder: Path) -> Measurement:
    """Reads the measurement of one image, from the folder that `occlude` wrote for it.

    Or from a file of scores, `reference.npz`, and the image `reference.png` in its folder.

    Raises:
        CnnvizError: `scores.npz` or `input.png` is missing, damaged or not of cnnviz.
    """
    path, picture = folder / SCORES, folder / INPUT
    if folder.suffix == path.suffix and folder.is_file():
        path, picture = folder, folder.with_suffix(".png")
    try:
        for place in (path, picture):
            if not exists(place):
                raise CnnvizError(
                    f"no {place.name} in {place.parent}; expected the folder that cnnviz occlude "
                    "wrote for one image (without --no-scores)"
                )
        with open_arrays(path) as file:
            arrays = {name: file[name] for name in file if name != "maps"}
        pixels = np.asarray(read_rgb(picture))
        return _measurement(arrays, pixels, str(folder))
    except (*DAMAGE, ArithmeticError) as error:
        raise CnnvizError(
            f"{path} cannot be read: it is damaged or not a file of cnnviz ({one_line(error)})"
        ) from error


def load_crop(folder: Path) -> np.ndarray | None:
    """The crop that the run drew its maps on, uint8 (h, w, 3); None if it used the input itself."""
    path = folder / CROP
    return np.asarray(read_rgb(path)) if path.exists() else None


def _measurement(arrays: dict[str, np.ndarray], pixels: np.ndarray, name: str) -> Measurement:
    height, width = pixels.shape[:2]
    image = WorkingImage(
        path=name,
        pixels=torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255,
        box_original=(0.0, 0.0, float(height), float(width)),
        original_size=(height, width),
    )
    _check(arrays, (height, width))
    stride, border = _stride(arrays["stride"]), Border(str(arrays["border"]))
    shapes = [(int(rows), int(columns)) for rows, columns in arrays["grids"]]
    masks = [(int(rows), int(columns)) for rows, columns in arrays["masks"]]
    counts = [rows * columns for rows, columns in shapes]
    boxes = torch.split(torch.from_numpy(arrays["boxes"]), counts)
    activation = gradient = None
    if "activation" in arrays:
        activation = Activation.of(
            str(arrays["activation_layer"]),
            int(arrays["activation_channel"]),
            float(arrays["activation_base"]),
            torch.from_numpy(arrays["activation"]),
        )
    if "gradients" in arrays:
        maps = zip(
            arrays["gradient_target"].tolist(), torch.from_numpy(arrays["gradients"]), strict=True
        )
        gradient = Gradient(str(arrays["gradient_name"]), dict(maps))
    return Measurement(
        image=image,
        labels=tuple(str(label) for label in arrays["labels"]),
        base_logits_K=torch.from_numpy(arrays["base_logits"]),
        logits_PK=torch.from_numpy(arrays["logits"]),
        grids=tuple(
            Grid(mask, stride, border, shape, part)
            for mask, shape, part in zip(masks, shapes, boxes, strict=True)
        ),
        activation=activation,
        head=_head(arrays),
        reading=_reading(arrays),
        place=str(arrays.get("place", "")),
        score=Score(str(arrays.get("score", Score.PROBABILITY.value))),
        upsample=Upsample(str(arrays.get("upsample", Upsample.COVERAGE.value))),
        gradient=gradient,
    )


def _stride(stride: np.ndarray) -> int | tuple[int, int]:
    if stride.ndim == 0:
        return int(stride)
    rows, columns = stride.tolist()
    return rows, columns


def _reading(arrays: dict[str, np.ndarray]) -> Reading | None:
    if "box_corners" in arrays:
        return _boxes(arrays)
    if "pixels" not in arrays:
        return None
    pixels_Rhw, shares_K = arrays["pixels"], arrays["shares"]
    places = {1, len(arrays["labels"])}
    fits = pixels_Rhw.ndim == 3 and len(pixels_Rhw) in places and pixels_Rhw.dtype == bool
    if not fits or shares_K.shape != (len(arrays["labels"]),):
        raise ValueError("its arrays do not fit each other")
    return RegionReading(torch.from_numpy(pixels_Rhw), torch.from_numpy(shares_K))


def _boxes(arrays: dict[str, np.ndarray]) -> BoxReading:
    corners, scores, names = (arrays[f"box_{key}"] for key in ("corners", "scores", "names"))
    labels, count = arrays["labels"].tolist(), len(names)
    reading = BoxReading(
        torch.from_numpy(corners),
        torch.from_numpy(scores),
        tuple(names.tolist()),
        tuple(label.removeprefix("another ") for label in labels[2 * count :]),
        (int(arrays["boxes"][:, 2].max()), int(arrays["boxes"][:, 3].max())),
    )
    shapes = corners.shape == (count, 4) and scores.shape == (count,) and names.dtype.kind == "U"
    sound = np.isfinite(corners).all() and ((scores >= 0) & (scores <= 1)).all()
    if not (shapes and sound and reading.appearing and reading.labels == tuple(labels)):
        raise ValueError("its boxes do not fit each other")
    return reading


def _head(arrays: dict[str, np.ndarray]) -> Head:
    """What the outputs mean; archives from before that was written have softmax classes."""
    if "head" not in arrays:
        return Head()
    given = bool(arrays["probabilities_given"])
    word = str(arrays.get("word", VALUE))
    if word not in WORDS:
        raise ValueError(f"unknown numbers '{word[:40]}'")
    threshold = float(arrays["threshold"])
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}")
    return Head(Kind(str(arrays["head"])), given, threshold, word)


def _check(arrays: dict[str, np.ndarray], size: tuple[int, int]) -> None:
    """Raises ValueError where the arrays do not belong together."""
    (positions, classes), masks = arrays["logits"].shape, len(arrays["masks"])
    shapes = {
        "logits": ("f", (positions, classes)),
        "base_logits": ("f", (classes,)),
        "boxes": ("i", (positions, 4)),
        "labels": ("U", (classes,)),
        "masks": ("i", (masks, 2)),
        "grids": ("i", (masks, 2)),
        "stride": ("i", (2,) if arrays["stride"].ndim else ()),
        "border": ("U", ()),
    }
    if "activation" in arrays:
        shapes |= {"activation": ("f", (positions,)), "activation_base": ("f", ())}
    if "gradients" in arrays:
        targets = len(arrays["gradient_target"])
        shapes |= {"gradients": ("f", (targets, *size)), "gradient_target": ("i", (targets,))}
    for name, (kind, shape) in shapes.items():
        if arrays[name].dtype.kind != kind or arrays[name].shape != shape:
            raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
        if kind == "f" and not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite")
        if name in ("masks", "grids", "stride") and not (arrays[name] > 0).all():
            raise ValueError(f"{name} is not positive")
    low, high = arrays["boxes"][:, :2], arrays["boxes"][:, 2:]
    inside = (low >= 0).all() and (low < high).all() and (high <= np.array(size)).all()
    inside = inside and (arrays["masks"] <= np.array(size)).all()
    counts = [int(rows) * int(columns) for rows, columns in arrays["grids"]]
    if not (positions and classes and inside and sum(counts) == positions):
        raise ValueError("its arrays do not fit each other")
