"""What a network's numbers mean: classes that exclude each other, classes on their own, or none.

A head is settled once, on the network's own outputs for random pictures, unless the user names it.
Scores go through the house as logits: what softmax (the sigmoid, for classes on their own) turns
into the network's probabilities. Outputs of a regression are values, and stay what they are.

Shapes: N images, K classes or values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from cnnviz.core.choices import HeadChoice
from cnnviz.core.device import rounding
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.labels import normalised_name, resolve_targets


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


SHOWN = 6
_BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Reading:
    """Which pixels of one picture are read.

    Attributes:
        pixels_Rhw: bool, of the output; one place that was pointed at, or each class's own.
        shares_K: what the prediction gives to each class, of that place or of the whole picture.
    """

    pixels_Rhw: Tensor
    shares_K: Tensor

    @property
    def pointed(self) -> bool:
        """Whether it is a place that the user points at, the same for every class."""
        return len(self.pixels_Rhw) < len(self.shares_K) or len(self.shares_K) == 1

    def of(self, target: int) -> Tensor:
        """(h, w) bool: where that class is read."""
        return self.pixels_Rhw[0 if self.pointed else target]

    def targets(
        self, asked: Sequence[str], labels: Sequence[str], head: Head, path: str
    ) -> tuple[int, ...]:
        """The classes asked for, as `resolve_targets` has it; the first are those of most pixels.

        Raises:
            UsageError: no such class.
            CnnvizError: one of them has no pixel to be read at.
        """
        found = resolve_targets(asked, self.ranking(labels), labels, head)
        self.check(found, labels, path)
        return found

    def ranking(self, labels: Sequence[str]) -> Tensor:
        """(K,) more for a class of more pixels; a background comes last, unless pointed at."""
        ranking_K = self.shares_K.clone()
        if not self.pointed:
            for index, label in enumerate(labels):
                if normalised_name(label).strip() == _BACKGROUND:
                    ranking_K[index] = -1
        return ranking_K

    def check(self, targets: Sequence[int], labels: Sequence[str], path: str) -> None:
        """Raises CnnvizError where a class has no pixel to be read at."""
        absent = [labels[t] for t in targets if not self.pointed and self.shares_K[t] == 0]
        if absent:
            order = [i for i in self.shares_K.argsort(descending=True).tolist() if self.shares_K[i]]
            there = ", ".join(f"{labels[i]} {float(self.shares_K[i]):.1%}" for i in order[:SHOWN])
            raise CnnvizError(
                f"'{path}': no pixel is predicted as {absent[0]} (there are {there}); --at or "
                "--inside reads it elsewhere"
            )


class Region:
    """Reads dense outputs; every copy of a network shares the one it was made with."""

    def __init__(self, head: Head) -> None:
        """Takes what the numbers of a pixel mean."""
        self.head = head
        self._weights_Rhw: Tensor | None = None
        self._seen_NKhw: Tensor | None = None

    @property
    def name(self) -> str:
        """What the network's numbers mean, as summaries call it."""
        return f"{self.head.name} per pixel"

    def __deepcopy__(self, _memo: object) -> "Region":
        """Itself: a copied network is read at the same place."""
        return self

    def settle(self, run: Callable[[], object], inside_HW: Tensor | None) -> Reading:
        """Looks at the untouched picture and says which pixels are read from now on.

        Args:
            run: runs the network on that picture alone.
            inside_HW: what the user points at, bool; None: where each class is predicted.
        """
        self._weights_Rhw = None
        run()
        assert self._seen_NKhw is not None  # noqa: S101 (the network ends in `read`)
        own_Khw, self._seen_NKhw = self._predicted(self._seen_NKhw[0].float()), None
        if inside_HW is None:
            places_Rhw = own_Khw
        else:
            size = own_Khw.shape[1:]
            share = functional.interpolate(inside_HW[None, None].float(), size, mode="area")
            places_Rhw = share[0].to(own_Khw)
        whole = places_Rhw.sum((1, 2), keepdim=True) == 0  # a class without a pixel
        weights = torch.where(whole, 1.0, places_Rhw)
        self._weights_Rhw = weights / weights.sum((1, 2), keepdim=True)
        of_hw = 1 / own_Khw[0].numel() if inside_HW is None else self._weights_Rhw[0]
        return Reading((places_Rhw > 0).cpu(), (own_Khw * of_hw).sum((1, 2)).cpu())

    def _predicted(self, output_Khw: Tensor) -> Tensor:
        """(K, h, w) 1 where a class is predicted; of a regression, everywhere."""
        if self.head.kind is Kind.NONE:
            return torch.ones_like(output_Khw)
        if self.head.kind is Kind.SIGMOID:
            return self.head.holds(self.head.logits(output_Khw)).float()
        best_hw = output_Khw.argmax(0)
        return functional.one_hot(best_hw, len(output_Khw)).movedim(-1, 0).float()

    def read(self, output_NKhw: Any) -> Any:
        """Dense outputs to rows (N, K); a network that is being traced keeps it as one call."""
        if isinstance(output_NKhw, fx.Proxy):
            return output_NKhw.tracer.create_proxy("call_function", self.read, (output_NKhw,), {})
        output, weights = output_NKhw.float(), self._weights_Rhw
        if weights is None:
            self._seen_NKhw = output_NKhw.detach()
            weights = torch.full_like(output[0, :1], 1 / output[0, 0].numel())
        if self.head.kind is Kind.NONE:
            return _own(output, weights)
        yes, no = self._shares(output)
        return _log(_own(yes, weights)) - _log(_own(no, weights))

    def _shares(self, output_NKhw: Tensor) -> tuple[Tensor, Tensor]:
        """Each class's probability at each pixel, and that of its absence, exact near 0 and 1."""
        given = self.head.probabilities_given
        if self.head.kind is Kind.SIGMOID:
            yes = output_NKhw if given else output_NKhw.sigmoid()
            return yes, 1 - yes if given else (-output_NKhw).sigmoid()
        yes = output_NKhw if given else output_NKhw.softmax(1)
        best = output_NKhw.argmax(1, keepdim=True)  # for the others, 1 - p loses nothing
        return yes, (1 - yes).scatter(1, best, yes.scatter(1, best, 0).sum(1, keepdim=True))


def _own(values_NKhw: Tensor, weights_Rhw: Tensor) -> Tensor:
    """(N, K) each channel's mean over its own place, or over the one there is."""
    return (values_NKhw * weights_Rhw).sum((2, 3))


def _log(positive: Tensor) -> Tensor:
    return positive.clamp_min(torch.finfo(positive.dtype).tiny).log()
