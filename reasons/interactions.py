"""Which cells of an image the network needs together, and which can replace each other.

The image is cut into a grid of cells. d(i) is what occluding cell i takes from the class's score,
d(ij) what occluding both i and j takes. What both take beyond what each takes alone,

    beyond(ij) = d(ij) - d(i) - d(j),

is positive where either cell would do (redundancy: each alone can be spared, both cannot), and
negative where both are needed (conjunction: without one of them the other is worth less). It is 0
where scores add. With the sign reversed it is the interaction of i and j in the presence of all
other cells (Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction among
players in cooperative games"): as players that raise the score, redundant cells are sub-additive.

For each cell i, the image with i occluded becomes the image of an engine's run, and the later cells
its masks: the engine's plan depends on the masks alone, so only the baseline is new. The values
depend on the fill, so they are measured with several, and a pair is named only if all agree.
Shapes: T targets, F fills, L cells, P positions and pairs, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import rounding
from cnnviz.core.errors import UsageError
from cnnviz.core.models.load import Model
from cnnviz.occlusion.engines.choose import Engine, make_engine
from cnnviz.occlusion.engines.full import cover
from cnnviz.occlusion.experiment import DEFAULT_SCORES
from cnnviz.occlusion.maps import class_scores
from cnnviz.occlusion.masks import fill_picture
from cnnviz.occlusion.options import EngineChoice
from cnnviz.reasons.results import Interactions, Pair, Relation
from cnnviz.reasons.segments import cells

FILLS = ("mean", "blur", "noise")
"""The fills that must agree, besides the run's own."""
KINDS = (Relation.NONE, Relation.REDUNDANT, Relation.CONJUNCTIVE)
SMALLEST = 0.05
"""Share of the largest drop, of a cell or a pair, below which a pair is not named."""


