"""The least of a picture that suffices for a class, and the least whose covering loses it.

The picture is cut into equal cells, one grid for everything. Cells are ranked by a map, and kept
alone or covered one after the other, the most important first, until that is enough; then each is
given back in turn, the least important first, where it turns out not to be needed. Two maps rank:
what covering a place takes away, and what a place brings when it alone is kept. Where evidence is
redundant (two faces, either of which would do) the first sees nothing and the second sees both. The
smaller region is taken.

Greedy: no region is promised to be the smallest of all.
After Dabkowski and Gal 2017, "Real Time Image Saliency for Black Box Classifiers" (smallest
sufficient and smallest destroying region), and Carter et al. 2019, "What made you do this?
Understanding black-box decisions with sufficient input subsets" (giving back one by one).
Shapes: N pictures, L cells, H W rows and columns, r c rows and columns of cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced import replaced_logits
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Kind
from cnnviz.core.models.load import Model
from cnnviz.occlusion.options import Border, Score, Upsample
from cnnviz.occlusion.fills import fill_picture
from cnnviz.occlusion.maps import pixel_map, target_scores
from cnnviz.occlusion.masks import STRIDE_SHARE, inside_boxes, mask_grid
from cnnviz.occlusion.panels import Panel

HELD = 0.9  # of the class's probability, by what is kept alone
LOST = 0.5  # of it, for a class that is not the answer anyway
AT_A_TIME = 16
RANKED_BY = ("covering", "keeping")


@dataclass(frozen=True, eq=False)
class Region:
    """Some cells of a picture.

    Attributes:
        cells_rc: which, bool.
        share: of the picture's pixels.
        probability: of the class with this region alone kept, or covered.
        ranked_by: what put its cells in order: `covering` or `keeping` a place.
    """

    cells_rc: Tensor
    share: float
    probability: float
    ranked_by: str


@dataclass(frozen=True, eq=False)
class Sufficiency:
    """What a class needs of a picture, and what it cannot spare.

    Attributes:
        target: class index.
        probability: of the class on the untouched picture.
        cell: side of a cell in pixels.
        fill_CHW: what stands in place of what is covered, in [0, 1].
        sufficient: kept alone, holds the class at 90 % of its probability.
        without: the probability with the sufficient region covered and the rest kept.
        losing: covered, loses the class; None where a wholly covered picture keeps it.
        lost_when: what losing means here.
        kept_curve: the probability with the 0, 1, … L best cells (by covering) alone kept.
        covered_curve: the same cells covered.
    """

    target: int
    probability: float
    cell: int
    fill_CHW: Tensor
    sufficient: Region
    without: float
    losing: Region | None
    lost_when: str
    kept_curve: Tensor
    covered_curve: Tensor

    def pixels_of(self, region: Region) -> Tensor:
        """(H, W) bool: the region's cells in the picture."""
        return in_pixels(region.cells_rc[None], self.cell, self.fill_CHW.shape[1:])[0]

    @property
    def redundancy(self) -> float:
        """What the class keeps of its probability without what would suffice for it, 0 to 1."""
        return min(1.0, self.without / self.probability) if self.probability > 0 else 0.0


def sufficiency(
    model: Model,
    image: WorkingImage,
    panel: Panel,
    base_logits_K: Tensor,
    *,
    fill: str = "mean",
    seed: int = 0,
    batch_size: int | None = None,
) -> Sufficiency:
    """Finds both regions for one class.

    Args:
        model: borrowed; a dense output has been settled on this image.
        image: of the model's input size.
        panel: what covering it piece by piece did to the class.
        base_logits_K: of the untouched image.
        fill: what is shown in place of covered cells.
        seed: of a noise fill.
        batch_size: pictures at a time; None for automatic.

    Raises:
        UsageError: the model is a regression, whose values nothing holds or loses.
        CnnvizError: a score is not finite.
    """
    check_classes(model)
    search = _Search(model, image, panel, base_logits_K, fill, seed, batch_size)
    by_covering = search.rankings[0]
    sufficient = search.smallest(keep=True)
    assert sufficient is not None  # noqa: S101 (the whole picture suffices)
    own_L = sufficient.cells_rc.flatten()
    return Sufficiency(
        target=panel.target,
        probability=panel.probability,
        cell=search.cell,
        fill_CHW=search.fill_CHW,
        sufficient=sufficient,
        without=float(search.probabilities(search.run(own_L[None], keep=False))[0]),
        losing=search.smallest(keep=False),
        lost_when=search.lost_when,
        kept_curve=search.probabilities(search.run(_prefixes(by_covering), keep=True)),
        covered_curve=search.probabilities(search.run(_prefixes(by_covering), keep=False)),
    )


def _prefixes(ranking_L: Tensor) -> Tensor:
    """(L + 1, L) bool: no cell, the best, the two best, …, all."""
    counts = torch.arange(len(ranking_L) + 1)
    return ranking_L.argsort() < counts[:, None]


