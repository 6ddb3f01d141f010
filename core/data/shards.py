"""Shares of a data set, for several processes or machines: `cnnviz merge` joins what they find."""

from collections.abc import Mapping
from dataclasses import dataclass

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError

PAIRS = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
"""What torchrun, Lightning and Ray Train, and what a SLURM array tell their processes."""
FIRST = "SLURM_ARRAY_TASK_MIN"


@dataclass(frozen=True)
class Shard:
    """One of several shares.

    Attributes:
        number: which, from 0.
        count: of how many.
    """

    number: int
    count: int

    def __str__(self) -> str:
        """As `--shard` takes it."""
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"shard-{self.number}-of-{self.count}"

    def part(self, length: int) -> range:
        """Which of so many things in a row are its: blocks, so that reading stays sequential."""
        return range(length * self.number // self.count, length * (self.number + 1) // self.count)


def shard(text: str, option: str) -> Shard:
    """`0/8` to the first of eight.

    Raises:
        UsageError: not two whole numbers, or the first is not below the second.
    """
    number, _, count = (part.strip() for part in text.partition("/"))
    found = whole_number(number), whole_number(count)
    if found[0] is None or not found[1] or found[0] >= found[1]:
        raise UsageError(f"'{text}' is no share; {option} takes I/N with I from 0 to N - 1, as 0/8")
    return Shard(found[0], found[1])


def of_environment(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """The share that a launcher gave this process, and the variable that says so; None for none.

    Raises:
        UsageError: the variables make no sense.
    """
    for own, all_of_them in PAIRS:
        if own in environment and all_of_them in environment:
            number, count = whole_number(environment[own]), whole_number(environment[all_of_them])
            first = whole_number(environment.get(FIRST, "0")) if own.startswith("SLURM") else 0
            if number is None or count is None or first is None or not 0 <= number - first < count:
                raise UsageError(
                    f"{own}={environment[own]} and {all_of_them}={environment[all_of_them]} name "
                    "no share; say --shard I/N, or 0/1 for everything"
                )
            return (Shard(number - first, count), own) if count > 1 else None
    return None
