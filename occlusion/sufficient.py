"""Regions of an image that are enough for a class, that lose it when occluded, or both.

The image is cut into equal cells, one grid for everything. Cells are ranked by a map, and kept
alone or occluded, the most important first, until that is enough. Two maps rank: what occluding a
position takes away, and what a position adds when it alone is kept. Where evidence is redundant
(two faces, either of which is enough) the first sees nothing and the second sees both. Then cells
are removed, as many as can go together, until no single one can; and cells from outside are added
where more than one can go in exchange. The smallest result is taken.

Greedy: no single cell of a region can go, but there may be smaller regions.
After Dabkowski and Gal 2017, "Real Time Image Saliency for Black Box Classifiers" (smallest
sufficient and smallest destroying region), and Carter et al. 2019, "What made you do this?
Understanding black-box decisions with sufficient input subsets" (removal one by one).
An image that differs by one cell, or box, from another is run by the engine of the map.
Shapes: N images, L cells, P boxes, H W rows and columns, r c rows and columns of cells.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from cnnviz.core.choices import percent
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.errors import UsageError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.engines.choose import Engine, make_engine
from cnnviz.occlusion.maps import pixel_map, target_scores
from cnnviz.occlusion.masks import STRIDE_SHARE, fill_picture, mask_grid
from cnnviz.occlusion.measurement import Measurement
from cnnviz.occlusion.options import Border, OcclusionSpec, Score, Upsample
from cnnviz.occlusion.results import RANKED_BY, Panel, Region, Sufficiency, in_pixels

HELD = 0.9  # of the class's probability, by what is kept alone
LOST = 0.5  # of it, for a class that is not the prediction anyway
AT_A_TIME = 8
FEW = 3  # cells, up to which whole passes are cheaper than an engine's run
STEPS, TOGETHER = 32, 6  # sizes that are tried at first, and for cells that go together
OUTSIDE, EXCHANGES = 16, 4  # best cells that are added, those that are tried in exchange
THINNED = 2  # of the map's positions, every second row and column ranks what a region leaves


class Need(Enum):
    """What a region has to do; the values say whether it is kept alone, and whether occluded."""

    HOLD = (True, False)
    LOSE = (False, True)
    BOTH = (True, True)


def sufficiency(
    model: Model,
    measured: Measurement,
    panel: Panel,
    spec: OcclusionSpec,
    engine: Engine,
    progress: Callable[[int], None],
) -> Sufficiency:
    """Finds the smallest region that holds one class, and the smallest that loses it."""
    search = Search(model, measured, panel, spec, engine=engine, progress=progress)
    region = search.smallest(Need.HOLD)
    assert region is not None  # noqa: S101 (the whole image is enough)
    without = search.reading(region.cells_rc.flatten(), keep=False)
    by_occluding = search.rankings()["covering"]
    grown = _prefixes(by_occluding, search.cells)
    probability = panel.reading
    return Sufficiency(
        **class_fields(measured, panel.index, probability),
        cell=search.cell,
        region=region,
        without=without,
        redundancy=min(1.0, without / probability) if probability > 0 else 0.0,
        losing=search.smallest(Need.LOSE),
        lost_when=search.lost_when,
        fill_CHW=search.fill_CHW,
        kept_curve=search.probabilities(search.run(grown, keep=True)),
        covered_curve=search.probabilities(search.run(grown, keep=False)),
    )


def _prefixes(ranking_R: Tensor, cells: int) -> Tensor:
    """(R + 1, L) bool: no cell, the best, the two best, …, all that are ranked."""
    place_L = torch.full((cells,), len(ranking_R))
    place_L[ranking_R] = torch.arange(len(ranking_R))
    return place_L < torch.arange(len(ranking_R) + 1)[:, None]


def _changed(cells_L: Tensor, changed_N: Tensor) -> Tensor:
    """(N, L) the region with one cell more, or less."""
    changed_NL = cells_L.repeat(len(changed_N), 1)
    changed_NL[torch.arange(len(changed_N)), changed_N] ^= True
    return changed_NL


def _spread(low: int, high: int, count: int) -> list[int]:
    """At most so many whole numbers from low to high, both included."""
    return sorted({round(low + (high - low) * i / (count - 1)) for i in range(count)})


def check_shares(head: Head, option: str) -> None:
    """Raises UsageError for numbers without a zero, such as a regression's."""
    if not head.has_shares:
        raise UsageError(
            f"{option} needs classes or boxes, which a region holds or loses; {head.described}"
        )


