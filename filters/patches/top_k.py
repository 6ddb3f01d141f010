"""The k best of a stream, for every filter at once, in memory of filters × k.

Each candidate is one 64-bit key: the score's float32 bits, mapped so that they sort as integers,
above the candidate's ticket, counted down. So the larger key has the larger score, or among equal
scores the earlier ticket, and all keys differ. The k largest keys do not depend on the order or the
batches of the candidates, and two states merge by keeping the k largest keys of both.

Scoring a map is a plain reduction. Its strongest unit is located only for maps that enter the top
k, which after the first few batches are few; so a scan is about as fast as the forward pass.

A ticket is `image * per_image + rank`: the index of the image in the data set, and the rank of the
unit among those of this image. Tickets are below 2^32.

Shapes: N images, F filters, H W rows and columns of a map, K kept per filter, A candidates per
filter, M maps, P patches per image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.filters.patches.options import Ranking

EMPTY = -(2**63)
_TICKETS = 2**32
GATHERED, GATHERED_ON_DEVICE = 32, 3
"""Below one map in this many, gathering the maps is faster than reducing the rows of all maps.

On the CPU as measured; on a GPU by bytes: a gathered map is read, written and read again.
"""

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

    def with_candidates(self, keys_FA: Tensor, units_FA: Tensor) -> "TopK":
        """The k best of these candidates, which must be new, and the ones kept so far."""
        keys = torch.cat([self.keys, keys_FA], dim=1)
        units = torch.cat([self.units, units_FA], dim=1)
        best = keys.topk(self.keys.shape[1], dim=1)
        return TopK(best.values, units.gather(1, best.indices))

    def merged(self, other: "TopK") -> "TopK":
        """The state after both streams, which must have no image in common."""
        return self.with_candidates(other.keys, other.units)


@dataclass(frozen=True)
class Rescaled:
    """How maps were rescaled: a map of filter f is `scale_F[f]` times its true values, shifted.

    `core/graph/fold.py` folds batch norms that way. Where the scale is negative (filters
    `falling_G`), the largest true value is the smallest one of the map. Signed values are those of
    the map, negated there, so that they sort as the true ones do.
    """

    size_F: Tensor
    sign_F: Tensor
    offset_F: Tensor
    falling_G: Tensor | None

    @classmethod
    def of(cls, scale_F: Tensor, shift_F: Tensor) -> "Rescaled":
        """From the scale and shift of each filter; no scale is zero."""
        falling_G = (scale_F < 0).nonzero().flatten()
        offset_F = (shift_F.double() / scale_F.double()).to(torch.float32)
        size_F = scale_F.abs().to(torch.float32)
        return cls(size_F, scale_F.sign(), offset_F, falling_G if len(falling_G) else None)

    def signed(self, values_MA: Tensor, filters_M: Tensor) -> Tensor:
        """Values of some filters' maps, signed."""
        return values_MA if self.falling_G is None else values_MA * self.sign_F[filters_M, None]

    def true(self, signed: Tensor, filters: Tensor | slice = slice(None)) -> Tensor:
        """The true values of signed ones (…, F), or of these filters; what rounds to 0 is 0."""
        offset = self.offset_F[filters]
        true = signed / self.size_F[filters] - offset
        return true.masked_fill(true.abs() <= ROUNDING * offset.abs(), 0.0)


def _line_maxima(maps_NFHW: Tensor, rescaled: Rescaled | None = None) -> Tensor:
    """The largest unit of each row of each map, (N, F, H); signed."""
    if rescaled and rescaled.falling_G is not None:
        lines_NFH = _line_maxima(maps_NFHW)
        lines_NFH[:, rescaled.falling_G] = _line_maxima(-maps_NFHW[:, rescaled.falling_G])
        return lines_NFH
    if maps_NFHW.is_contiguous() or maps_NFHW.device.type != "cpu":
        return maps_NFHW.amax(3)
    # Channels last: pooling takes half the time of `amax`.
    return functional.max_pool2d(maps_NFHW, (1, maps_NFHW.shape[3]))[..., 0]


def map_scores(maps_NFHW: Tensor, score: Ranking, rescaled: Rescaled | None = None) -> Tensor:
    """One float32 number per map, (N, F); of rescaled maps not the norm."""
    if score is Ranking.NORM:
        norms: Tensor = torch.linalg.vector_norm(maps_NFHW.flatten(2), dim=2, dtype=torch.float32)
        return norms
    if score is Ranking.MAX:
        scores_NF = _line_maxima(maps_NFHW, rescaled).amax(2).to(torch.float32)
        return rescaled.true(scores_NF) if rescaled else scores_NF
    scores_NF = maps_NFHW.mean((2, 3), dtype=torch.float32)
    return rescaled.true(scores_NF * rescaled.sign_F) if rescaled else scores_NF


