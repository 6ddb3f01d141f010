"""What a network does that a plain function of one picture would not: found out by trying.

Every analysis takes it that the answer to a picture depends on that picture alone, and is the same
each time. Batch statistics at evaluation, a maximum over the batch or minibatch deviation break the
first, dropout that nobody switches off breaks the second. Two random pictures tell: alone, again,
and together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.device import is_out_of_memory, rounding
from cnnviz.core.errors import USER_CODE_ERRORS

_REPEATED = 1e-5  # of the largest |score|: the same pass again


@dataclass(frozen=True)
class Habits:
    """How a network answers.

    Attributes:
        mixes_batch: the answer to a picture depends on the others in its batch.
        noise: the largest difference of two passes over one picture, in its scores' unit; 0 where
            they are alike.
        scale: the largest |score| seen.
    """

    mixes_batch: bool = False
    noise: float = 0.0
    scale: float = 0.0

    def notes(self, name: str) -> list[str]:
        """What the user should know, a line each."""
        found = []
        if self.mixes_batch:
            found.append(
                f"{name} mixes the pictures of a batch (batch statistics, a maximum over the "
                "batch?): each is run alone, as if it were the only one"
            )
        if self.noise:
            found.append(
                f"{name} answers differently each time: two passes over one picture differ by up "
                f"to {self.noise:.2g} where scores reach {self.scale:.2g} (dropout or sampling at "
                "evaluation?); smaller differences in the results are noise, and --repeat N "
                "averages N passes"
            )
        return found


def examine(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Habits]:
    """Runs two random pictures alone, again, and together.

    Args:
        scores: normalised images (N, C, H, W) to what the network puts out, (N, K).
        shape: C, H, W.
        dtype: the number format that the network computes in.

    Returns:
        What it put out for the two, each alone (2, K), and what was found out.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, *shape, generator=generator)
    second = 3 * torch.randn(1, *shape, generator=generator) + 1
    with torch.inference_mode():
        alone = torch.cat([scores(first), scores(second)])
        again = scores(first)
        scale = float(alone.abs().max())
        noise = float((again - alone[:1]).abs().max())
        if noise > _REPEATED * scale:
            return alone, Habits(noise=noise, scale=scale)
        try:
            together = scores(torch.cat([first, second]))
        except USER_CODE_ERRORS as error:
            # It takes one picture at a time and no other number; memory is another matter.
            return alone, Habits(not is_out_of_memory(error), scale=scale)
    if together.shape != alone.shape:
        return alone, Habits(mixes_batch=True, scale=scale)
    difference = float((together - alone).abs().max())
    return alone, Habits(difference > rounding(dtype) * scale, scale=scale)


def far_away(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """What the network puts out (2, K) for noise far beyond any picture's contrast.

    None where it does not bear that: it raises, or the numbers overflow.
    """
    generator = torch.Generator().manual_seed(1)
    contrast = 1e2 if dtype is torch.float16 else 1e4
    noise = contrast * torch.randn(1, *shape, generator=generator)
    try:
        with torch.inference_mode():
            found = torch.cat([scores(noise), scores(-noise)])
    except USER_CODE_ERRORS:
        return None
    return found if bool(found.isfinite().all()) else None
