"""Options of `--trust` and of `trust`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import At, Inside, Option, Spec, Targets


class MinVerdict(StrEnum):
    """Verdicts that `--min-trust` can require."""

    FRAGILE = "fragile"
    BELIEVE = "believe"


Trust = Annotated[
    bool,
    Option(
        "Judge each map: scorecard in the summary, verdict under the image, curves.png and "
        "certainty.png. Takes 3 to 4 times the time of occlude."
    ),
]
MinTrust = Annotated[
    MinVerdict | None,
    Option("Judge each map, and exit with status 3 if the first target's verdict is worse."),
]


@dataclass(frozen=True)
class TrustSpec(Spec):
    """What `trust` judges; the defaults are those of the command line."""

    targets: Targets = ("predicted",)
    at: At = None
    inside: Inside = None
