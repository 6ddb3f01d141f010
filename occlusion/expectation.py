"""Whether the evidence is on the object.

A map is judged by the pointing game (Zhang et al. 2016, "Top-down Neural Attention by Excitation
Backprop"; here without their 15-pixel tolerance): is its peak on the object? And by the share of
its positive evidence that lies on the object. Shapes: H W rows and columns of the working image.
"""

from dataclasses import dataclass

from torch import Tensor

from cnnviz.core.maps import peak


@dataclass(frozen=True)
class Verdict:
    """How one map agrees with an expectation.

    Attributes:
        hit: whether the map's peak is on the object (the pointing game).
        inside: share of the positive evidence on the object; None where there is none at all.
        object_share: the object's share of the working image, what `inside` would be by chance.
    """

    hit: bool
    inside: float | None
    object_share: float


def judge(map_HW: Tensor, object_HW: Tensor) -> Verdict:
    """Holds a map (H, W; positive is evidence) against the object's pixels (H, W) bool."""
    evidence = map_HW.double().clamp(min=0)
    total = float(evidence.sum())
    return Verdict(
        hit=bool(object_HW[peak(map_HW)]),
        inside=float(evidence[object_HW].sum()) / total if total > 0 else None,
        object_share=float(object_HW.double().mean()),
    )
