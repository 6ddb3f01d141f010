"""What a network's numbers mean: classes that exclude each other, classes on their own, or none.

A head is settled once, on the network's own outputs for random pictures, unless the user names it.
Scores go through the house as logits: what softmax (the sigmoid, for classes on their own) turns
into the network's probabilities. Outputs of a regression are values, and stay what they are.

Shapes: N images, K classes or values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.core.choices import HeadChoice
from cnnviz.core.device import rounding
from cnnviz.core.errors import UsageError


class Kind(StrEnum):
    """How classes stand to each other."""

    SOFTMAX = "softmax"
    """One of them holds."""
    SIGMOID = "sigmoid"
    """Each holds or does not, whatever the others do."""
    NONE = "none"
    """There are none: a regression."""


@dataclass(frozen=True)
class Head:
    """How outputs are read.

    Attributes:
        kind: how classes stand to each other.
        probabilities_given: the network puts out probabilities, not logits.
        threshold: of a class on its own: it holds from this probability on.
    """

    kind: Kind = Kind.SOFTMAX
    probabilities_given: bool = False
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """As summaries call it."""
        if not self.probabilities_given:
            return self.kind.value
        return "probabilities" if self.kind is Kind.SOFTMAX else "probabilities per class"

    @property
    def has_classes(self) -> bool:
        """Whether there are classes at all."""
        return self.kind is not Kind.NONE

    def logits(self, outputs: Tensor) -> Tensor:
        """What the network puts out, of any shape (…, K), as logits; values stay values."""
        if not self.probabilities_given:
            return outputs
        tiny = torch.finfo(outputs.dtype).tiny
        if self.kind is Kind.SIGMOID:
            return outputs.logit(eps=torch.finfo(outputs.dtype).eps / 2)
        return outputs.clamp_min(tiny).log()

    def readings(self, logits: Tensor) -> Tensor:
        """Logits (…, K) as probabilities, or values as they are; float64."""
        exact = logits.double()
        if self.kind is Kind.NONE:
            return exact
        return exact.softmax(-1) if self.kind is Kind.SOFTMAX else exact.sigmoid()

    def text(self, reading: float) -> str:
        """`p = 0.123`, or a value, as headings have it."""
        return f"p = {reading:.3f}" if self.has_classes else f"= {reading:.4g}"

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Log p of each class, in the number format of the logits."""
        if self.kind is Kind.SOFTMAX:
            return logits.log_softmax(-1)
        return functional.logsigmoid(logits)

    def own_logits(self, logits: Tensor) -> Tensor:
        """Each class's logit, float64; its log-odds where the network puts out probabilities."""
        exact = logits.double()
        if self.kind is not Kind.SOFTMAX or not self.probabilities_given:
            return exact
        probabilities = exact.softmax(-1)
        others = (probabilities.sum(-1, keepdim=True) - probabilities).clamp_min(
            torch.finfo(torch.float64).eps
        )
        return exact.log_softmax(-1) - others.log()

    def holds(self, logits: Tensor) -> Tensor:
        """Of classes on their own: which hold, bool (…, K)."""
        return self.readings(logits) >= self.threshold


SOFTMAX = Head()


def _looks(outputs_NK: Tensor, dtype: torch.dtype) -> str | None:
    """`distributions` (rows that sum to 1), `their logarithms`, `shares` (between 0 and 1)."""
    exact, slack = outputs_NK.double(), rounding(dtype)
    inside = bool(((exact >= 0) & (exact <= 1)).all())
    if inside and float((exact.sum(1) - 1).abs().max()) < slack:
        return "distributions" if exact.shape[1] > 1 else "shares"
    if inside:
        return "shares"
    below = exact.shape[1] > 1 and bool((exact <= 0).all())
    if below and float((exact.exp().sum(1) - 1).abs().max()) < slack:
        return "their logarithms"
    return None


def settle(
    outputs_NK: Tensor,
    again: Callable[[], Tensor | None],
    choice: HeadChoice,
    dtype: torch.dtype,
    name: str,
) -> tuple[Head, list[str]]:
    """The head of a network, and a line where it was found out rather than named.

    Args:
        outputs_NK: what it puts out for random pictures.
        again: outputs (N, K) for pictures far from all it has seen (None if it bears none), asked
            where numbers lie between 0 and 1: logits do so by chance alone.
        choice: what the user said.
        dtype: that the network computes in.
        name: of the network, for the line.

    Raises:
        UsageError: `probabilities`, and the numbers are none.
    """
    looks = _looks(outputs_NK, dtype)
    if looks == "shares" and choice is HeadChoice.AUTO and (far := again()) is not None:
        looks = _looks(far, dtype)
    if choice in (HeadChoice.SOFTMAX, HeadChoice.SIGMOID, HeadChoice.NONE):
        return Head(Kind(choice.value)), []
    if choice is HeadChoice.PROBABILITIES and looks not in ("distributions", "shares"):
        raise UsageError(f"--head probabilities: {name} puts out numbers outside 0 to 1")
    one = outputs_NK.shape[1] == 1
    if looks == "distributions" or (looks == "shares" and one):
        head, says = Head(Kind.SOFTMAX, True), "probabilities already"
    elif looks == "shares":
        head, says = Head(Kind.SIGMOID, True), "a probability for each class on its own"
    else:
        return Head(), []
    if choice is not HeadChoice.AUTO:
        return head, []
    return head, [
        f"{name} puts out {says}: they are used as they are, and the logit of a class is its "
        "log-odds (--head says otherwise)"
    ]
