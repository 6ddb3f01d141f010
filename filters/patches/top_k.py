"""The k best of a stream, for every filter at once, in memory of filters × k.

Each candidate is one 64-bit key: the score's float32 bits, made to sort as whole numbers do, above
the candidate's ticket, counted down. So the larger key is the larger score, and of equal scores
the earlier ticket; no two candidates share a key. The k largest keys are then the same whatever
the order and the batches in which candidates arrive, and two states merge by keeping the k
largest of both.

A ticket is `image * per_image + rank`: the image's place in the data set, and the rank of the
unit among those that this image may contribute. Tickets stay below 2^32.

Shapes: F filters, K kept per filter, A any number of candidates.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY = -(2**63)
_TICKETS = 2**32


def pack(scores: Tensor, tickets: Tensor) -> Tensor:
    """Keys (int64) of finite float32 scores and int64 tickets; the shapes broadcast."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: the two are one value
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    return ordered * _TICKETS + (_TICKETS - 1 - tickets)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (float32) and tickets (int64) of keys; NaN is the score of an empty place."""
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), _TICKETS - 1 - (keys & (_TICKETS - 1))


@dataclass(frozen=True)
class TopK:
    """The best candidates so far.

    Attributes:
        keys: (F, K) int64, as told above; falling along K, `EMPTY` where there is none.
        units: (F, K) int64, row-major place of the unit in its feature map; -1 where there is none.
    """

    keys: Tensor
    units: Tensor

    @classmethod
    def empty(cls, filters: int, k: int, device: torch.device | str = "cpu") -> "TopK":
        """Nothing seen yet; `k` places for each filter."""
        shape = (filters, k)
        return cls(
            torch.full(shape, EMPTY, dtype=torch.int64, device=device),
            torch.full(shape, -1, dtype=torch.int64, device=device),
        )

    @property
    def threshold(self) -> Tensor:
        """The key that a candidate has to exceed to get in."""
        return self.keys[:, -1]

    def with_candidates(self, keys_FA: Tensor, units_FA: Tensor) -> "TopK":
        """The k best of these and the ones kept so far, none of which may be the same."""
        keys = torch.cat([self.keys, keys_FA], dim=1)
        units = torch.cat([self.units, units_FA], dim=1)
        best = keys.topk(self.keys.shape[1], dim=1)
        return TopK(best.values, units.gather(1, best.indices))

    def merged(self, other: "TopK") -> "TopK":
        """The state after both streams; they must have had no image in common."""
        return self.with_candidates(other.keys, other.units)