def peaks(maps_MHW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest units of each float32 map; among equals the first in row-major order.

    With a count above 1 only units that no neighbour exceeds are used, since the neighbours of a
    strong unit are strong too and see nearly the same pixels.

    Returns:
        (values (M, P), descending; row-major indices (M, P) int64). If a map has fewer such units,
        the value is -inf.
    """
    if count == 1:
        best = maps_MHW.flatten(1).max(1, keepdim=True)
        return best.values, best.indices
    around = functional.max_pool2d(maps_MHW[:, None], 3, stride=1, padding=1)[:, 0]
    left = torch.where(around == maps_MHW, maps_MHW, -torch.inf).flatten(1)
    values, places = [], []
    for _ in range(min(count, left.shape[1])):
        best = left.max(1, keepdim=True)
        values.append(best.values)
        places.append(best.indices)
        left = left.scatter(1, best.indices, -torch.inf)
    return torch.cat(values, 1), torch.cat(places, 1)


def _gathered(
    maps_NFHW: Tensor, rows_M: Tensor, filters_M: Tensor, rescaled: Rescaled | None
) -> Tensor:
    """Some maps (M, H, W) in float32, signed."""
    maps_MHW = maps_NFHW[rows_M, filters_M].to(torch.float32)
    return (
        rescaled.signed(maps_MHW.flatten(1), filters_M).view_as(maps_MHW) if rescaled else maps_MHW
    )


def _strongest(
    maps_NFHW: Tensor, rows_M: Tensor, filters_M: Tensor, rescaled: Rescaled | None = None
) -> Tensor:
    """The largest unit (M, 1) of some maps; of many maps without gathering them."""
    above = GATHERED if maps_NFHW.device.type == "cpu" else GATHERED_ON_DEVICE
    if above * len(rows_M) < maps_NFHW.shape[0] * maps_NFHW.shape[1]:
        return peaks(_gathered(maps_NFHW, rows_M, filters_M, rescaled), 1)[1]
    width = maps_NFHW.shape[3]
    lines_NFH = _line_maxima(maps_NFHW, rescaled)
    line_M = lines_NFH[rows_M, filters_M].max(1).indices
    units_MW = maps_NFHW[rows_M, filters_M, line_M]
    if rescaled:
        units_MW = rescaled.signed(units_MW, filters_M)
    return (line_M * width + units_MW.max(1).indices)[:, None]


def ranked(
    best: TopK,
    maps_NFHW: Tensor,
    scores_NF: Tensor,
    images_N: Tensor,
    per_image: int,
    rescaled: Rescaled | None = None,
) -> TopK:
    """Adds one batch to the top k.

    Args:
        best: the top k before.
        maps_NFHW: the batch's feature maps.
        scores_NF: their `map_scores`; with `per_image` above 1, by `Ranking.MAX`.
        images_N: int64, the index of each image in the data set; none was added before.
        per_image: maximum number of patches of one image among a filter's top k, P.
        rescaled: how the maps were rescaled, if they were.
    """
    keys_FN = pack(scores_NF.T, images_N * per_image)
    keys_FA, rows_FA = keys_FN.topk(min(best.keys.shape[1], keys_FN.shape[1]), dim=1)
    if keys_FA.device.type == "cpu":
        filters_M, slots_M = (keys_FA > best.threshold[:, None]).nonzero(as_tuple=True)
    else:  # all: how many enter is known only once the device has finished, a wait per layer
        places = torch.arange(keys_FA.numel(), device=keys_FA.device)
        filters_M, slots_M = places // keys_FA.shape[1], places % keys_FA.shape[1]
    if not len(filters_M):
        return best
    rows_M = rows_FA[filters_M, slots_M]
    if per_image == 1:
        values_MP = scores_NF[rows_M, filters_M][:, None]
        units_MP = _strongest(maps_NFHW, rows_M, filters_M, rescaled)
    else:
        values_MP, units_MP = peaks(_gathered(maps_NFHW, rows_M, filters_M, rescaled), per_image)
        if rescaled:
            values_MP = rescaled.true(values_MP.T, filters_M).T
    tickets_MP = images_N[rows_M, None] * per_image + torch.arange(
        values_MP.shape[1], device=images_N.device
    )
    missing_MP = values_MP == -torch.inf
    keys_MP = torch.where(missing_MP, EMPTY, pack(values_MP, tickets_MP))
    new = TopK.empty(keys_FA.numel(), values_MP.shape[1], keys_FA.device)
    places_M = filters_M * keys_FA.shape[1] + slots_M
    new.keys[places_M] = keys_MP
    new.units[places_M] = torch.where(missing_MP, -1, units_MP)
    filters = len(keys_FA)
    return best.with_candidates(new.keys.view(filters, -1), new.units.view(filters, -1))
