"""Boxes of a detector as targets.

A detector returns boxes for each image, each with a class and a score. The number of a box is

    max over the detections i of its class of IoU(box, i) · score(i)

after D-RISE (Petsiuk et al. 2021, "Black-box Explanation of Object Detectors via Saliency Maps"),
whose similarity of classes is 1 or 0 here. torchvision's detectors return all of their detections
for it, without score threshold, non-maximum suppression and limit, so that the number changes
smoothly; which boxes are found is decided by their suppression and the user's threshold.

A row has, of B boxes found on the original image, B numbers as above; B scores of the box found in
the same place (0: it vanished); and, per class, the highest score of a box found elsewhere (0:
none appeared).

Shapes: n detections of one image, B boxes, K numbers of a row, H W rows and columns of the image.
Corners are x0, y0, x1, y1 in pixels of the working image.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.choices import percent, whole_number
from cnnviz.core.errors import CnnvizError
from cnnviz.core.lazy import torchvision
from cnnviz.core.models.heads import Head, share_text
from cnnviz.core.models.labels import normalised_name
from cnnviz.core.models.preprocess import Preprocess, adjust
from cnnviz.core.models.targets import Reading, Target

SAME = 0.5
"""IoU from which two boxes of a class are in the same place."""
INSIDE = 0.9
"""Share of a box inside the image below which a note says that it reaches beyond it."""
ALL = "all"
MOST = 100
"""Boxes of an image that are explained in a run, and drawn by `detect`."""
_KEYS = ("boxes", "scores", "labels")
_LIMITS = ("score_thresh", "nms_thresh", "detections_per_img")
_UNUSED = tuple(f"{task}_{part}" for task in ("mask", "keypoint") for part in ("roi_pool", "head"))
_SHOWN = 12
_log = logging.getLogger("cnnviz")


@dataclass(frozen=True)
class Detections:
    """What a detector returns for one image, each box with its class."""

    corners_n4: Tensor
    scores_n: Tensor
    classes_n: Tensor

    def of(self, picked: Tensor) -> "Detections":
        """Some of them."""
        return Detections(self.corners_n4[picked], self.scores_n[picked], self.classes_n[picked])

    def of_classes(self, classes_B: Tensor) -> Tensor:
        """(B, n) the scores for classes; 0 for another."""
        return torch.where(classes_B[:, None] == self.classes_n, self.scores_n, 0.0)


@dataclass(frozen=True)
class Candidates(Detections):
    """Boxes each with scores of all classes; its class is the one with the highest score."""

    scores_nK: Tensor

    def of_classes(self, classes_B: Tensor) -> Tensor:
        """(B, n) the scores for classes."""
        return self.scores_nK.T[classes_B]


def detections(raw: object) -> list[Detections] | None:
    """A detector's output, image by image; None if it is not one: a list of dicts as torchvision's.

    The dicts have `boxes` (n, 4), `scores` (n,) and `labels` (n,), or, without labels, scores
    (n, K) of all classes.
    """
    if not isinstance(raw, list | tuple) or not raw:
        return None
    results = [result for entry in raw if (result := _of_image(entry)) is not None]
    return results if len(results) == len(raw) else None


def _of_image(entry: object) -> Detections | None:
    corners, scores, classes = (
        entry.get(key) if isinstance(entry, Mapping) else None for key in _KEYS
    )
    if not isinstance(corners, Tensor) or not isinstance(scores, Tensor) or not scores.ndim:
        return None
    if corners.shape != (len(scores), 4):
        return None
    corners, scores = corners.float(), scores.float()
    if classes is None and scores.ndim == 2 and scores.shape[1]:
        best = scores.max(1)
        return Candidates(corners, best.values, best.indices, scores)
    if not isinstance(classes, Tensor) or scores.ndim != 1 or classes.shape != scores.shape:
        return None
    return Detections(corners, scores, classes.long())


@dataclass(frozen=True, eq=False)
class BoxReading(Reading):
    """The boxes found on one image, by falling score."""

    corners_B4: Tensor
    scores_B: Tensor
    names: tuple[str, ...]
    """Their classes' names."""
    appearing: tuple[str, ...]
    """Classes of boxes that may appear elsewhere."""
    size: tuple[int, int]
    """(H, W) of the working image."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def numbered(self) -> tuple[str, ...]:
        """Their names, as `1 dog` and `2 person`."""
        return tuple(f"{number} {name}" for number, name in enumerate(self.names, start=1))

    @property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of all numbers of a row."""
        found = (f"score of {label}" for label in self.numbered)
        return (*self.numbered, *found, *(f"another {name}" for name in self.appearing))

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What can happen to a box, by the codes of `changes`."""
        appears = [f"another {name} appears" for name in self.appearing]
        return ("stays", "vanishes", *(f"vanishes, {text}" for text in appears), *appears)

    def box(self, target: int) -> tuple[int, int, int, int]:
        """y0, x0, y1, x1 of a box in whole pixels inside the working image."""
        x0, y0, x1, y1 = self.corners_B4[target].tolist()
        rows, columns = self.size
        top, left = (min(max(int(v), 0), side - 1) for v, side in ((y0, rows), (x0, columns)))
        bottom, right = (min(max(round(v), 1), s) for v, s in ((y1, rows), (x1, columns)))
        return top, left, max(bottom, top + 1), max(right, left + 1)

    def of(self, target: int) -> Tensor:
        """(H, W) bool: inside the box."""
        inside_HW = torch.zeros(self.size, dtype=torch.bool)
        y0, x0, y1, x1 = self.box(target)
        inside_HW[y0:y1, x0:x1] = True
        return inside_HW

    def fields(self, target: int) -> Mapping[str, Any]:
        """Where the box is."""
        return {"box": self.box(target)} if target < len(self) else {}

    def targets(
        self, requested: Sequence[str], _labels: Sequence[str], head: Head, path: str
    ) -> tuple[int, ...]:
        """The boxes that are meant: `all`, a number, a class, or the N-th of a class (`dog@2`)."""
        found: list[int] = []
        for text in requested:
            name, _, nth = text.partition("@")
            of_class = [
                index
                for index, other in enumerate(self.names)
                if normalised_name(other) == normalised_name(name)
            ]
            if text.casefold() == ALL:
                of_class = list(range(len(self)))
            elif number := whole_number(text):
                of_class = [number - 1] if number <= len(self) else []
            elif place := whole_number(nth):
                of_class = of_class[place - 1 : place]
            if not of_class:
                raise CnnvizError(f"'{path}': {self._missing(text[:40], head.threshold)}")
            found += of_class
        if len(picked := tuple(dict.fromkeys(found))) > MOST:
            raise CnnvizError(
                f"'{path}': --box names {len(picked):,} boxes; at most {MOST} are explained in a "
                "run: name some by number, or raise --threshold"
            )
        return picked

    def _missing(self, text: str, threshold: float) -> str:
        pairs = zip(self.numbered, self.scores_B.tolist(), strict=True)
        there = [f"{label} {share_text(score)}" for label, score in pairs]
        more = f", … ({len(there)} in all)" if len(there) > _SHOWN else ""
        listed = f"there are {', '.join(there[:_SHOWN])}{more}" if there else "there is none"
        return (
            f"no box '{text}' with a score of at least {threshold:g}; {listed} "
            "(--threshold includes weaker ones)"
        )

    def changes(self, rows_PK: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to each box at each position, by `outcomes`; the boxes that appear.

        Returns:
            (P, B) codes, and (P, classes) bool.
        """
        count, classes = len(self), len(self.appearing)
        vanished_PB = rows_PK[:, count : 2 * count] == 0
        elsewhere_PC = rows_PK[:, 2 * count :]
        strongest_P1 = elsewhere_PC.argmax(1, keepdim=True)
        appears_P1 = elsewhere_PC.amax(1, keepdim=True) > 0
        first = torch.where(vanished_PB, 2, 2 + classes)
        return torch.where(appears_P1, first + strongest_P1, vanished_PB.long()), elsewhere_PC > 0


