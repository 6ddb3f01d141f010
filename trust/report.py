"""What `summary.json` says of one map's scorecard: plain data, no NaN."""

from typing import Annotated

from typing_extensions import TypedDict

from cnnviz.core.output.entries import ClassEntry, Judged, Said, ScorecardEntry
from cnnviz.core.output.numbers import digits
from cnnviz.trust.removal import gain
from cnnviz.trust.scorecard import Scorecard


class Target(ClassEntry, Judged):
    """The map of one class."""

    trust: Annotated[ScorecardEntry, Said("the scorecard of this map")]


class Entry(TypedDict):
    """One picture."""

    image: str
    map: Annotated[str, Said("the file it came from, or 'occlusion'")]
    targets: list[Target]


def report(card: Scorecard) -> ScorecardEntry:
    """The `trust` entry of a target."""
    certain = None if card.certain_HW is None else float(card.certain_HW.double().mean())
    fills = dict.fromkeys(curve.fill for curve in card.curves)
    return {
        "verdict": card.verdict.value,
        "reasons": list(card.reasons),
        "trust": digits(card.trust),
        "gain": digits(card.gain),
        "relative_gain": digits(card.relative_gain),
        "other_gains": {name: digits(value) for name, value in card.other_gains.items()},
        "gain_by_fill": {
            fill: digits(gain([curve for curve in card.curves if curve.fill == fill]))
            for fill in fills
        },
        "against_chance": {
            "gain": digits(card.gain_as_random),
            "random_maps": [digits(value) for value in card.random_gains],
            "interval": [digits(end) for end in card.chance],
        },
        "insertion": digits(card.insertion),
        "deletion": digits(card.deletion),
        "agreement": {name: digits(value) for name, value in card.agreement.items()},
        "peak_spread": digits(card.peak_spread),
        "stability": {name: digits(value) for name, value in card.stability.items()},
        "certain": digits(certain),
        "randomised": digits(card.randomised),
        "other_class": digits(card.other_class),
        "completeness": digits(card.completeness),
    }
