"""Where occlusion and the gradient see the same evidence.

Covering asks what the network does without a place, the gradient which way its score leans there.
Either misleads at times, and seldom both at the same place: what both report points at objects more
often than either, and where they disagree neither should be believed (docs/truth.md).
Shapes: H W rows and columns of the working image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cnnviz.core.maps import agreement, positive_part, rank_correlation
from cnnviz.occlusion.panels import Panel

STRONG, WEAK = 0.5, 0.25


@dataclass(frozen=True, eq=False)
class Gradient:
    """What a gradient method says of the same picture.

    Attributes:
        name: of the method, with its layer.
        maps: (H, W) by class index; positive is evidence.
    """

    name: str
    maps: Mapping[int, Tensor]


@dataclass(frozen=True, eq=False)
class Agreement:
    """One panel's map and the gradient's of the same class.

    Attributes:
        map_HW: the geometric mean of their positive parts, each divided by its largest value.
        gradient_HW: the gradient's map.
        only_occlusion_HW: whether occlusion's map is above half of its peak where the gradient's is
            below a quarter.
        only_gradient_HW: the other way round.
        rank_correlation: of the two maps; None where one is constant.
    """

    map_HW: Tensor
    gradient_HW: Tensor
    only_occlusion_HW: Tensor
    only_gradient_HW: Tensor
    rank_correlation: float | None


def agreements(panels: Sequence[Panel], gradient: Gradient | None) -> tuple[Agreement | None, ...]:
    """One for each panel; None where the gradient's map of its class is not there."""
    maps = gradient.maps if gradient else {}
    return tuple(
        _agreement(panel.map_HW, maps[panel.target]) if panel.target in maps else None
        for panel in panels
    )


def _agreement(occlusion_HW: Tensor, gradient_HW: Tensor) -> Agreement:
    covered, traced = positive_part(occlusion_HW), positive_part(gradient_HW)
    return Agreement(
        map_HW=agreement(occlusion_HW, gradient_HW),
        gradient_HW=gradient_HW,
        only_occlusion_HW=(covered > STRONG) & (traced < WEAK),
        only_gradient_HW=(traced > STRONG) & (covered < WEAK),
        rank_correlation=rank_correlation(occlusion_HW, gradient_HW),
    )
