"""Options of `--trust` and of `trust`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import At, Inside, Option, Spec, Targets


class Least(StrEnum):
    """What `--min-trust` takes."""

    FRAGILE = "fragile"
    BELIEVE = "believe"


Trust = Annotated[
    bool,
    Option(
        "Judge each map: a scorecard in the summary, a verdict under the picture, curves.png and "
        "certainty.png. At most doubles the time again."
    ),
]
MinTrust = Annotated[
    Least | None,
    Option("Judge each map, and exit with status 3 where the first target's verdict is worse."),
]


@dataclass(frozen=True)
class TrustSpec(Spec):
    """What `trust` judges; every default is the one of the command line."""

    targets: Targets = ("predicted",)
    at: At = None
    inside: Inside = None
