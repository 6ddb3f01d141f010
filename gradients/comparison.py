"""A saliency map beside a map of another kind."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    """A saliency map beside a map of another kind, of the same class and picture.

    Attributes:
        other: what made the other map, in words.
        other_unit: what its values measure.
        other_HW: the other map.
        rank_correlation: of the two; None where one of them is constant.
        seconds: that the saliency map took.
        other_seconds: that the other one took.
    """

    other: str
    other_unit: str
    other_HW: Tensor
    rank_correlation: float | None
    seconds: float
    other_seconds: float
