"""Targets: what is explained of a network's output, as one number per image for each of them.

A class's score is one already. Anything else is made one: the network ends in a target's `read`,
which turns its raw output into rows of numbers, and which is one step of a traced network. What a
target depends on, besides the output, is frozen on the original image (`settle`), so that occluded
copies are read in the same way: the pixels of a dense output (`Region`, here), the boxes of a
detector (`boxes.py`). The similarity to another image depends on nothing of this one.

Dense outputs (segmentation) become one row per image. A class's number is the log-odds of its mean
probability over a region: the one that the user points at, or the pixels where the original image
is predicted as that class. For a dense regression it is the mean value. Before `settle`, the whole
image is read.

Shapes: N images, K classes or values, h w rows and columns of a dense output, H W of the image,
R regions: one that the user points at, or one per class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cnnviz.core.choices import percent
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.behaviour import Wrapper
from cnnviz.core.models.heads import Head, Kind, log_of, resolve_targets
from cnnviz.core.models.labels import normalised_name

Reader = Callable[[Any], Tensor]
During = Callable[[], AbstractContextManager[object]]
SHOWN = 6
_BACKGROUND = "background"


class Reading(ABC):
    """What is frozen of one image, on which its numbers depend.

    Attributes:
        labels: names of the numbers, if they are this image's own; None for the model's.
        where: where the numbers are read, for captions, unless the user names the place.
    """

    labels: tuple[str, ...] | None = None
    where: str = ""

    @abstractmethod
    def of(self, target: int) -> Tensor:
        """(h, w) bool: the pixels that the target is about, of the output or the image."""

    @abstractmethod
    def targets(
        self, requested: Sequence[str], labels: Sequence[str], head: Head, path: str
    ) -> tuple[int, ...]:
        """Resolve what the user requests; raises a UsageError or CnnvizError if it is not there."""

    def ranking(self, _labels: Sequence[str], scores_K: Tensor) -> Tensor:
        """(K,) larger for what the original image shows more of."""
        return scores_K

    def check(self, _targets: Sequence[int], _labels: Sequence[str], _path: str) -> None:
        """Raise CnnvizError if a target cannot be read."""
        return

    def fields(self, _target: int) -> Mapping[str, Any]:
        """What a record of the target holds in addition (`ClassRecord`)."""
        return {}


class Target(ABC):
    """Turns raw outputs into rows; all copies of a network share the one it was made with.

    Attributes:
        name: of the head, in summaries.
        unjudged: why an image has not one class, right or wrong; continues the model's name.
    """

    name: str
    unjudged: str

    def __deepcopy__(self, _memo: object) -> "Target":
        return self

    def settle(self, _run: Callable[[], object], _inside_HW: Tensor | None) -> Reading | None:
        """Freeze what the numbers depend on, from now on; None if nothing of the image.

        Args:
            _run: runs the network on the original image alone.
            _inside_HW: the region that the user points at, bool; None for no region.
        """
        return None

    def read(self, output: Any) -> Any:
        """Turn raw outputs into rows (N, K); one call in the graph of a traced network."""
        if isinstance(output, fx.Proxy):
            return output.tracer.create_proxy("call_function", self.read, (output,), {})
        return self.rows(output)

    @abstractmethod
    def rows(self, output: Any) -> Tensor:
        """Rows (N, K) of the outputs for N images."""


@dataclass(frozen=True, eq=False)
class RegionReading(Reading):
    """The pixels of one image at which a dense output is read."""

    pixels_Rhw: Tensor
    """Bool, of the output; one region that the user points at, or one per class."""
    shares_K: Tensor
    """The share of the region, or of the whole image, that is predicted as each class."""
    where = "own pixels"

    @property
    def pointed(self) -> bool:
        """Whether the user points at the region, which then is the same for every class."""
        return len(self.pixels_Rhw) < len(self.shares_K) or len(self.shares_K) == 1

    def of(self, target: int) -> Tensor:
        """(h, w) bool: where that class is read."""
        return self.pixels_Rhw[0 if self.pointed else target]

    def targets(
        self, requested: Sequence[str], labels: Sequence[str], head: Head, path: str
    ) -> tuple[int, ...]:
        """Resolve the requested classes (`resolve_targets`) by their pixels; all must have some."""
        indices = resolve_targets(requested, self.ranking(labels, self.shares_K), labels, head)
        self.check(indices, labels, path)
        return indices

    def ranking(self, labels: Sequence[str], _scores_K: Tensor) -> Tensor:
        """(K,) larger for a class with more pixels; a background is last, unless pointed at."""
        ranking_K = self.shares_K.clone()
        if not self.pointed:
            for index, label in enumerate(labels):
                if normalised_name(label) == _BACKGROUND:
                    ranking_K[index] = -1
        return ranking_K

    def check(self, targets: Sequence[int], labels: Sequence[str], path: str) -> None:
        """Raise CnnvizError if a class has no pixel at which it can be read."""
        absent = [labels[t] for t in targets if not self.pointed and self.shares_K[t] == 0]
        if absent:
            order = [i for i in self.shares_K.argsort(descending=True).tolist() if self.shares_K[i]]
            there = ", ".join(
                f"{labels[i]} {percent(float(self.shares_K[i]), 1)}" for i in order[:SHOWN]
            )
            raise CnnvizError(
                f"'{path}': no pixel is predicted as {absent[0]} (predicted are {there}); --at or "
                "--inside names a region to read it at"
            )

    def fields(self, target: int) -> Mapping[str, Any]:
        """The class's share of the pixels."""
        return {"pixels": float(self.shares_K[target])}


