"""The k best of a stream, for every filter at once, in memory of filters × k.

Each candidate is one 64-bit key: the score's float32 bits, mapped so that they sort as integers,
above the candidate's ticket, counted down. So the larger key has the larger score, or among equal
scores the earlier ticket, and all keys differ. The k largest keys do not depend on the order or the
batches of the candidates, and two states merge by keeping the k largest keys of both.

A map is read once, for its largest value and the unit that has it; all else is done with these
numbers, for the filters of all layers together.

A ticket is `image * per_image + rank`: the index of the image in the data set, and the rank of the
unit among those of this image. Tickets are below 2^32.

Shapes: N images, F filters, H W rows and columns of a map, K kept per filter, A candidates per
filter, M maps, P patches per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.filters.patches.options import Ranking

EMPTY = -(2**63)
_TICKETS = 2**32
ROUNDING = 1e-6
"""Of the shift of a rescaled map: what is nearer to zero may be zero, which is not active."""


def pack(scores: Tensor, tickets: Tensor) -> Tensor:
    """Keys (int64) of finite float32 scores and int64 tickets; the shapes broadcast."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two are one value
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return ordered * _TICKETS + (_TICKETS - 1 - tickets)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and tickets (int64) of keys; the score of an empty entry is NaN."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), _TICKETS - 1 - (keys & (_TICKETS - 1))


@dataclass(frozen=True)
class TopK:
    """The best candidates so far.

    Attributes:
        keys: (F, K) int64, descending along K; `EMPTY` if there is none.
        units: (F, K) int64, row-major index of the unit in its feature map; -1 if there is none.
    """

    keys: Tensor
    units: Tensor

    @classmethod
    def empty(cls, filters: int, k: int, device: torch.device | str = "cpu") -> "TopK":
        """The state before the first candidate, with `k` entries for each filter."""
        shape = (filters, k)
        return cls(
            torch.full(shape, EMPTY, dtype=torch.int64, device=device),
            torch.full(shape, -1, dtype=torch.int64, device=device),
        )

    @property
    def threshold(self) -> Tensor:
        """The key that a candidate has to exceed."""
        return self.keys[:, -1]

    def split(self, filters: Sequence[int]) -> list["TopK"]:
        """Views of those of consecutive filters, so many each."""
        parts = zip(
            self.keys.split_with_sizes(filters), self.units.split_with_sizes(filters), strict=True
        )
        return [TopK(keys, units) for keys, units in parts]

    @staticmethod
    def joined(parts: Sequence["TopK"], axis: int) -> "TopK":
        """Those of several layers (`axis` 0), or the candidates of several streams (1)."""
        return TopK(
            torch.cat([part.keys for part in parts], axis),
            torch.cat([part.units for part in parts], axis),
        )

    def merged(self, other: "TopK") -> "TopK":
        """The k best of both, which must have no image in common; the other may be unsorted."""
        both = TopK.joined([self, other], 1)
        best = both.keys.topk(self.keys.shape[1], dim=1)
        return TopK(best.values, both.units.gather(1, best.indices))


@dataclass(frozen=True)
class Rescaled:
    """How maps were rescaled: a map of filter f is `scale_F[f]` times its true values, shifted.

    `core/graph/fold.py` folds batch norms that way. Where the scale is negative (filters
    `falling_G`), the largest true value is the smallest one of the map.
    """

    scale_F: Tensor
    offset_F: Tensor
    falling_G: Tensor | None

    @classmethod
    def of(cls, scale_F: Tensor, shift_F: Tensor) -> "Rescaled":
        """From the scale and shift of each filter; no scale is zero."""
        falling_G = (scale_F < 0).nonzero().flatten()
        offset_F = (shift_F.double() / scale_F.double()).to(torch.float32)
        return cls(scale_F.to(torch.float32), offset_F, falling_G if len(falling_G) else None)

    def true(self, values: Tensor, filters: Tensor | slice = slice(None)) -> Tensor:
        """The true values of a map's (…, F), or of these filters'; what rounds to 0 is 0."""
        offset = self.offset_F[filters]
        true = values / self.scale_F[filters] - offset
        return true.masked_fill(true.abs() <= ROUNDING * offset.abs(), 0.0)


