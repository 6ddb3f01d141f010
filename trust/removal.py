"""What a class loses while pixels are removed, the most or the least important by a map first.

A good map makes the class fall fast the one way and slowly the other. The area between the two
curves is the symmetric relevance gain (Blücher et al. 2024, "Decoupling Pixel Flipping and
Occlusion Strategy for Consistent XAI Benchmarks", arXiv 2401.06654), which ranks maps in the same
order however pixels are replaced; either curve alone does not. It is measured in log-odds, which do
not saturate. Two of the four areas of the probability have names
(Petsiuk et al. 2018, "RISE", arXiv 1806.07421): *deletion* is that of the most important first
replaced by the mean, *insertion* that of the least important first replaced by a blur, which is the
image inserted into its blur, the most important first.
Shapes: M maps, F shares, K classes, H W rows and columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.lazy import torchvision
from cnnviz.core.models.load import Model

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
GAIN_SHARES = (0.1, 0.5, 0.9)  # distinguish bad maps as well as all five do: docs/truth.md
EARLY_SHARES = (0.1, 0.3)  # where a map's peak is decides what these remove
MIRRORS = ((0,), (1,), (0, 1))
RANDOM_MAPS = 10  # and their opposites
RANDOM_CELLS = 7  # hills a side of a random map, as in RISE's masks
MEAN, BLUR = "mean", "blur"


class Order(StrEnum):
    """Which pixels go first."""

    MOST = "most important first"
    LEAST = "least important first"


@dataclass(frozen=True, eq=False)
class Curve:
    """A class's probabilities (of a regression values) while shares of the pixels are replaced.

    `scores` are its log-odds (of a regression its values).
    """

    fill: str
    order: Order
    shares: tuple[float, ...]
    readings: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def area(self) -> float:
        """The area under the curve, by trapezoids."""
        return float(np.trapezoid(self.readings, self.shares))


def gain(curves: Sequence[Curve], kept: Sequence[float] = (0.0, *GAIN_SHARES, 1.0)) -> float:
    """The symmetric relevance gain in log-odds: area least first − area most first.

    It is the mean over the fills. Only the kept shares count.
    """
    fills = {curve.fill for curve in curves}
    total = 0.0
    for curve in curves:
        values = [v for s, v in zip(curve.shares, curve.scores, strict=True) if s in kept]
        area = float(np.trapezoid(values, kept))
        total += area if curve.order is Order.LEAST else -area
    return total / len(fills)


def ranks(map_HW: Tensor) -> Tensor:
    """(H, W) ranks of pixels, 0 for the most important; equal ones from the top left."""
    order = map_HW.flatten().argsort(descending=True, stable=True)
    return order.argsort().view(map_HW.shape)


def random_maps(size: Sequence[int], seed: int, count: int = RANDOM_MAPS) -> Tensor:
    """(count, H, W) smooth random maps."""
    generator = torch.Generator().manual_seed(seed)
    cells = [min(RANDOM_CELLS, side) for side in size]
    hills = torch.rand(count, 1, *cells, generator=generator)
    return functional.interpolate(hills, tuple(size), mode="bilinear", align_corners=True)[:, 0]


def rise_blur(pixels_CHW: Tensor) -> Tensor:
    """Blurs an image as RISE does: a Gaussian of 5 pixels, cut at 5 to either side, at size 224."""
    transforms = torchvision("transforms.v2.functional")
    shorter = min(pixels_CHW.shape[1:])
    scale = shorter / 224
    reach = min(max(1, round(5 * scale)), shorter - 1)
    if reach == 0:
        return pixels_CHW.clone()
    sigma = max(5 * scale, 0.5)
    blurred: Tensor = transforms.gaussian_blur(pixels_CHW, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred


class Remover:
    """Scores of one image with parts of its pixels replaced."""

    def __init__(
        self,
        model: Model,
        image: WorkingImage,
        base_logits_K: Tensor,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Runs the fully replaced images.

        Args:
            model: borrowed; a dense output has been settled on this image.
            image: of the model's input size.
            base_logits_K: of the original image.
            batch_size: images at a time; None for automatic.
        """
        self._model, self._image, self._batch_size = model, image, batch_size
        mean = torch.tensor(model.preprocess.mean).view(-1, 1, 1)
        self._fills: Mapping[str, Tensor] = {
            MEAN: mean.expand_as(image.pixels).contiguous(),
            BLUR: rise_blur(image.pixels),
        }
        size = image.pixels.shape[1:]
        nothing = torch.zeros(1, *size, dtype=torch.bool)
        self._base_logits_K = base_logits_K
        self._ends = {fill: self._run(fill, nothing)[0] for fill in self._fills}

    def _run(self, fill: str, kept_NHW: Tensor) -> Tensor:
        return replaced_logits(
            self._model,
            self._image,
            self._fills[fill],
            len(kept_NHW),
            lambda part: kept_NHW[part],
            batch_size=self._batch_size,
        )

    def logits(
        self, map_HW: Tensor, fill: str, order: Order, shares: Sequence[float] = SHARES
    ) -> Tensor:
        """(F + 2, K): of the image, of it with those shares replaced, and of the fill."""
        ranks_HW, total = ranks(map_HW), map_HW.numel()
        counts = torch.tensor([round(share * total) for share in shares]).view(-1, 1, 1)
        kept = ranks_HW >= counts if order is Order.MOST else ranks_HW < total - counts
        inner_FK = self._run(fill, kept)
        return torch.cat([self._base_logits_K[None], inner_FK, self._ends[fill][None]])

    def curves(
        self, map_HW: Tensor, target: int, shares: Sequence[float] = SHARES
    ) -> tuple[Curve, ...]:
        """Computes four curves: both orders, both fills."""
        return tuple(
            self._curve(self.logits(map_HW, fill, order, shares), fill, order, shares, target)
            for fill in self._fills
            for order in Order
        )

    def lead(self, map_HW: Tensor, curves: Sequence[Curve], target: int) -> float:
        """The gain while the first 30 % go, minus the largest of the map's mirror images.

        They have its values, its contrast and its smoothness, in the wrong place. The curves are
        those of the map.
        """
        early = (0.0, *EARLY_SHARES)
        images = [self.curves(map_HW.flip(axes), target, EARLY_SHARES) for axes in MIRRORS]
        return gain(curves, early) - max(gain(of_image, early) for of_image in images)

    def random_logits(self, seed: int) -> list[list[tuple[str, Order, Tensor]]]:
        """Fill, order and logits (5, K) of each random map at `GAIN_SHARES`.

        Those of its opposite have the orders exchanged: each map serves for both.
        """
        return [
            [
                (fill, order, self.logits(map_HW, fill, order, GAIN_SHARES))
                for fill in self._fills
                for order in Order
            ]
            for map_HW in random_maps(self._image.pixels.shape[1:], seed)
        ]

    def random_gains(
        self, logits: Sequence[Sequence[tuple[str, Order, Tensor]]], target: int
    ) -> tuple[float, ...]:
        """The gain of each of these maps and of its opposite, for one class."""
        gains = [
            gain([self._curve(logits, fill, o, GAIN_SHARES, target) for fill, o, logits in one])
            for one in logits
        ]
        return (*gains, *(-value for value in gains))

    def _curve(
        self, logits_FK: Tensor, fill: str, order: Order, shares: Sequence[float], target: int
    ) -> Curve:
        head = self._model.head
        readings, scores = head.readings(logits_FK), head.log_odds(logits_FK)
        return Curve(
            fill,
            order,
            (0.0, *shares, 1.0),
            tuple(readings[:, target].tolist()),
            tuple(scores[:, target].tolist()),
        )
