"""Which engine runs: the plain one, the incremental one, or whichever costs less.

Both give the same numbers up to rounding; `Verifier` shows it on a sample.
Shapes: P positions, H W rows and columns.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.load import Model
from cnnviz.occlusion.choices import EngineChoice
from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.guard import GuardedEngine
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import Network, prepare
from cnnviz.occlusion.engines.scores import Scores

SAMPLE = 32
# Counted gains came out up to a tenth too high where they are small, so the incremental engine must
# promise more than that it is no slower.
MARGIN = 0.9


class Engine(Protocol):
    """Runs covered images through a network it was prepared for; one engine serves many images."""

    @property
    def name(self) -> str:
        """`full` or `incremental`."""

    @property
    def note(self) -> str | None:
        """A line that the user should see, such as why another engine runs than was asked for."""

    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = ...,
    ) -> Scores:
        """Scores of the image with the fill pasted inside each box.

        Args:
            image_3HW: normalised, float32.
            fill_3HW: of the same size: what the masks show.
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
) -> Engine:
    """Prepares an engine for a model and a set of positions; many images may go through it.

    Args:
        model: left as it is.
        choice: `auto` takes the engine with the smaller predicted cost.
        boxes_P4: the positions that will be run, as for `Engine.run`.
        layer: a layer whose strongest map is summed at each position.
        batch_size: images at a time; None for automatic.

    Raises:
        UsageError: the layer takes no part in the forward pass.
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
        note = "it mixes the pictures of a batch"
        network, batch_size = replace(network, graph=None, reason=note), 1
    if model.repeat > 1:
        note = f"its answers are averaged over {model.repeat} passes"
        network = replace(network, graph=None, reason=note, repeat=model.repeat)
    return choose(network, choice, boxes_P4, batch_size=batch_size, name=model.name)


def choose(
    network: Network,
    choice: EngineChoice,
    boxes_P4: Tensor,
    *,
    batch_size: int | None = None,
    name: str = "the network",
) -> Engine:
    """The engine for a prepared network; `full` with a note where incremental is impossible."""
    full = FullEngine(network, batch_size=batch_size)
    if choice is EngineChoice.FULL:
        return full
    try:
        if network.graph is None:
            raise Untraceable(network.reason or "no graph")
        incremental = IncrementalEngine(network, batch_size=batch_size)
    except Untraceable as error:
        note = f"{name}: {error}; using the full engine"
        return FullEngine(network, batch_size=batch_size, note=note)
    guarded = GuardedEngine(network, incremental, full, name)
    if choice is EngineChoice.INCREMENTAL:
        return guarded
    predicted = incremental.predict(boxes_P4)
    return (
        guarded
        if predicted < MARGIN * incremental.predict_full(boxes_P4, full.batch_size)
        else full
    )


class Verifier:
    """Has the other engine repeat a seeded sample of a run's positions; serves many images.

    Attributes:
        note: why there is nothing to compare, where only one engine can run the network.
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
        """The largest |logit difference| to a run's scores; None where only one engine can run.

        Args:
            image_3HW: what the run was given.
            fill_3HW: likewise.
            scores: what it gave, at all positions.
        """
        if self.note is not None:
            return None
        logits_PK = self._other.run(image_3HW, fill_3HW, self._boxes_P4).logits_PK
        ran_PK = scores.logits_PK[self._picked.to(scores.logits_PK.device)]
        return float((logits_PK - ran_PK).abs().max())