def strongest(maps_NFHW: Tensor, falling_G: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest unit of each map, of those of `falling_G` the smallest, both (N, F).

    Returns:
        (values; row-major indices, int64). Of equal units it is the first.
    """
    if falling_G is not None:
        values_NF, units_NF = strongest(maps_NFHW)
        negated_NG, units_NF[:, falling_G] = strongest(-maps_NFHW[:, falling_G])
        values_NF[:, falling_G] = -negated_NG
        return values_NF, units_NF
    rows, columns = maps_NFHW.shape[2:]
    layout = torch.channels_last
    if maps_NFHW.device.type == "cpu" and maps_NFHW.is_contiguous(memory_format=layout):
        # One reading of the maps, in the time that `amax` takes for the values; a thread a window.
        window = (rows if len(maps_NFHW) >= torch.get_num_threads() else 1, columns)
        values_NFH1, units_NFH1 = functional.max_pool2d(maps_NFHW, window, return_indices=True)
        if values_NFH1.shape[2] == 1:
            return values_NFH1[:, :, 0, 0], units_NFH1[:, :, 0, 0]
        values_NF, row_NF = values_NFH1[..., 0].max(2)
        return values_NF, units_NFH1[..., 0].gather(2, row_NF[:, :, None])[:, :, 0]
    values_NF, row_NF = maps_NFHW.amax(3).max(2)
    line_NFW = maps_NFHW.take_along_dim(row_NF[:, :, None, None], 2)[:, :, 0]
    return values_NF, row_NF * columns + line_NFW.max(2).indices


@dataclass(frozen=True)
class Scores:
    """What is kept of the maps of some images.

    Attributes:
        highest_NF: float32, the largest unit of each map.
        units_NF: int64, its row-major index.
        other_NF: float32, what images are ranked by, if it is not that.
        several: the candidates, if a filter may have more than one of an image.
    """

    highest_NF: Tensor
    units_NF: Tensor
    other_NF: Tensor | None = None
    several: TopK | None = None

    @property
    def ranked(self) -> Tensor:
        """What images are ranked by, (N, F)."""
        return self.highest_NF if self.other_NF is None else self.other_NF

    @classmethod
    def joined(cls, parts: Sequence["Scores"], axis: int) -> "Scores":
        """The scores of several batches of images (`axis` 0), or layers (1)."""
        others = [part.other_NF for part in parts if part.other_NF is not None]
        tables = [part.several for part in parts if part.several is not None]
        return cls(
            torch.cat([part.highest_NF for part in parts], axis),
            torch.cat([part.units_NF for part in parts], axis),
            torch.cat(others, axis) if others else None,
            TopK.joined(tables, 1 - axis) if tables else None,
        )

    def true(self, rescaled: Rescaled) -> "Scores":
        """Those of the maps before they were rescaled."""
        other_NF = None if self.other_NF is None else rescaled.true(self.other_NF)
        return Scores(rescaled.true(self.highest_NF), self.units_NF, other_NF, self.several)

    def candidates(self, images_N: Tensor) -> TopK:
        """What may be among the best; `images_N` as in `score_maps`."""
        return self.several or TopK(pack(self.ranked.T, images_N), self.units_NF.T)


def score_maps(
    maps_NFHW: Tensor,
    images_N: Tensor,
    best: TopK,
    score: Ranking = Ranking.MAX,
    per_image: int = 1,
    rescaled: Rescaled | None = None,
) -> Scores:
    """Scores one layer's maps, as they are, and finds their strongest units.

    Args:
        maps_NFHW: the maps of some images.
        images_N: int64, the index of each image in the data set.
        best: the top k of other images; what cannot enter it may be left out.
        score: how images are ranked; with `per_image` above 1 by `Ranking.MAX`.
        per_image: maximum number of patches of one image among a filter's top k, P.
        rescaled: how the maps were rescaled, if they were, and `score` is not the norm; then
            `Scores.true` gives the scores of the true maps.
    """
    values_NF, units_NF = strongest(maps_NFHW, rescaled.falling_G if rescaled else None)
    highest_NF, other_NF, several = values_NF.float(), None, None
    if score is Ranking.NORM:
        other_NF = torch.linalg.vector_norm(maps_NFHW.flatten(2), dim=2, dtype=torch.float32)
    elif score is Ranking.MEAN:
        other_NF = maps_NFHW.mean((2, 3), dtype=torch.float32)
    if per_image > 1:
        true_NF = rescaled.true(highest_NF) if rescaled else highest_NF
        several = _several(maps_NFHW, true_NF, images_N, best, per_image, rescaled)
    return Scores(highest_NF, units_NF, other_NF, several)


def peaks(maps_MHW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest units of each float32 map; among equals the first in row-major order.

    Only units that no neighbour exceeds are used, since the neighbours of a strong unit are strong
    too and see nearly the same pixels.

    Returns:
        (values (M, P), descending; row-major indices (M, P) int64). If a map has fewer such units,
        the value is -inf.
    """
    around = functional.max_pool2d(maps_MHW[:, None], 3, stride=1, padding=1)[:, 0]
    left = torch.where(around == maps_MHW, maps_MHW, -torch.inf).flatten(1)
    values, places = [], []
    for _ in range(min(count, left.shape[1])):
        best = left.max(1, keepdim=True)
        values.append(best.values)
        places.append(best.indices)
        left = left.scatter(1, best.indices, -torch.inf)
    return torch.cat(values, 1), torch.cat(places, 1)


def _several(
    maps_NFHW: Tensor,
    scores_NF: Tensor,
    images_N: Tensor,
    best: TopK,
    per_image: int,
    rescaled: Rescaled | None,
) -> TopK:
    """The highest peaks of the maps that may enter the top k, (F, A), with empty entries."""
    keys_FN = pack(scores_NF.T, images_N * per_image)
    keys_FA, rows_FA = keys_FN.topk(min(best.keys.shape[1], keys_FN.shape[1]), dim=1)
    if keys_FA.device.type == "cpu":
        filters_M, slots_M = (keys_FA > best.threshold[:, None]).nonzero(as_tuple=True)
    else:  # all: how many enter is known only once the device has finished, a wait per layer
        places = torch.arange(keys_FA.numel(), device=keys_FA.device)
        filters_M, slots_M = places // keys_FA.shape[1], places % keys_FA.shape[1]
    rows_M = rows_FA[filters_M, slots_M]
    maps_MHW = maps_NFHW[rows_M, filters_M].float()
    if rescaled:
        sign_M = rescaled.scale_F[filters_M].sign()
        values_MP, units_MP = peaks(maps_MHW * sign_M[:, None, None], per_image)
        values_MP = rescaled.true((values_MP * sign_M[:, None]).T, filters_M).T
    else:
        values_MP, units_MP = peaks(maps_MHW, per_image)
    found = values_MP.shape[1]
    tickets_MP = images_N[rows_M, None] * per_image + torch.arange(found, device=images_N.device)
    missing_MP = values_MP == -torch.inf
    table = TopK.empty(keys_FA.numel(), per_image, keys_FA.device)
    places_M = filters_M * keys_FA.shape[1] + slots_M
    table.keys[places_M, :found] = torch.where(missing_MP, EMPTY, pack(values_MP, tickets_MP))
    table.units[places_M, :found] = torch.where(missing_MP, -1, units_MP)
    return TopK(table.keys.view(len(keys_FA), -1), table.units.view(len(keys_FA), -1))