def in_pixels(cells_Nrc: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """(N, H, W) of values of cells; those at the right and the bottom may be cut off."""
    large = cells_Nrc.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return large[:, : size[0], : size[1]]


def check_classes(model: Model) -> None:
    """Raises UsageError for a regression."""
    if not model.head.has_classes:
        raise UsageError(
            "--sufficient needs classes, which a region holds or loses; a regression (--head none) "
            "has values alone"
        )


class _Search:
    """One class's cells, and what the network says of some of them."""

    def __init__(
        self,
        model: Model,
        image: WorkingImage,
        panel: Panel,
        base_logits_K: Tensor,
        fill: str,
        seed: int,
        batch_size: int | None,
    ) -> None:
        self._head, self._panel = model.head, panel
        self._size = (int(image.pixels.shape[1]), int(image.pixels.shape[2]))
        # Of a long strip no more cells than of a square: the search goes over all of them.
        self.cell = max(1, round(STRIDE_SHARE * math.sqrt(math.prod(self._size))))
        rows, columns = (min(self.cell, side) for side in self._size)
        self._grid = mask_grid(self._size, (rows, columns), self.cell, Border.COVER)
        self.fill_CHW = fill_picture(fill, image.pixels, model.preprocess, seed)
        self._logits = partial(replaced_logits, model, image, self.fill_CHW, batch_size=batch_size)
        self._answers = bool(self._answer(base_logits_K[None])[0])
        if not self._answers:
            self.lost_when = f"its probability falls below {LOST:.0%} of what it was"
        elif model.head.kind is Kind.SIGMOID:
            self.lost_when = "its probability falls below the threshold"
        else:
            self.lost_when = "another class becomes more probable"

    def _answer(self, logits_NK: Tensor) -> Tensor:
        """(N,) whether the class is the network's answer, or holds where each is on its own."""
        if self._head.kind is Kind.SIGMOID:
            return self._head.holds(logits_NK)[:, self._panel.target]
        return logits_NK.argmax(1) == self._panel.target

    def _met(self, logits_NK: Tensor, *, keep: bool) -> Tensor:
        """(N,) whether what is kept holds the class, or what is covered loses it."""
        if not keep and self._answers:
            return ~self._answer(logits_NK)
        share_N = self.probabilities(logits_NK) / self._panel.probability
        return share_N >= HELD if keep else share_N < LOST

    def probabilities(self, logits_NK: Tensor) -> Tensor:
        """(N,) of the class."""
        return target_scores(logits_NK, self._panel.target, Score.PROBABILITY, self._head)

    def run(self, cells_NL: Tensor, *, keep: bool) -> Tensor:
        """(N, K) logits with those cells alone kept, or with them covered."""
        shape = self._grid.shape

        def kept(part: slice) -> Tensor:
            return in_pixels(cells_NL[part].reshape(-1, *shape) == keep, self.cell, self._size)

        return self._logits(len(cells_NL), kept)

    @cached_property
    def rankings(self) -> tuple[Tensor, Tensor]:
        """Cells (L,), most important first: by covering, and by keeping."""
        boxes_P4 = self._panel.grid.boxes_P4
        alone = self._logits(len(boxes_P4), lambda part: inside_boxes(boxes_P4[part], self._size))
        brought_P = self.probabilities(alone)
        brought_P = brought_P - brought_P.min()
        brought = pixel_map(brought_P, self._panel.grid, self._size, Upsample.DENSITY)
        return self._ranking(self._panel.map_HW), self._ranking(brought)

    def _ranking(self, map_HW: Tensor) -> Tensor:
        boxes = self._grid.boxes_P4.tolist()
        means = torch.stack([map_HW[y0:y1, x0:x1].double().mean() for y0, x0, y1, x1 in boxes])
        return means.argsort(descending=True, stable=True)

    def smallest(self, *, keep: bool) -> Region | None:
        """The smaller of the regions that the two rankings give; None where there is none."""
        found: Region | None = None
        for ranking_L, name in zip(self.rankings, RANKED_BY, strict=True):
            cells_L = self._first(ranking_L, keep=keep)
            if cells_L is None:
                return None  # all cells are the same for every ranking
            region = self._region(self._spare(cells_L, ranking_L, keep=keep), name, keep=keep)
            if found is None or region.share < found.share:
                found = region
        return found

    def _first(self, ranking_L: Tensor, *, keep: bool) -> Tensor | None:
        """The fewest of the best cells that do."""
        for part in torch.split(_prefixes(ranking_L), AT_A_TIME):
            met_N = self._met(self.run(part, keep=keep), keep=keep)
            if met_N.any():
                return part[int(met_N.int().argmax())]
        return None

    def _spare(self, cells_L: Tensor, ranking_L: Tensor, *, keep: bool) -> Tensor:
        """The cells that are needed: each is given back in turn, the least important first."""
        needed = cells_L.clone()
        for cell in ranking_L.flip(0).tolist():
            if needed[cell]:
                needed[cell] = False
                needed[cell] = not self._met(self.run(needed[None], keep=keep), keep=keep)[0]
        return needed

    def _region(self, cells_L: Tensor, ranked_by: str, *, keep: bool) -> Region:
        y0, x0, y1, x1 = self._grid.boxes_P4.T
        areas_L = (y1 - y0) * (x1 - x0)
        probability = float(self.probabilities(self.run(cells_L[None], keep=keep))[0])
        share = float(areas_L[cells_L].sum() / areas_L.sum())
        return Region(cells_L.reshape(self._grid.shape), share, probability, ranked_by)
