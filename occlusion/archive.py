"""`scores.npz`: a measurement on disk, enough to draw everything again without the network.

Arrays: `logits` (P, K) and `base_logits` (K,) float32; `boxes` (P, 4) int64, y0 x0 y1 x1; `maps`
(panels, H, W) float32 with `map_target` and `map_mask` telling the class and the mask of each;
`score` and `upsample` (what they show); where a gradient was traced, `gradients` (targets, H, W)
float32, `gradient_target` and `gradient_name`; if regions were asked for,
`sufficient_T` and `losing_T` (rows, columns of cells) bool for class index T;
`labels` (K,); `masks` (masks, 2) and `grids` (masks, 2): rows and columns of each mask and of its
grid of positions; `stride` and `border`; `head`, `probabilities_given` and `threshold` (what the
numbers mean); of a dense output, `pixels` (places, h, w) that were read, `shares` (K,) of them and
`place`; with a layer, `activation` (P,), `activation_base`,
`activation_channel` and `activation_layer`. No array holds objects: nothing is ever unpickled.
"""

from pathlib import Path

import numpy as np
import torch

from cnnviz.core.data.images import WorkingImage, read_rgb
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE, exists, open_arrays
from cnnviz.core.models.heads import Head, Kind, Reading
from cnnviz.occlusion.agreement import Gradient
from cnnviz.occlusion.choices import Border, Score, Upsample
from cnnviz.occlusion.experiment import Activation, Measurement, OcclusionResult
from cnnviz.occlusion.masks import Grid

SCORES = "scores.npz"
INPUT = "input.png"
CROP = "crop.png"


def to_arrays(result: OcclusionResult) -> dict[str, np.ndarray]:
    """The arrays that `scores.npz` holds."""
    measured = result.measured
    grids = measured.grids
    arrays = {
        "logits": measured.logits_PK.numpy(),
        "base_logits": measured.base_logits_K.numpy(),
        "boxes": torch.cat([grid.boxes_P4 for grid in grids]).numpy(),
        "maps": torch.stack([panel.map_HW for panel in result.panels]).numpy(),
        "map_target": np.array([panel.target for panel in result.panels]),
        "map_mask": np.array([panel.grid.mask for panel in result.panels]),
        "labels": np.array(measured.labels),
        "masks": np.array([grid.mask for grid in grids]),
        "grids": np.array([grid.shape for grid in grids]),
        "stride": np.array(grids[0].stride),
        "border": np.array(grids[0].border.value),
        "head": np.array(measured.head.kind.value),
        "probabilities_given": np.array(measured.head.probabilities_given),
        "threshold": np.array(measured.head.threshold),
        "score": np.array(result.score.value),
        "upsample": np.array(result.upsample.value),
    }
    if measured.gradient:
        maps = measured.gradient.maps
        arrays |= {
            "gradients": torch.stack(list(maps.values())).numpy(),
            "gradient_target": np.array(list(maps)),
            "gradient_name": np.array(measured.gradient.name),
        }
    if measured.reading:
        arrays |= {
            "pixels": measured.reading.pixels_Rhw.numpy(),
            "shares": measured.reading.shares_K.numpy(),
            "place": np.array(measured.place),
        }
    if result.sufficiencies:
        for found in result.sufficiencies:
            regions = {"sufficient": found.sufficient, "losing": found.losing}
            for name, region in regions.items():
                if region is not None:
                    arrays[f"{name}_{found.target}"] = region.cells_rc.numpy()
    if measured.activation:
        arrays |= {
            "activation": measured.activation.sums_P.numpy(),
            "activation_base": np.array(measured.activation.base),
            "activation_channel": np.array(measured.activation.channel),
            "activation_layer": np.array(measured.activation.layer),
        }
    return arrays


def load(folder: Path) -> Measurement:
    """Reads back what a run wrote about one image.

    Args:
        folder: holds `scores.npz` and `input.png`.

    Raises:
        CnnvizError: a file is missing, damaged or not ours.
    """
    path = folder / SCORES
    try:
        for name in (SCORES, INPUT):
            if not exists(folder / name):
                raise CnnvizError(
                    f"no {name} in {folder}; cnnviz render takes the folder that cnnviz occlude "
                    "wrote for one image (without --no-scores)"
                )
        with open_arrays(path) as file:
            arrays = {name: file[name] for name in file if name != "maps"}
        pixels = np.asarray(read_rgb(folder / INPUT))
        return _measurement(arrays, pixels, str(folder))
    except (*DAMAGE, ArithmeticError) as error:
        raise CnnvizError(
            f"{path} cannot be read: it is damaged or not cnnviz's ({one_line(error)})"
        ) from error


def load_crop(folder: Path) -> np.ndarray | None:
    """The crop that the run drew its maps on, uint8 (h, w, 3); None if it used the input itself.

    Raises:
        CnnvizError: the file is damaged.
    """
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
    stride, border = int(arrays["stride"]), Border(str(arrays["border"]))
    shapes = [(int(rows), int(columns)) for rows, columns in arrays["grids"]]
    masks = [(int(rows), int(columns)) for rows, columns in arrays["masks"]]
    boxes = torch.split(
        torch.from_numpy(arrays["boxes"]), [rows * columns for rows, columns in shapes]
    )
    grids = tuple(
        Grid(mask, stride, border, shape, part)
        for mask, shape, part in zip(masks, shapes, boxes, strict=True)
    )
    activation = None
    if "activation" in arrays:
        activation = Activation(
            str(arrays["activation_layer"]),
            int(arrays["activation_channel"]),
            float(arrays["activation_base"]),
            torch.from_numpy(arrays["activation"]),
        )
    return Measurement(
        image,
        tuple(str(label) for label in arrays["labels"]),
        torch.from_numpy(arrays["base_logits"]),
        torch.from_numpy(arrays["logits"]),
        grids,
        activation,
        _head(arrays),
        _reading(arrays),
        str(arrays.get("place", "")),
        Score(str(arrays.get("score", Score.PROBABILITY.value))),
        Upsample(str(arrays.get("upsample", Upsample.COVERAGE.value))),
        _gradient(arrays),
    )


def _gradient(arrays: dict[str, np.ndarray]) -> Gradient | None:
    if "gradients" not in arrays:
        return None
    targets = arrays["gradient_target"].tolist()
    maps = torch.from_numpy(arrays["gradients"]).unbind()
    return Gradient(str(arrays["gradient_name"]), dict(zip(targets, maps, strict=True)))


def _reading(arrays: dict[str, np.ndarray]) -> Reading | None:
    if "pixels" not in arrays:
        return None
    pixels_Rhw, shares_K = arrays["pixels"], arrays["shares"]
    places = {1, len(arrays["labels"])}
    fits = pixels_Rhw.ndim == 3 and len(pixels_Rhw) in places and pixels_Rhw.dtype == bool
    if not fits or shares_K.shape != (len(arrays["labels"]),):
        raise ValueError("its arrays do not fit each other")
    return Reading(torch.from_numpy(pixels_Rhw), torch.from_numpy(shares_K))


def _head(arrays: dict[str, np.ndarray]) -> Head:
    """What the numbers mean; archives from before that was written have softmax classes."""
    if "head" not in arrays:
        return Head()
    given = bool(arrays["probabilities_given"])
    return Head(Kind(str(arrays["head"])), given, float(arrays["threshold"]))


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
        "stride": ("i", ()),
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
