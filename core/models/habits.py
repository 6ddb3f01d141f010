"""What a network does that a plain function of one picture would not: found out by trying.

Every analysis takes it that the answer to a picture depends on that picture alone, and is the same
each time. Batch statistics at evaluation, a maximum over the batch or minibatch deviation break the
first, dropout that nobody switches off breaks the second. Two random pictures tell: alone, again,
and together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from cnnviz.core.device import is_out_of_memory, rounding
from cnnviz.core.errors import USER_CODE_ERRORS

_REPEATED = 1e-5  # of the largest |score|: the same pass again


class Outputs(StrEnum):
    """What the numbers that come out are, by their looks."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    UNIT = "between 0 and 1"


@dataclass(frozen=True)
class Habits:
    """How a network answers.

    Attributes:
        outputs: what comes out: logits, probabilities (rows that sum to 1), or numbers between
            0 and 1 that do not.
        mixes_batch: the answer to a picture depends on the others in its batch.
        noise: the largest difference of two passes over one picture, in its scores' unit; 0 where
            they are alike.
        scale: the largest |score| seen.
    """

    outputs: Outputs = Outputs.LOGITS
    mixes_batch: bool = False
    noise: float = 0.0
    scale: float = 0.0

    def as_logits(self, scores: Tensor) -> Tensor:
        """What softmax turns into the network's own probabilities; logits are that already."""
        if self.outputs is not Outputs.PROBABILITIES:
            return scores
        return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()

    def notes(self, name: str) -> list[str]:
        """What the user should know, a line each."""
        found = []
        if self.outputs is Outputs.PROBABILITIES:
            found.append(
                f"{name} puts out probabilities already: they are used as they are, and the logit "
                "of a class is log p"
            )
        elif self.outputs is Outputs.UNIT:
            found.append(
                f"{name} puts out numbers between 0 and 1 that do not sum to 1 (a sigmoid per "
                "class?), which are taken for logits: leave the sigmoid out of the network for "
                "probabilities that mean something"
            )
        if self.mixes_batch:
            found.append(
                f"{name} mixes the pictures of a batch (batch statistics, a maximum over the "
                "batch?): each is run alone, as if it were the only one"
            )
        if self.noise:
            found.append(
                f"{name} answers differently each time: two passes over one picture differ by up "
                f"to {self.noise:.2g} where scores reach {self.scale:.2g} (dropout or sampling at "
                "evaluation?); smaller differences in the results are noise"
            )
        return found


def examine(
    scores: Callable[[Tensor], Tensor], size: tuple[int, int], dtype: torch.dtype
) -> Habits:
    """Runs two random pictures alone, again, and together.

    Args:
        scores: normalised images (N, 3, H, W) to what the network puts out, (N, K).
        size: H, W.
        dtype: the number format that the network computes in.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, 3, *size, generator=generator)
    second = 3 * torch.randn(1, 3, *size, generator=generator) + 1
    with torch.inference_mode():
        alone = torch.cat([scores(first), scores(second)])
        again = scores(first)
        scale = float(alone.abs().max())
        noise = float((again - alone[:1]).abs().max())
        outputs = _looks(alone, dtype)
        if noise > _REPEATED * scale:
            return Habits(outputs, noise=noise, scale=scale)
        try:
            together = scores(torch.cat([first, second]))
        except USER_CODE_ERRORS as error:
            # It takes one picture at a time and no other number; memory is another matter.
            return Habits(outputs, mixes_batch=not is_out_of_memory(error), scale=scale)
    if together.shape != alone.shape:
        return Habits(outputs, mixes_batch=True, scale=scale)
    difference = float((together - alone).abs().max())
    return Habits(outputs, difference > rounding(dtype) * scale, scale=scale)


def _looks(scores_NK: Tensor, dtype: torch.dtype) -> Outputs:
    if not bool(((scores_NK >= 0) & (scores_NK <= 1)).all()):
        return Outputs.LOGITS
    off = float((scores_NK.double().sum(1) - 1).abs().max())
    return Outputs.PROBABILITIES if off < rounding(dtype) else Outputs.UNIT
