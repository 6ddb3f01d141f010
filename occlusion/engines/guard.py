"""The incremental engine, checked on every run: a few positions go through the whole network too.

The two engines give the same numbers up to rounding. Should they ever not, for a network that
nobody has met yet, no number of the fast one leaves: the run, and every one after it, is the full
engine's.
Shapes: N positions repeated, P positions, K classes, C channels of the watched layer.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cnnviz.core.device import rounding
from cnnviz.occlusion.engines.full import FullEngine, cover
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import Network
from cnnviz.occlusion.engines.scores import Scores

SHARE = 0.03
"""Of a run's predicted time, what repeating positions may take; one is always repeated."""
_log = logging.getLogger("cnnviz")


class GuardedEngine:
    """The incremental engine until it is wrong, then the full one; serves many images.

    Attributes:
        difference: what made it fall back, the largest |difference| of a score between the two at
            a repeated position, infinite where one of them alone is not finite; None as long as
            they agree.
    """

    def __init__(
        self, network: Network, fast: IncrementalEngine, full: FullEngine, name: str
    ) -> None:
        """Guards `fast` by `full`, both of one network that goes by `name`."""
        self._network, self._fast, self._full, self._model = network, fast, full, name
        self._runs = 0
        self.difference: float | None = None

    @property
    def name(self) -> str:
        """Which of the two gives the numbers."""
        return self._fast.name if self.difference is None else self._full.name

    @property
    def note(self) -> str | None:
        """Nothing to say beforehand."""
        return self._fast.note

    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = lambda _steps: None,
    ) -> Scores:
        """See `Engine.run`."""
        if self.difference is not None:
            scores = self._full.run(image_3HW, fill_3HW, boxes_P4, progress)
            return replace(scores, given_up=self.difference)
        scores = self._fast.run(image_3HW, fill_3HW, boxes_P4, progress)
        picked_N = self._picked(boxes_P4)
        self._runs += 1
        difference = self._beyond_rounding(image_3HW, fill_3HW, boxes_P4, picked_N, scores)
        if difference is None:
            return scores
        self.difference = difference
        _log.warning(
            "%s: the incremental engine %s the full one, which is used instead; "
            "please report this network",
            self._model,
            f"is off by {difference:.3g} from"
            if math.isfinite(difference)
            else "gives NaN or infinite numbers, unlike",
        )
        return replace(self._full.run(image_3HW, fill_3HW, boxes_P4), given_up=difference)

    def _picked(self, boxes_P4: Tensor) -> Tensor:
        """A position of each group, or of some groups: others at each image, so that all come."""
        groups, _axes = self._fast.plan(boxes_P4.cpu().numpy())
        one = self._fast.predict_full(boxes_P4[:1], 1)
        affordable = max(1, int(SHARE * self._fast.predict(boxes_P4) / one))
        count = min(affordable, len(groups))
        turn = self._runs * count
        taken = [groups[(turn + number) % len(groups)].positions_N for number in range(count)]
        return torch.tensor([int(positions[turn % len(positions)]) for positions in taken])

    @torch.inference_mode()
    def _beyond_rounding(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        picked_N: Tensor,
        scores: Scores,
    ) -> float | None:
        """The largest difference at the picked positions; None where it is no more than rounding.

        Scores that are not finite in both are equal: what is said of them is said later.
        """
        network = self._network
        image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
        worst = None
        for position in picked_N.tolist():
            box_14 = boxes_P4[position : position + 1].to(network.device)
            logits_1K, sums_1C = network.run(cover(image, fill, box_14))
            pairs = [(logits_1K[0], scores.logits_PK[position])]
            if sums_1C is not None and scores.activation_P is not None:
                pairs.append((sums_1C[0, scores.activation_channel], scores.activation_P[position]))
            for expected, got in pairs:
                largest = expected.abs().max() if expected.isfinite().all() else 1.0
                allowed = rounding(network.dtype) * float(largest)
                same = torch.isclose(got, expected, rtol=0, atol=allowed, equal_nan=True)
                if not same.all():
                    apart = (got - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)
                    worst = max(worst or 0.0, float(apart[~same].max()))
        return worst