class Region(Target):
    """Reads dense outputs."""

    def __init__(self, head: Head) -> None:
        """Take the meaning of one pixel's numbers."""
        self.head, self.name = head, f"{head.name} per pixel"
        self.unjudged = "gives a class to each pixel, not to an image"
        if not head.has_classes:
            self.unjudged = "returns values, not classes (--head none)"
        self._weights_Rhw: Tensor | None = None
        self._seen_NKhw: Tensor | None = None

    def settle(self, run: Callable[[], object], inside_HW: Tensor | None) -> RegionReading:
        """Fix the pixels that are read: those of the region, or of each class's prediction."""
        self._weights_Rhw = None
        run()
        assert self._seen_NKhw is not None  # noqa: S101 (the network ends in `read`)
        predicted_Khw = self._predicted(self._seen_NKhw[0].float())
        self._seen_NKhw = None
        regions_Rhw = predicted_Khw
        if inside_HW is not None:
            area = inside_HW[None, None].float()
            share = functional.interpolate(area, predicted_Khw.shape[1:], mode="area")
            regions_Rhw = share[0].to(predicted_Khw)
        empty = regions_Rhw.sum((1, 2), keepdim=True) == 0  # a class without a pixel
        weights = torch.where(empty, 1.0, regions_Rhw)
        self._weights_Rhw = weights / weights.sum((1, 2), keepdim=True)
        whole_hw = 1 / predicted_Khw[0].numel() if inside_HW is None else self._weights_Rhw[0]
        return RegionReading((regions_Rhw > 0).cpu(), (predicted_Khw * whole_hw).sum((1, 2)).cpu())

    def _predicted(self, output_Khw: Tensor) -> Tensor:
        """(K, h, w) 1 where a class is predicted; everywhere, for a regression."""
        if self.head.kind is Kind.NONE:
            return torch.ones_like(output_Khw)
        if self.head.kind is Kind.SIGMOID:
            return self.head.holds(self.head.logits(output_Khw)).float()
        best_hw = output_Khw.argmax(0)
        return functional.one_hot(best_hw, len(output_Khw)).movedim(-1, 0).float()

    def rows(self, output_NKhw: Tensor) -> Tensor:
        """Rows (N, K) of dense outputs."""
        output, weights = output_NKhw.float(), self._weights_Rhw
        if weights is None:
            self._seen_NKhw = output_NKhw.detach()
            weights = torch.full_like(output[0, :1], 1 / output[0, 0].numel())
        if self.head.kind is Kind.NONE:
            return (output * weights).sum((2, 3))
        yes, no = self._shares(output)
        return log_of((yes * weights).sum((2, 3))) - log_of((no * weights).sum((2, 3)))

    def _shares(self, output_NKhw: Tensor) -> tuple[Tensor, Tensor]:
        """Each class's probability at each pixel, and that of its absence, exact near 0 and 1."""
        given = self.head.probabilities_given
        if self.head.kind is Kind.SIGMOID:
            yes = output_NKhw if given else output_NKhw.sigmoid()
            return yes, 1 - yes if given else (-output_NKhw).sigmoid()
        yes = output_NKhw if given else output_NKhw.softmax(1)
        best = output_NKhw.argmax(1, keepdim=True)  # for the others, 1 - p is exact
        return yes, (1 - yes).scatter(1, best, yes.scatter(1, best, 0).sum(1, keepdim=True))


class _Read(Wrapper):
    """An archive's network with its reader."""

    def __init__(self, network: nn.Module, read: Reader, during: During) -> None:
        super().__init__(network)
        self.read, self.during = read, during

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, K)."""
        with self.during():
            output = self.network(x)
        return self.read(output)


def with_reader(module: nn.Module, read: Reader, during: During = nullcontext) -> nn.Module:
    """Make a network return what `read` takes from its output; it runs in the context `during`.

    Its class is replaced, so that layers keep their names; an archive is wrapped.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        return _Read(module, read, during).train(module.training)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with during():
            output = kind.forward(self, x)
        return read(output)

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module
