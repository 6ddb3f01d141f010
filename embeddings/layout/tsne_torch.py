"""t-SNE in torch with the exact gradient, for devices on which n² is cheap.

The attraction runs over the neighbours alone, the repulsion over all pairs, in tiles that hold a
fixed number of pairs: no approximation, and memory in proportion to the number of points. The
optimiser is that of openTSNE (momentum, gains, bounded steps), so both give maps of one quality.
Method: van der Maaten and Hinton 2008, "Visualizing Data using t-SNE"; schedule: Belkina et al.
2019, "Automated optimized parameters for t-SNE".

Shapes: N points, E pairs of neighbours (both directions), R rows of a tile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_PAIRS = {"cpu": 1 << 18, "cuda": 1 << 26}
MIN_GAIN = 0.01
LONGEST_STEP = 5.0
WATCHED, TOLD = 50, 250


@dataclass(frozen=True)
class Phase:
    """Some iterations under one setting.

    Attributes:
        iterations: how many.
        exaggeration: factor on the attraction.
        learning_rate: step per unit of gradient.
        momentum: what remains of the step before.
    """

    iterations: int
    exaggeration: float
    learning_rate: float
    momentum: float = 0.8


class PairForces:
    """The pull and push between the points of a map, for fixed affinities."""

    def __init__(self, affinities: Any, device: torch.device | str) -> None:
        """Puts the affinities on the device.

        Args:
            affinities: scipy CSR matrix (N, N), symmetric, sum one.
            device: where to compute.
        """
        # float64 is unknown to MPS; the CPU beside it knows it.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.count = affinities.shape[0]
        per_row = torch.from_numpy(np.diff(affinities.indptr).astype(np.int64))
        self._per_row = per_row.to(self.device)
        self._rows_E = torch.arange(self.count).repeat_interleave(per_row).to(self.device)
        self._columns_E = torch.from_numpy(affinities.indices.astype(np.int64)).to(self.device)
        self._p_E = torch.from_numpy(affinities.data.astype(np.float32)).to(self.device)
        p = affinities.data[affinities.data > 0]
        self._negative_entropy = float((p * np.log(p)).sum())
        self._total = float(p.sum())
        pairs = TILE_PAIRS.get(self.device.type, TILE_PAIRS["cpu"])
        self._tile_rows = max(1, pairs // max(self.count, 1))

    def _repulsion(self, map_N2: Tensor) -> tuple[Tensor, float]:
        """Push on every point times Z, and Z, the sum over all pairs of 1 / (1 + d²)."""
        x, y = map_N2[:, 0].contiguous(), map_N2[:, 1].contiguous()
        ones_N3 = torch.cat([torch.ones_like(map_N2[:, :1]), map_N2], dim=1)
        push_N2 = torch.empty_like(map_N2)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, self.count, self._tile_rows):
            part = slice(start, start + self._tile_rows)
            q = (x[part, None] - x).square_()
            difference = y[part, None] - y
            q.addcmul_(difference, difference).add_(1).reciprocal_()
            q.diagonal(start).zero_()
            # In place: a small tensor kept from each tile would leave holes that no tile fits into.
            total += q.sum(1).double().sum()
            weighted_R3 = q.square_() @ ones_N3
            push_N2[part] = map_N2[part] * weighted_R3[:, :1] - weighted_R3[:, 1:]
        return push_N2, float(total)

    def _neighbours(self, map_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Difference (E, 2) and q = 1 / (1 + d²) (E,) of every pair of neighbours."""
        difference = map_N2[self._rows_E] - map_N2[self._columns_E]
        return difference, difference.square().sum(1).add_(1).reciprocal_()

    def gradient(self, map_N2: Tensor, exaggeration: float = 1.0) -> Tensor:
        """A quarter of the gradient of the divergence, the affinities being exaggerated."""
        push_N2, total = self._repulsion(map_N2)
        difference, q_E = self._neighbours(map_N2)
        pulls = difference.mul_((self._p_E * q_E * exaggeration)[:, None])
        pull_N2 = torch.segment_reduce(pulls, "sum", lengths=self._per_row, unsafe=True)
        return pull_N2 - push_N2 / total

    def divergence(self, map_N2: Tensor) -> float:
        """The Kullback-Leibler divergence of the map from the affinities, in nats; exact."""
        _, total = self._repulsion(map_N2)
        _, q_E = self._neighbours(map_N2)
        expected = float((self._p_E.double() * q_E.double().log()).sum())
        return self._negative_entropy - expected + self._total * float(np.log(total))


class Descent:
    """Gradient descent with momentum and a gain for every coordinate."""

    def __init__(self, map_N2: Tensor) -> None:
        self.map_N2 = map_N2.clone()
        self._step = torch.zeros_like(map_N2)
        self._gains = torch.ones_like(map_N2)

    def advance(self, gradient: Tensor, phase: Phase) -> None:
        """One step downhill."""
        flipped = self._step.sign() != gradient.sign()
        self._gains = torch.where(flipped, self._gains + 0.2, self._gains * 0.8 + MIN_GAIN)
        self._step.mul_(phase.momentum).sub_(self._gains * gradient * phase.learning_rate)
        lengths = self._step.norm(dim=1, keepdim=True)
        self._step.mul_((LONGEST_STEP / lengths.clamp(min=1e-30)).clamp_(max=1))
        self.map_N2.add_(self._step)
        self.map_N2.sub_(self.map_N2.mean(0))


def optimise(
    forces: PairForces,
    initial_N2: NDArray[np.float64],
    phases: tuple[Phase, ...],
    *,
    progress: Callable[[int], None] = lambda _steps: None,
    watch: Callable[[int, float], None] = lambda _iteration, _divergence: None,
) -> NDArray[np.float32]:
    """Moves the points of a map until it shows the affinities.

    Args:
        forces: between the points.
        initial_N2: where they start, spread about 1e-4.
        phases: one after the other.
        progress: called with the number of iterations just done.
        watch: called every 250 iterations with their number and the divergence.

    Returns:
        (N, 2) the map, centred.
    """
    total = 0
    descent = Descent(torch.from_numpy(initial_N2).float().to(forces.device))
    for phase in phases:
        for done in range(1, phase.iterations + 1):
            gradient = forces.gradient(descent.map_N2, phase.exaggeration)
            descent.advance(gradient, phase)
            if done % WATCHED == 0 or done == phase.iterations:
                progress((done - 1) % WATCHED + 1)
            total += 1
            if total % TOLD == 0:
                watch(total, forces.divergence(descent.map_N2))
    return np.asarray(descent.map_N2.cpu().numpy())