class Search:
    """One class's cells, and the scores with some of them kept or occluded.

    Attributes:
        cell: side of a cell in pixels; `cells` of them, in `shape` rows and columns.
        fill_CHW: what replaces the pixels, in [0, 1].
        lost_when: what it means that the class is lost.
        passes: images that went through the network so far.
    """

    def __init__(
        self,
        model: Model,
        measured: Measurement,
        panel: Panel,
        spec: OcclusionSpec,
        cell: int | None = None,
        held: float = HELD,
        engine: Engine | None = None,
        progress: Callable[[int], None] = lambda _images: None,
    ) -> None:
        """Lays the grid.

        Args:
            model: the network.
            measured: of one image.
            panel: the class and its map.
            spec: the fill, the batch size and the seed.
            cell: side of a cell; None for a share of the image's.
            held: share of the probability that is enough.
            engine: of the same network; None: one is made.
            progress: called with the number of images just run.
        """
        self._model, self._head, self._panel = model, model.head, panel
        self._size, self._image = measured.size, measured.image
        self._held, self._progress, self.passes = held, progress, 0
        self._ranked: Mapping[str, Tensor] = {}
        image = measured.image
        # A long strip gets no more cells than a square: the search goes through all of them.
        self.cell = cell or max(1, round(STRIDE_SHARE * math.sqrt(math.prod(self._size))))
        rows, columns = (min(self.cell, side) for side in self._size)
        self._grid = mask_grid(self._size, (rows, columns), self.cell, Border.COVER)
        self.cells, self.shape = len(self._grid.boxes_P4), self._grid.shape
        y0, x0, y1, x1 = self._grid.boxes_P4.T
        self._areas_L = (y1 - y0) * (x1 - x0)
        self.fill_CHW = fill_picture(spec.fill, image.pixels, model.preprocess, spec.seed)
        self._engine = engine or make_engine(
            model, spec.engine, boxes_P4=self._grid.boxes_P4, batch_size=spec.batch_size
        )
        self._pixels = model.preprocess.normalise(image.pixels)
        self._fill = model.preprocess.normalise(self.fill_CHW)
        self._logits = partial(
            replaced_logits,
            model,
            image,
            self.fill_CHW,
            batch_size=spec.batch_size,
            progress=self._count,
        )
        self._predicted = bool(self._predicts(measured.base_logits_K[None])[0])
        if not self._predicted:
            what = self._head.reading_name
            self.lost_when = f"its {what} falls below {percent(LOST)} of what it was"
        elif model.head.kind is Kind.SIGMOID:
            self.lost_when = "its probability falls below the threshold"
        else:
            self.lost_when = "another class becomes more probable"

    def _count(self, images: int) -> None:
        self.passes += images
        self._progress(images)

    def _predicts(self, logits_NK: Tensor) -> Tensor:
        """(N,) whether the class is predicted; of independent classes, whether it holds."""
        if not self._head.has_classes:
            return torch.zeros(len(logits_NK), dtype=torch.bool)
        if self._head.kind is Kind.SIGMOID:
            return self._head.holds(logits_NK)[:, self._panel.index]
        return logits_NK.argmax(1) == self._panel.index

    def _holds(self, logits_NK: Tensor) -> Tensor:
        """(N,) whether the class keeps enough, and is predicted if it was."""
        enough_N = self.probabilities(logits_NK) >= self._held * self._panel.reading
        return enough_N & self._predicts(logits_NK) if self._predicted else enough_N

    def loses(self, logits_NK: Tensor) -> Tensor:
        """(N,) whether the class is lost, see `lost_when`."""
        if self._predicted:
            return ~self._predicts(logits_NK)
        return self.probabilities(logits_NK) < LOST * self._panel.reading

    def _scores(self, logits_NK: Tensor, score: Score) -> Tensor:
        return target_scores(logits_NK, self._panel.index, score, self._head)

    def probabilities(self, logits_NK: Tensor) -> Tensor:
        """(N,) of the class."""
        return self._scores(logits_NK, Score.PROBABILITY)

    def reading(self, cells_L: Tensor, *, keep: bool) -> float:
        """The class's probability with only those cells kept, or with them occluded."""
        return float(self.probabilities(self.run(cells_L[None], keep=keep))[0])

    def log_odds(self, count: int, kept: Callable[[slice], Tensor]) -> Tensor:
        """(N,) of the class with only those pixels kept, (n, H, W) bool of a slice of them."""
        return self._scores(self._logits(count, kept), Score.LOG_ODDS)

    def run(self, cells_NL: Tensor, *, keep: bool) -> Tensor:
        """(N, K) logits with only those cells kept, or with them occluded."""

        def kept(part: slice) -> Tensor:
            return in_pixels(cells_NL[part].reshape(-1, *self.shape) == keep, self.cell, self._size)

        return self._logits(len(cells_NL), kept)

    def _boxes(self, kept_HW: Tensor, changed_HW: Tensor, boxes_P4: Tensor) -> Tensor:
        """(P, K) logits with only some pixels kept, or inside of a box only others."""
        image, inside = (
            torch.where(each_HW, self._pixels, self._fill).to(self._model.device)
            for each_HW in (kept_HW, changed_HW)
        )
        self._count(1)  # without a box
        scores = self._engine.run(image, inside, boxes_P4, self._count)
        return self._model.finite(self._head.logits(scores.logits_PK.cpu()), self._image.path)

    def met(self, cells_NL: Tensor, need: Need) -> tuple[Tensor, Tensor]:
        """(N,) whether the need is met, and (N,) log-odds where it is, larger the more it is."""
        return self._met(
            lambda some, keep: self.run(cells_NL[some], keep=keep), len(cells_NL), need
        )

    def met_changed(self, cells_L: Tensor, changed: Tensor, need: Need) -> tuple[Tensor, Tensor]:
        """As `met`, of a region with one cell more or less: all in it, or none of them."""
        if len(changed) <= FEW:
            return self.met(_changed(cells_L, changed), need)
        pixels_HW = in_pixels(cells_L.reshape(1, *self.shape), self.cell, self._size)[0]
        without = cells_L[changed[0]]  # and kept where it is not, or the other way round

        def logits(some: Tensor, keep: bool) -> Tensor:
            boxes_P4 = self._grid.boxes_P4[changed[some]]
            others_HW = torch.full(self._size, bool(without) is not keep)
            return self._boxes(pixels_HW == keep, others_HW, boxes_P4)

        return self._met(logits, len(changed), need)

    def _met(
        self, logits: Callable[[Tensor, bool], Tensor], count: int, need: Need
    ) -> tuple[Tensor, Tensor]:
        """See `met`; `logits` are those of some of the regions, kept or occluded."""
        met_N = torch.ones(count, dtype=torch.bool)
        margin_N = torch.zeros(count, dtype=torch.float64)
        for needed, keep in zip(need.value, (True, False), strict=True):
            some = met_N.nonzero()[:, 0]
            if needed and len(some):
                logits_NK = logits(some, keep)
                met_N[some] = self._holds(logits_NK) if keep else self.loses(logits_NK)
                log_odds_N = self._scores(logits_NK, Score.LOG_ODDS)
                margin_N[some] += log_odds_N if keep else -log_odds_N
        return met_N, margin_N

    def rankings(self, covered_L: Tensor | None = None) -> Mapping[str, Tensor]:
        """The cells (R,) that are not covered, most important first, by both maps."""
        covered_L = covered_L if covered_L is not None and bool(covered_L.any()) else None
        if covered_L is None and self._ranked:
            return self._ranked
        grid = self._panel.grid
        boxes_P4 = grid.boxes_P4
        if covered_L is None:
            left_HW, map_HW = torch.ones(self._size, dtype=torch.bool), self._panel.map_HW
            ranked = torch.arange(self.cells)
        else:
            left_HW = in_pixels(~covered_L.reshape(1, *self.shape), self.cell, self._size)[0]
            ranked = (~covered_L).nonzero()[:, 0]
            rows, columns = (range(0, length, THINNED) for length in grid.shape)
            boxes_P4 = torch.stack([boxes_P4[r * grid.shape[1] + c] for r in rows for c in columns])
            map_HW = self._by_boxes(boxes_P4, left_HW, keep=False)
        maps = (map_HW, self._by_boxes(boxes_P4, left_HW, keep=True))
        rankings = {
            name: ranked[self._means(each_HW)[ranked].argsort(descending=True, stable=True)]
            for name, each_HW in zip(RANKED_BY, maps, strict=True)
        }
        if covered_L is None:
            self._ranked = rankings
        return rankings

    def _by_boxes(self, boxes_P4: Tensor, left_HW: Tensor, *, keep: bool) -> Tensor:
        """(H, W) what keeping boxes of what is left adds, or occluding them takes away."""
        nothing_HW = torch.zeros_like(left_HW)
        pair = (nothing_HW, left_HW) if keep else (left_HW, nothing_HW)
        values_P = self.probabilities(self._boxes(*pair, boxes_P4))
        values_P = values_P - values_P.min() if keep else values_P.max() - values_P
        return pixel_map(
            values_P, replace(self._panel.grid, boxes_P4=boxes_P4), self._size, Upsample.DENSITY
        )

    def _means(self, map_HW: Tensor) -> Tensor:
        """(L,) of the cells."""
        boxes = self._grid.boxes_P4.tolist()
        return torch.stack([map_HW[y0:y1, x0:x1].double().mean() for y0, x0, y1, x1 in boxes])

    def smallest(
        self, need: Need, covered_L: Tensor | None = None, base_L: Tensor | None = None
    ) -> Region | None:
        """The smallest region that is found among the cells that are not covered, if there is one.

        Args:
            need: what it has to do.
            covered_L: cells that it may not have.
            base_L: cells that the search starts with.
        """
        best: tuple[Tensor, str] | None = None
        starts: list[Tensor] = []
        rankings = self.rankings(covered_L)
        for name, ranking_R in rankings.items():
            cells_L = self._first(ranking_R, need, base_L)
            if cells_L is not None and not any(torch.equal(cells_L, each) for each in starts):
                starts.append(cells_L)
                cells_L = self.minimal(cells_L, need)
                if best is None or self._area(cells_L) < self._area(best[0]):
                    best = cells_L, name
        if best is None:
            return None
        outside = sorted({i for ranked in rankings.values() for i in ranked[:OUTSIDE].tolist()})
        return self._region(self._exchanged(best[0], need, torch.tensor(outside)), best[1], need)

    def _area(self, cells_L: Tensor) -> int:
        return int(self._areas_L[cells_L].sum())

    def _first(self, ranking_R: Tensor, need: Need, base_L: Tensor | None) -> Tensor | None:
        """About the fewest of the best cells that are enough, with the base if there is one."""
        grown_NL = _prefixes(ranking_R, self.cells)[_spread(0, len(ranking_R), STEPS)]
        for part_NL in torch.split(grown_NL if base_L is None else grown_NL | base_L, AT_A_TIME):
            met_N, _margins = self.met(part_NL, need)
            if met_N.any():
                return part_NL[int(met_N.int().argmax())]
        return None

    def minimal(self, cells_L: Tensor, need: Need, fewest: int = 1) -> Tensor:
        """The region without the cells that it can do without: no single cell can go.

        In each round all cells that can go alone are ordered by what is left without them, and as
        many as possible of their first half go together. (Cells that could not go are tried again:
        a network is not monotone, and regions are larger without.) If fewer than `fewest` can go at
        first, none do.
        """
        while True:
            members = cells_L.nonzero()[:, 0]
            met_N, margin_N = self.met_changed(cells_L, members, need)
            if not met_N.any() or met_N.sum() < fewest:
                return cells_L
            fewest = 1
            spare = members[met_N][margin_N[met_N].argsort(descending=True, stable=True)]
            half = (len(spare) + 1) // 2
            counts = sorted(
                {*_spread(1, half, TOGETHER), *(2**power for power in range(half.bit_length()))}
            )
            together_NL = cells_L & ~_prefixes(spare, self.cells)[counts]
            met_N = torch.ones(len(counts), dtype=torch.bool)  # the first as before, on its own
            met_N[1:] = self.met(together_NL[1:], need)[0]
            cells_L = together_NL[int(met_N.nonzero().max())]

    def _exchanged(self, cells_L: Tensor, need: Need, best: Tensor) -> Tensor:
        """The region with cells from outside, where more than one can go in exchange."""
        while True:
            outside = best[~cells_L[best]]
            if not len(outside) or not cells_L.any():
                return cells_L
            met_N, margin_N = self.met_changed(cells_L, outside, need)
            order = margin_N[met_N].argsort(descending=True, stable=True)
            for each_L in _changed(cells_L, outside[met_N][order][:EXCHANGES]):
                smaller_L = self.minimal(each_L, need, fewest=2)
                if self._area(smaller_L) < self._area(cells_L):
                    cells_L = smaller_L
                    break
            else:
                return cells_L

    def _region(self, cells_L: Tensor, ranked_by: str, need: Need) -> Region:
        return Region(
            share=self._area(cells_L) / int(self._areas_L.sum()),
            cells=int(cells_L.sum()),
            of_cells=cells_L.numel(),
            probability=self.reading(cells_L, keep=need is not Need.LOSE),
            ranked_by=ranked_by,
            cells_rc=cells_L.reshape(self.shape),
        )
