"""Which engine runs: the full one, the incremental one, or the one with the lower predicted cost.

Both return the same numbers up to rounding. `GuardedEngine` checks this in every run: a few
positions go through the whole network as well, and if an unknown kind of network ever gives other
numbers, none of the incremental engine's numbers are used and the full engine takes over.
`Verifier` compares a larger sample, on request.
Shapes: N positions repeated, P positions, H W rows and columns, K classes, C channels of the
watched layer.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.load import Model
from cnnviz.occlusion.engines.full import FullEngine, difference_alone
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import Network, Scores, prepare
from cnnviz.occlusion.options import EngineChoice

SAMPLE = 32
"""Positions that `Verifier` repeats."""
MARGIN = 0.9
"""Predicted gains are up to a tenth too high where they are small, so `auto` requires more."""
GUARD_SHARE = 0.03
"""Share of a run's predicted time for repeated positions; at least one is always repeated."""
_log = logging.getLogger("cnnviz")


class Engine(Protocol):
    """Runs occluded images through a network that it was prepared for; reusable for many images."""

    @property
    def name(self) -> str:
        """`full` or `incremental`."""

    @property
    def note(self) -> str | None:
        """A message for the user, such as why another engine runs than was requested."""

    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = ...,
    ) -> Scores:
        """Returns the scores of the image with the fill pasted inside each box.

        Args:
            image_3HW: normalised, float32.
            fill_3HW: what the masks show; same size.
            boxes_P4: int64 rows y0, x0, y1, x1 (ends excluded), inside the image, of any sizes.
            progress: called with the number of positions just done.
        """


def make_engine(
    model: Model,
    choice: EngineChoice,
    *,
    boxes_P4: Tensor,
    layer: str | None = None,
    batch_size: int | None = None,
    cuda_graphs: bool = False,
) -> Engine:
    """Prepares an engine for a model and a set of positions; it can run many images.

    Args:
        model: not modified.
        choice: `auto` takes the engine with the lower predicted cost.
        boxes_P4: the positions that will be run, as for `Engine.run`.
        layer: a layer whose strongest map is summed at each position.
        batch_size: images at a time; None for automatic.
        cuda_graphs: let the incremental engine replay its launches where images repeat them.
    """
    network = prepare(
        model.module,
        model.input_size,
        channels=model.preprocess.channels,
        device=model.device,
        dtype=model.precision.dtype,
        layer=layer,
    )
    if model.behaviour.mixes_batch:
        note = "it mixes the images of a batch"
        network, batch_size = replace(network, graph=None, reason=note), 1
    if model.repeat > 1:
        note = f"its answers are averaged over {model.repeat} passes"
        network = replace(network, graph=None, reason=note, repeat=model.repeat)
    return choose(
        network,
        choice,
        boxes_P4,
        batch_size=batch_size,
        # A graph would go on reading what a target froze of the image that was recorded.
        cuda_graphs=cuda_graphs and model.target is None,
        name=model.name,
    )


def choose(
    network: Network,
    choice: EngineChoice,
    boxes_P4: Tensor,
    *,
    batch_size: int | None = None,
    cuda_graphs: bool = False,
    name: str = "the network",
) -> Engine:
    """Returns an engine for a prepared network; `full` with a note if incremental is impossible."""
    choice, full = EngineChoice(choice), FullEngine(network, batch_size=batch_size, model=name)
    if choice is EngineChoice.FULL:
        return full
    try:
        if network.graph is None:
            raise Untraceable(network.reason or "no graph")
        incremental = IncrementalEngine(network, batch_size=batch_size, cuda_graphs=cuda_graphs)
    except Untraceable as error:
        note = f"{name}: {error}; using the full engine"
        return FullEngine(network, batch_size=batch_size, note=note, model=name)
    guarded = GuardedEngine(network, incremental, full, name)
    if choice is EngineChoice.INCREMENTAL:
        return guarded
    predicted = incremental.predict(boxes_P4)
    limit = MARGIN * incremental.predict_full(boxes_P4, full.batch_size)
    return guarded if predicted < limit else full


class GuardedEngine:
    """The incremental engine until it is wrong, then the full one; reusable for many images.

    Attributes:
        difference: None as long as the engines agree; else the largest |difference| of a score at
            a repeated position, infinite where only one of the two is finite.
    """

    def __init__(
        self, network: Network, fast: IncrementalEngine, full: FullEngine, name: str
    ) -> None:
        """Guards `fast` by `full`; both run `network`, a model called `name`."""
        self._network, self._fast, self._full, self._model = network, fast, full, name
        self._runs = 0
        self.note = fast.note
        self.difference: float | None = None

    @property
    def name(self) -> str:
        """The engine whose numbers are returned."""
        return self._fast.name if self.difference is None else self._full.name

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
        boxes_N4 = boxes_P4[picked_N.to(boxes_P4.device)]
        difference = difference_alone(
            self._network, image_3HW, fill_3HW, boxes_N4, scores.of(picked_N)
        )
        if difference == 0:
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
        """Picks one position each of some groups; different ones for each image."""
        groups = self._fast.plan(boxes_P4.cpu().numpy()).groups
        one = self._fast.predict_full(boxes_P4[:1], 1)
        affordable = max(1, int(GUARD_SHARE * self._fast.predict(boxes_P4) / one))
        count = min(affordable, len(groups))
        turn = self._runs * count
        taken = [groups[(turn + number) % len(groups)].positions_N for number in range(count)]
        return torch.tensor([int(positions[turn % len(positions)]) for positions in taken])


class Verifier:
    """Repeats a seeded sample of a run's positions with the other engine; reusable for many images.

    Attributes:
        note: why there is no comparison, if only one engine can run the network.
    """

    def __init__(self, model: Model, engine: Engine, boxes_P4: Tensor, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._picked = torch.randperm(len(boxes_P4), generator=generator)[:SAMPLE].sort().values
        self._boxes_P4 = boxes_P4.cpu()[self._picked]
        ran_full = engine.name == FullEngine.name
        choice = EngineChoice.INCREMENTAL if ran_full else EngineChoice.FULL
        self._other = make_engine(model, choice, boxes_P4=self._boxes_P4)
        self.note = self._other.note

    def difference(self, image_3HW: Tensor, fill_3HW: Tensor, scores: Scores) -> float | None:
        """Returns the largest |logit difference| to a run's scores; None if `note` is set."""
        if self.note is not None:
            return None
        logits_PK = self._other.run(image_3HW, fill_3HW, self._boxes_P4).logits_PK
        ran_PK = scores.logits_PK[self._picked.to(scores.logits_PK.device)]
        return float((logits_PK - ran_PK).abs().max())
