"""Segmentation and other dense outputs: from numbers for each pixel to a row of them per picture.

A class's number is the log-odds of its mean probability over some pixels: those that the user
points at, or those that the untouched picture's prediction gives to the class. Of a dense
regression it is the mean value. The pixels are settled once a picture (`Region.settle`), so that
covered copies of it are read at the same place; until then the whole picture is read.

Shapes: N images, K classes or values, h w rows and columns of the output, H W of the picture,
R places: one that is pointed at, or K of the classes' own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.labels import normalised_name, resolve_targets

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
