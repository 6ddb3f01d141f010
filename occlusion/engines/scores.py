"""What an engine finds out, and the sheet it fills in batch by batch.

Shapes: N positions of a batch, P positions, K classes, C channels of the watched layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scores:
    """What the network said, on its device.

    Attributes:
        base_logits_K: float32 logits of the untouched image.
        logits_PK: float32 logits at each position.
        base_activation: with a layer, the sum of its strongest map on the untouched image.
        activation_P: the same map's sum at each position.
        activation_channel: which map that is: the one with the largest sum.
        given_up: the difference for which the incremental engine was given up; None if it was not.
    """

    base_logits_K: Tensor
    logits_PK: Tensor
    base_activation: float | None = None
    activation_P: Tensor | None = None
    activation_channel: int | None = None
    given_up: float | None = None


class ScoreSheet:
    """The scores of a run under way; the untouched image's come first.

    Attributes:
        channel: the watched layer's strongest map on the untouched image; None without a layer.
    """

    def __init__(self, positions: int, base_logits_1K: Tensor, base_sums_1C: Tensor | None) -> None:
        self.channel = None if base_sums_1C is None else int(base_sums_1C[0].argmax())
        self._base_logits_K, self._base_sums_1C = base_logits_1K[0], base_sums_1C
        device, classes = base_logits_1K.device, base_logits_1K.shape[1]
        self._logits_PK = torch.empty(positions, classes, device=device)
        self._sums_P = None if base_sums_1C is None else torch.empty(positions, device=device)

    def write(self, where: slice | Tensor, logits_NK: Tensor, sums_N: Tensor | None) -> None:
        """Notes a batch: its positions, their logits and, with a layer, the sums of `channel`."""
        self._logits_PK[where] = logits_NK
        if self._sums_P is not None and sums_N is not None:
            self._sums_P[where] = sums_N

    def scores(self) -> Scores:
        """All of it, once every position is written."""
        base = None if self._base_sums_1C is None else float(self._base_sums_1C[0, self.channel])
        return Scores(self._base_logits_K, self._logits_PK, base, self._sums_P, self.channel)
