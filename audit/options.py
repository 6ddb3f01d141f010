"""The options of `cnnviz audit`; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from cnnviz.core.choices import pixels
from cnnviz.core.options import BatchSize, Fill, Option, Seed, Spec, Stride

ALARM = 0.95
"""A class with a larger suspicion is reported as suspicious."""


@dataclass(frozen=True)
class AuditSpec(Spec):
    """What to compute; the defaults are those of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    mask: Annotated[
        tuple[int, int] | None,
        Option("Side of the mask in pixels, or HxW. Default: 28 % of the shorter one.", (), pixels),
    ] = None
    stride: Stride = None
    fill: Fill = "mean"
    top: Annotated[int, Option("Patches and images shown of each kind.", least=1, most=100)] = 9
    batch_size: BatchSize = None
    seed: Seed = 0
