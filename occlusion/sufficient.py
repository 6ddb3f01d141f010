"""The smallest part of an image that is enough for a class, and the smallest that loses it.

The image is cut into equal cells, one grid for everything. Cells are ranked by a map, and kept
alone or occluded one after the other, the most important first, until that is enough; then each is
given back in turn, the least important first, where it turns out not to be needed. Two maps rank:
what occluding a position takes away, and what a position adds when it alone is kept. Where evidence
is redundant (two faces, either of which is enough) the first sees nothing and the second sees both.
The smaller region is taken.

Greedy: there may be smaller regions.
After Dabkowski and Gal 2017, "Real Time Image Saliency for Black Box Classifiers" (smallest
sufficient and smallest destroying region), and Carter et al. 2019, "What made you do this?
Understanding black-box decisions with sufficient input subsets" (giving back one by one).
Shapes: N images, L cells, H W rows and columns, r c rows and columns of cells.
"""

import math
from functools import cached_property, partial

import torch
from torch import Tensor

from cnnviz.core.choices import percent
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.maps import pixel_map, target_scores
from cnnviz.occlusion.masks import STRIDE_SHARE, fill_picture, inside_boxes, mask_grid
from cnnviz.occlusion.measurement import Measurement
from cnnviz.occlusion.options import Border, OcclusionSpec, Score, Upsample
from cnnviz.occlusion.results import RANKED_BY, Panel, Region, Sufficiency, in_pixels

HELD = 0.9  # of the class's probability, by what is kept alone
LOST = 0.5  # of it, for a class that is not the prediction anyway
AT_A_TIME = 16


def sufficiency(
    model: Model, measured: Measurement, panel: Panel, spec: OcclusionSpec
) -> Sufficiency:
    """Finds both regions for one class."""
    check_shares(model.head)
    search = _Search(model, measured, panel, spec)
    by_occluding = search.rankings[0]
    region = search.smallest(keep=True)
    assert region is not None  # noqa: S101 (the whole image is enough)
    kept_L = region.cells_rc.flatten()
    without = float(search.probabilities(search.run(kept_L[None], keep=False))[0])
    probability = panel.reading
    return Sufficiency(
        **class_fields(measured, panel.index, probability),
        cell=search.cell,
        region=region,
        without=without,
        redundancy=min(1.0, without / probability) if probability > 0 else 0.0,
        losing=search.smallest(keep=False),
        lost_when=search.lost_when,
        fill_CHW=search.fill_CHW,
        kept_curve=search.probabilities(search.run(_prefixes(by_occluding), keep=True)),
        covered_curve=search.probabilities(search.run(_prefixes(by_occluding), keep=False)),
    )


def _prefixes(ranking_L: Tensor) -> Tensor:
    """(L + 1, L) bool: no cell, the best, the two best, …, all."""
    counts = torch.arange(len(ranking_L) + 1)
    return ranking_L.argsort() < counts[:, None]


def check_shares(head: Head) -> None:
    """Raises UsageError for numbers without a zero, such as a regression's."""
    if not head.has_shares:
        raise UsageError(
            f"--sufficient needs classes or boxes, which a region holds or loses; {head.described}"
        )


class _Search:
    """One class's cells, and the scores with some of them kept or occluded."""

    def __init__(
        self, model: Model, measured: Measurement, panel: Panel, spec: OcclusionSpec
    ) -> None:
        self._head, self._panel, self._size = model.head, panel, measured.size
        image = measured.image
        # A long strip gets no more cells than a square: the search goes through all of them.
        self.cell = max(1, round(STRIDE_SHARE * math.sqrt(math.prod(self._size))))
        rows, columns = (min(self.cell, side) for side in self._size)
        self._grid = mask_grid(self._size, (rows, columns), self.cell, Border.COVER)
        self.fill_CHW = fill_picture(spec.fill, image.pixels, model.preprocess, spec.seed)
        self._logits = partial(
            replaced_logits, model, image, self.fill_CHW, batch_size=spec.batch_size
        )
        self._predicted = bool(self._predicts(measured.base_logits_K[None])[0])
        if not self._predicted:
            what = self._head.reading_name
            self.lost_when = f"its {what} falls below {percent(LOST)} of what it was"
        elif model.head.kind is Kind.SIGMOID:
            self.lost_when = "its probability falls below the threshold"
        else:
            self.lost_when = "another class becomes more probable"

    def _predicts(self, logits_NK: Tensor) -> Tensor:
        """(N,) whether the class is predicted; of independent classes, whether it holds."""
        if not self._head.has_classes:
            return torch.zeros(len(logits_NK), dtype=torch.bool)
        if self._head.kind is Kind.SIGMOID:
            return self._head.holds(logits_NK)[:, self._panel.index]
        return logits_NK.argmax(1) == self._panel.index

    def _met(self, logits_NK: Tensor, *, keep: bool) -> Tensor:
        """(N,) whether what is kept holds the class, or what is occluded loses it."""
        if not keep and self._predicted:
            return ~self._predicts(logits_NK)
        share_N = self.probabilities(logits_NK) / self._panel.reading
        return share_N >= HELD if keep else share_N < LOST

    def probabilities(self, logits_NK: Tensor) -> Tensor:
        """(N,) of the class."""
        return target_scores(logits_NK, self._panel.index, Score.PROBABILITY, self._head)

    def run(self, cells_NL: Tensor, *, keep: bool) -> Tensor:
        """(N, K) logits with only those cells kept, or with them occluded."""
        shape = self._grid.shape

        def kept(part: slice) -> Tensor:
            return in_pixels(cells_NL[part].reshape(-1, *shape) == keep, self.cell, self._size)

        return self._logits(len(cells_NL), kept)

    @cached_property
    def rankings(self) -> tuple[Tensor, Tensor]:
        """Cells (L,), most important first: by occluding, and by keeping."""
        boxes_P4 = self._panel.grid.boxes_P4
        alone = self._logits(len(boxes_P4), lambda part: inside_boxes(boxes_P4[part], self._size))
        added_P = self.probabilities(alone)
        added_P = added_P - added_P.min()
        added = pixel_map(added_P, self._panel.grid, self._size, Upsample.DENSITY)
        return self._ranking(self._panel.map_HW), self._ranking(added)

    def _ranking(self, map_HW: Tensor) -> Tensor:
        boxes = self._grid.boxes_P4.tolist()
        means = torch.stack([map_HW[y0:y1, x0:x1].double().mean() for y0, x0, y1, x1 in boxes])
        return means.argsort(descending=True, stable=True)

    def smallest(self, *, keep: bool) -> Region | None:
        """The smaller of the regions that the two rankings give; None where there is none."""
        smallest: Region | None = None
        for ranking_L, name in zip(self.rankings, RANKED_BY, strict=True):
            cells_L = self._first(ranking_L, keep=keep)
            if cells_L is None:
                return None  # all cells are the same for every ranking
            region = self._region(self._spare(cells_L, ranking_L, keep=keep), name, keep=keep)
            if smallest is None or region.share < smallest.share:
                smallest = region
        return smallest

    def _first(self, ranking_L: Tensor, *, keep: bool) -> Tensor | None:
        """The fewest of the best cells that are enough."""
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
        return Region(
            share=float(areas_L[cells_L].sum() / areas_L.sum()),
            cells=int(cells_L.sum()),
            of_cells=cells_L.numel(),
            probability=float(self.probabilities(self.run(cells_L[None], keep=keep))[0]),
            ranked_by=ranked_by,
            cells_rc=cells_L.reshape(self._grid.shape),
        )
