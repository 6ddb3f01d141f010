"""What `summary.json` says of one map's scorecard: plain data, no NaN."""

from typing import Any

from cnnviz.core.output.numbers import digits
from cnnviz.trust.removal import gain
from cnnviz.trust.scorecard import Scorecard


def report(card: Scorecard) -> dict[str, Any]:
    """The `trust` entry of a target."""
    certain = None if card.certain_HW is None else float(card.certain_HW.double().mean())
    fills = dict.fromkeys(curve.fill for curve in card.curves)
    return {
        "verdict": card.verdict.value,
        "reasons": list(card.reasons),
        "trust": _or_none(card.trust),
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
        "agreement": {name: _or_none(value) for name, value in card.agreement.items()},
        "peak_spread": _or_none(card.peak_spread),
        "stability": {name: _or_none(value) for name, value in card.stability.items()},
        "certain": _or_none(certain),
        "randomised": _or_none(card.randomised),
        "other_class": _or_none(card.other_class),
        "completeness": _or_none(card.completeness),
    }


def _or_none(value: float | None) -> float | None:
    return None if value is None else digits(value)