class Interacting:
    """Measures the interactions of cells; set up once for a model, for any number of images."""

    def __init__(
        self,
        model: Model,
        *,
        grid: int = 7,
        fill: str = FILLS[0],
        engine: EngineChoice = EngineChoice.AUTO,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepares the engine.

        Args:
            model: not modified.
            grid: cells along each side.
            fill: one more fill, besides `FILLS`.
            engine: `auto` takes the one with the lower predicted cost.
            batch_size: images at a time; None for automatic.
            seed: of the noise.

        Raises:
            UsageError: the image has fewer pixels than the grid cells.
        """
        if grid > min(model.input_size):
            rows, columns = model.input_size
            raise UsageError(
                f"--grid {grid} is finer than the image of {rows}x{columns} pixels; "
                f"it takes at most {min(rows, columns)}"
            )
        self._model, self._grid, self._seed = model, grid, seed
        self.fills = tuple(dict.fromkeys((fill, *FILLS)))
        self.boxes_L4 = cells(model.input_size, grid, grid)
        usual = self.boxes_L4[len(self.boxes_L4) // 2 :]  # half of the cells: the mean of the runs
        self._engine: Engine = make_engine(model, engine, batch_size=batch_size, boxes_P4=usual)
        self.note = self._engine.note

    @property
    def positions(self) -> int:
        """How many occluded images one run takes, with all fills."""
        count = len(self.boxes_L4)
        return len(self.fills) * (count + count * (count - 1) // 2)

    def run(
        self,
        image: WorkingImage,
        targets: Sequence[int],
        progress: Callable[[int], None] = lambda _steps: None,
    ) -> list[Interactions]:
        """Measures all pairs, for each of some classes.

        Args:
            image: of the model's input size.
            targets: indices of classes, or outputs.
            progress: called with the number of positions just done.
        """
        model, count = self._model, len(self.boxes_L4)
        normalise = model.preprocess.normalise
        original = normalise(image.pixels).to(model.device)
        fills = [
            normalise(fill_picture(name, image.pixels, model.preprocess, self._seed))
            for name in self.fills
        ]
        chosen = list(targets)
        drops_TFL = torch.zeros(len(chosen), len(fills), count, dtype=torch.float64)
        both_TFLL = torch.zeros(len(chosen), len(fills), count, count, dtype=torch.float64)
        base_T, scale = drops_TFL[:, 0, 0], 0.0
        # Fills innermost: the engine keeps the plan of the last set of masks.
        for cell in range(-1, count - 1):
            for number, fill in enumerate(fills):
                other, covered = fill.to(model.device), original
                if cell >= 0:
                    box_14 = self.boxes_L4[cell : cell + 1].to(model.device)
                    covered = cover(original, other, box_14)[0].contiguous()
                scores = self._engine.run(covered, other, self.boxes_L4[cell + 1 :], progress)
                values_TP = self._values(scores.logits_PK, image)[:, chosen].T
                if cell < 0:
                    base_T = self._values(scores.base_logits_K[None], image)[0, chosen]
                    scale = float(scores.base_logits_K.abs().max())
                    drops_TFL[:, number] = base_T[:, None] - values_TP
                else:
                    both_TFLL[:, number, cell, cell + 1 :] = base_T[:, None] - values_TP
        return [
            self._result(drops_FL, both_FLL, scale)
            for drops_FL, both_FLL in zip(drops_TFL, both_TFLL, strict=True)
        ]

    def _values(self, logits_PK: Tensor, image: WorkingImage) -> Tensor:
        """The score of each class in each row, (P, K) float64."""
        model = self._model
        logits_PK = model.finite(model.head.logits(logits_PK.cpu()), image.path)
        return class_scores(logits_PK, DEFAULT_SCORES[model.head.kind], model.head)

    def _result(self, drops_FL: Tensor, both_FLL: Tensor, scale: float) -> Interactions:
        model, count = self._model, len(self.boxes_L4)
        first_P, second_P = torch.triu_indices(count, count, 1)
        first_FP, second_FP = drops_FL[:, first_P], drops_FL[:, second_P]
        both_FP = both_FLL[:, first_P, second_P]
        beyond_FP = both_FP - first_FP - second_FP
        largest = max(float(values.mean(0).abs().max()) for values in (drops_FL, both_FP))
        smallest = max(SMALLEST * largest, rounding(model.precision.dtype) * scale)
        redundant_P = ((beyond_FP >= smallest) & (both_FP > 0)).all(0)
        conjunctive_P = ((beyond_FP <= -smallest) & (first_FP > 0) & (second_FP > 0)).all(0)
        numbers_6P = torch.stack(
            [
                *(values.mean(0) for values in (first_FP, second_FP, both_FP, beyond_FP)),
                *(beyond_FP.amin(0), beyond_FP.amax(0)),
            ]
        )
        kinds = (redundant_P.int() + 2 * conjunctive_P.int()).tolist()
        every = _pairs(first_P.tolist(), second_P.tolist(), kinds, numbers_6P.T.tolist())
        named = [pair for pair in every if pair.relation is not Relation.NONE]
        beyond_FLL = torch.zeros_like(both_FLL)
        beyond_FLL[:, first_P, second_P] = beyond_FLL[:, second_P, first_P] = beyond_FP
        head = model.head
        return Interactions(
            grid=(self._grid, self._grid),
            boxes=tuple(map(tuple, self.boxes_L4.tolist())),
            score=DEFAULT_SCORES[head.kind].value if head.has_classes else head.reading_name,
            drops=tuple(drops_FL.mean(0).tolist()),
            fills=self.fills,
            engine=self._engine.name,
            passes=self.positions,
            smallest=smallest,
            of_pairs=len(every),
            pairs=tuple(sorted(named, key=lambda pair: -pair.certain)),
            every=every,
            beyond_FLL=beyond_FLL,
        )


def _pairs(
    firsts: Sequence[int],
    seconds: Sequence[int],
    kinds: Sequence[int],
    numbers: Sequence[Sequence[float]],
) -> tuple[Pair, ...]:
    """The records of pairs; a kind is the place of its relation in `KINDS`."""
    return tuple(
        Pair(
            first=first,
            second=second,
            first_drop=first_drop,
            second_drop=second_drop,
            both=both,
            beyond=beyond,
            lowest=lowest,
            highest=highest,
            relation=KINDS[kind],
        )
        for first, second, kind, (first_drop, second_drop, both, beyond, lowest, highest) in zip(
            firsts, seconds, kinds, numbers, strict=True
        )
    )
