"""Records of how a map is judged: next to the object, and by `--trust`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from torch import Tensor

from cnnviz.core.choices import percent
from cnnviz.core.output.record import ABSENT, Change, Hidden, Interval, Record, Says, Share


@dataclass(frozen=True, kw_only=True)
class Pointing(Record):
    """With `--expect`: how a map lies to the object."""

    pointing_game_hit: Annotated[
        bool | None,
        Says(
            "with --expect: the map's peak lies on the object; null where it has no positive "
            "evidence",
            beside="inside",
        ),
    ] = None
    inside: Annotated[
        Share | None,
        Says(
            "with --expect: share of the positive evidence on the object; null (NaN) where there "
            "is none",
            optional=True,
            null=True,
        ),
    ] = None

    @property
    def cells(self) -> tuple[str, ...]:
        """Whether the peak is on the object, and the share on it, for tables; empty for none."""
        if self.inside is None:
            return ()
        if math.isnan(self.inside):
            return "no evidence", "-"
        return "yes" if self.pointing_game_hit else "no", percent(self.inside, 1)


@dataclass(frozen=True, kw_only=True)
class Judged(Pointing):
    """The same, and the object's size."""

    object_share: Annotated[
        Share | None,
        Says("with --expect: the object's share of the working image", optional=True),
    ] = None


class Verdict(StrEnum):
    """How far a map can be believed, in words, the worst first."""

    CHANCE = "no better than chance"
    WEAK = "too weak to judge"
    FRAGILE = "fragile"
    BELIEVE = "believe"


@dataclass(frozen=True, kw_only=True)
class AgainstChance(Record):
    """The gain of random maps."""

    random_maps: tuple[float, ...]
    interval: Annotated[Interval, Says("of 95 % of random maps")]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scorecard(Record):
    """How trustworthy one class's map is: `--trust`.

    `curves` are those of removal, by both fills and in both orders; `certain_HW` tells where other
    masks and fills have the map's sign, None if that was not computed.
    """

    verdict: Annotated[str, Says(enum=[*Verdict])]
    reasons: Annotated[tuple[str, ...], Says("why")]
    trust: Annotated[
        Share, Says("gain over chance, agreement, mirrored, lead and contrast, weighted; 0 to 1")
    ]
    gain: Annotated[
        float,
        Says(
            "symmetric relevance gain in log-odds: area under least important first minus most "
            "important first, mean over fills"
        ),
    ]
    against_chance: Annotated[AgainstChance, Says("the gain of random maps")]
    insertion: Annotated[float, Says("area under the curve of RISE's protocol, at few shares")]
    deletion: Annotated[float, Says("area under the curve of RISE's protocol, at few shares")]
    witnesses: Annotated[
        Mapping[str, Change], Says("cosine of the positive parts with each other method's map")
    ]
    agreement: Annotated[Share, Says("the second lowest: two others may have made the map")]
    mirrored: Annotated[
        Change,
        Says("cosine minus the mean cosine of the map's mirror images; the second lowest"),
    ]
    lead: Annotated[float, Says("gain of the first 30 %, minus the largest of three mirror images")]
    contrast: Annotated[
        float | None,
        Says("cosine with occlusion's evidence for the class, minus its mean for other classes"),
    ]
    effect: Annotated[float, Says("largest drop of the log-odds that any occluded region causes")]
    effect_share: Annotated[
        float | None, Says("largest share of the probability that any occluded region takes")
    ]
    certain: Annotated[
        Share | None,
        Says("share of the pixels whose sign is the same with other masks and another fill"),
    ]
    curves: Hidden[tuple[Any, ...]] = ABSENT
    certain_HW: Hidden[Tensor | None] = ABSENT

    @property
    def line(self) -> str:
        """The verdict and its reasons in a line."""
        return f"{self.verdict}{': ' if self.reasons else ''}{'; '.join(self.reasons)}"
