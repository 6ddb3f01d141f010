"""The options of `diff`; imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated

from cnnviz.core.options import Option, Seed, Spec

NAMED = 0.95
"""Certainty above which a class is reported as changed more than the others."""


@dataclass(frozen=True)
class DiffSpec(Spec):
    """What `diff` does; the defaults are those of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    top: Annotated[
        int, Option("Images or filters shown, the most changed first.", least=1, most=100)
    ] = 8
    neighbors: Annotated[
        int, Option("Number of nearest images compared, for features of tsne.", least=1, most=1000)
    ] = 10
    seed: Seed = 0