class Boxes(Target):
    """Reads the boxes of a detector.

    Attributes:
        names: class names, by the index of a class; empty if they are unknown.
        threshold: score from which a box is found.
        note: about detectors whose own threshold stays.
    """

    name = "boxes"
    unjudged = "returns boxes, not one class per image"

    def __init__(self, module: nn.Module, size: tuple[int, int], name: str) -> None:
        """Lets a detector of torchvision return all its detections; images are of `size`."""
        self.names: tuple[str, ...] = ()
        self.threshold = Head().threshold
        self._size, self._model = size, name
        self._frozen: tuple[Tensor, Tensor, Tensor] | None = None
        self._seen: list[Detections] = []
        self._told = False
        heads: Any = getattr(module, "roi_heads", module)
        self.note, self._suppression, self._most = "", 1.0, None
        if not all(hasattr(heads, limit) for limit in _LIMITS):
            self.note = (
                f"{name} returns boxes that it has selected itself (threshold, suppression): the "
                "score of a box falls to 0 where it drops one"
            )
            return
        self._suppression, self._most = heads.nms_thresh, heads.detections_per_img
        heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, 1.0, 10**9
        for part in _UNUSED:
            if getattr(heads, part, None) is not None:
                setattr(heads, part, None)  # masks of every detection would take minutes

    def settle(self, run: Callable[[], object], _inside_HW: Tensor | None) -> BoxReading:
        """Find the boxes of the original image.

        Raises:
            CnnvizError: they or their scores are not finite, or scores are not in 0 to 1.
        """
        self._frozen = None
        run()
        all_ = self._seen[0]
        if not (all_.corners_n4.isfinite().all() and all_.scores_n.isfinite().all()):
            raise CnnvizError(f"{self._model} returns boxes or scores that are not finite")
        if ((all_.scores_n < 0) | (all_.scores_n > 1)).any():
            raise CnnvizError(
                f"{self._model} returns scores from {float(all_.scores_n.min()):.3g} to "
                f"{float(all_.scores_n.max()):.3g}; scores of boxes are in 0 to 1"
            )
        found = self._kept(all_)
        self._check(found)
        self._note_outside(found)
        listed = list(range(len(self.names)))
        if not listed:
            listed = sorted(set(all_.classes_n.tolist()))
        device = found.scores_n.device
        self._frozen = found.corners_n4, found.classes_n, torch.tensor(listed, device=device)
        self._seen = []
        return BoxReading(
            found.corners_n4.cpu(),
            found.scores_n.cpu(),
            tuple(map(self._name, found.classes_n.tolist())),
            (*map(self._name, listed), "class"),
            self._size,
        )

    def _check(self, found: Detections) -> None:
        """Raise CnnvizError if boxes are not in the image, or of a class without a name."""
        for corners, index in zip(found.corners_n4.tolist(), found.classes_n.tolist(), strict=True):
            x0, y0, x1, y1 = corners
            rows, columns = self._size
            overlaps = x0 < columns and y0 < rows and x1 > 0 and y1 > 0
            if not (x0 <= x1 and y0 <= y1 and overlaps):
                raise CnnvizError(
                    f"{self._model} returns the box ({', '.join(f'{v:.4g}' for v in corners)}) for "
                    f"an image of {rows}x{columns}; boxes are x0, y0, x1, y1 in pixels of it, "
                    "and overlap it"
                )
            if self.names and not 0 <= index < len(self.names):
                raise CnnvizError(
                    f"{self._model} returns a box of class {index}; there are {len(self.names)} "
                    "class names (--labels names classes by their index, from 0)"
                )

    def _note_outside(self, found: Detections) -> None:
        """Say once per run that boxes reach beyond the image."""
        rows, columns = self._size
        corners_B4 = found.corners_n4
        inside_B4 = corners_B4.clamp(min=0).minimum(corners_B4.new_tensor([columns, rows] * 2))
        inside_B, whole_B = ((b[:, 2:] - b[:, :2]).prod(1) for b in (inside_B4, corners_B4))
        shares = (inside_B / whole_B).tolist()
        out = [number for number, share in enumerate(shares) if share < INSIDE]
        if not out or self._told:
            return
        self._told = True
        first = out[0]
        _log.warning(
            "%s returns boxes that reach beyond the image (box %d %s: %s inside): they are drawn "
            "up to its edge, and IoU is that of the whole box",
            self._model,
            first + 1,
            self._name(int(found.classes_n[first])),
            percent(shares[first]),
        )

    def _name(self, index: int) -> str:
        return self.names[index] if 0 <= index < len(self.names) else f"class {index}"

    def _kept(self, given: Detections) -> Detections:
        """The boxes that are found: above the threshold, not suppressed, by falling score.

        Some detectors return boxes without an area, cut off at the edge of the image: not found.
        """
        area_n = (given.corners_n4[:, 2:] != given.corners_n4[:, :2]).all(1)
        above = given.of((given.scores_n >= self.threshold) & area_n)
        if self._suppression < 1 and len(above.scores_n):
            suppress = torchvision("ops").batched_nms
            kept = suppress(above.corners_n4, above.scores_n, above.classes_n, self._suppression)
            return above.of(kept[: self._most])
        return above.of(above.scores_n.argsort(descending=True, stable=True))

    def rows(self, output: Any) -> Tensor:
        """Rows (N, K); before `settle` (N, 1), the highest score."""
        given = detections(output)
        if given is None:
            raise CnnvizError(f"{self._model} returns no list of boxes, scores and labels")
        if self._frozen is None:
            self._seen = given
            return torch.cat([_highest(one.scores_n[None]) for one in given])[:, None]
        return torch.stack([self._row(one, *self._frozen) for one in given])

    def _row(
        self, given: Detections, corners_B4: Tensor, classes_B: Tensor, listed_C: Tensor
    ) -> Tensor:
        overlap = torchvision("ops").box_iou
        iou_Bn = overlap(corners_B4, given.corners_n4)
        numbers_B = _highest(iou_Bn * given.of_classes(classes_B))
        found = self._kept(given)
        iou_Bn = overlap(corners_B4, found.corners_n4)
        there_Bn = (classes_B[:, None] == found.classes_n) & (iou_Bn >= SAME)
        scores_B = _highest(torch.where(there_Bn, found.scores_n, 0.0))
        elsewhere = found.of(~there_Bn.any(0))
        of_class_Cn = listed_C[:, None] == elsewhere.classes_n
        unlisted_1n = ~of_class_Cn.any(0, keepdim=True)
        of_class_Cn = torch.cat([of_class_Cn, unlisted_1n])
        appearing_C = _highest(torch.where(of_class_Cn, elsewhere.scores_n, 0.0))
        return torch.cat([numbers_B, scores_B, appearing_C])


def _highest(values_mn: Tensor) -> Tensor:
    """(m,) the largest of each row, 0 of none."""
    return torch.cat([values_mn, values_mn.new_zeros(len(values_mn), 1)], 1).amax(1)


def taken_over(
    module: nn.Module,
    size: tuple[int, int] | int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocess | None:
    """Take resizing and normalisation out of a detector of torchvision; None for anything else.

    The working image then is what its first layer sees.
    """
    transform: Any = getattr(module, "transform", None)
    if type(transform).__name__ != "GeneralizedRCNNTransform":
        return None
    side = transform.fixed_size[0] if transform.fixed_size else transform.min_size[-1]
    colours = tuple(transform.image_mean), tuple(transform.image_std)
    preprocess = adjust(Preprocess(side, (side, side), *colours), size, mean, std)
    transform.image_mean, transform.image_std = [0.0] * len(colours[0]), [1.0] * len(colours[0])
    if not transform.fixed_size:
        transform.min_size, transform.max_size = (min(preprocess.crop),), max(preprocess.crop)
    return preprocess.fitted()
