"""Shares of a data set, for several processes or machines: `cnnviz merge` joins what they find."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError

PART = "--shard"
"""In what a state file is of: the first image, one behind the last, and how many there are."""

PAIRS = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
"""What torchrun, Lightning and Ray Train, and what a SLURM array tell their processes."""
LARGEST_UNIT = 256
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
        """Which of so many things in a row are its: blocks, so that reading stays sequential.

        They end at multiples of a power of two, 256 at most and a sixteenth of a share, so that no
        batch of usual size is cut.
        """
        unit = 1
        while unit < LARGEST_UNIT and 32 * unit * self.count <= length:
            unit *= 2
        units = length // unit
        start, stop = (units * end // self.count * unit for end in (self.number, self.number + 1))
        return range(start, length if self.number == self.count - 1 else stop)


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


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses a state file that is of something else.

    Raises:
        UsageError: says what differs.
    """
    same = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    differing = [key for key in same if found.get(key) != same[key]]
    if "data" in differing:
        differing = [key for key in differing if key != PART]  # which hangs on it
    if differing:
        raise UsageError(
            f"'{path}' belongs to a run with other {', '.join(differing)}; "
            "repeat that command to resume it, or start again with --overwrite"
        )


def joined_parts(paths: Sequence[Path], parts: Sequence[tuple[Sequence[int], int]]) -> int:
    """How many images shares have that follow each other without a gap.

    Args:
        paths: their files, in order.
        parts: of each, its `PART`, and the place that it has reached.

    Raises:
        UsageError: one has not come to its end, or is missing.
    """
    reached, total = 0, parts[0][0][2]
    for path, ((start, stop, _), done) in zip(paths, parts, strict=True):
        if start != reached or done != stop:
            raise UsageError(
                f"'{path}' has images {start} to {done} of a share that ends at {stop}, and "
                f"those from {reached} on are wanted; repeat its command with --resume"
            )
        reached = stop
    if reached != total:
        raise UsageError(f"the shares end at image {reached} of {total}; some are missing")
    return reached
