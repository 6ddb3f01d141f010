"""What `audit` lets its user choose; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from cnnviz.core.choices import pixels
from cnnviz.core.options import BatchSize, Fill, Option, Seed, Spec, Stride

ALARM = 0.95
"""Suspicion from which on a group is called suspicious, unless `--max-suspicion` says another."""


@dataclass(frozen=True)
class AuditSpec(Spec):
    """What `audit` does; every default is the one of the command line.

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
