"""Shares of a data set, for several processes or machines; `cnnviz merge` joins their results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError

PAIRS = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
"""Variables that number processes: of torchrun, Lightning and Ray Train, and of a SLURM array."""
FIRST = "SLURM_ARRAY_TASK_MIN"
LARGEST_UNIT = 256


class Block(NamedTuple):
    """The images from `start` up to, not including, `stop` of a data set of `total` images."""

    start: int
    stop: int
    total: int


@dataclass(frozen=True)
class Shard:
    """Share `number` (from 0) of `count` shares of a data set."""

    number: int
    count: int

    def __str__(self) -> str:
        """The value of `--shard`."""
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"shard-{self.number}-of-{self.count}"

    def part(self, length: int) -> range:
        """The indices of this share among `length` images: a block, so that reading is sequential.

        Blocks end at multiples of a power of two, at most 256 and a sixteenth of a share, so that
        they do not cut batches of usual sizes.
        """
        unit = 1
        while unit < LARGEST_UNIT and 32 * unit * self.count <= length:
            unit *= 2
        units = length // unit
        start, stop = (units * end // self.count * unit for end in (self.number, self.number + 1))
        return range(start, length if self.number == self.count - 1 else stop)


def shard(text: str, option: str) -> Shard:
    """Parses a share: `0/8` is the first of eight."""
    number, _, count = (part.strip() for part in text.partition("/"))
    numbers = whole_number(number), whole_number(count)
    if numbers[0] is None or not numbers[1] or numbers[0] >= numbers[1]:
        raise UsageError(
            f"invalid share '{text}'; {option} takes I/N with I from 0 to N - 1, as in 0/8"
        )
    return Shard(numbers[0], numbers[1])


def of_environment(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """Returns the share that a launcher assigned to this process, and the variable that names it.

    None if there is no launcher, or only one process. A UsageError if the variables make no sense.
    """
    for rank, size in PAIRS:
        if rank in environment and size in environment:
            number, count = whole_number(environment[rank]), whole_number(environment[size])
            first = whole_number(environment.get(FIRST, "0")) if rank.startswith("SLURM") else 0
            if number is None or count is None or first is None or not 0 <= number - first < count:
                raise UsageError(
                    f"{rank}={environment[rank]} and {size}={environment[size]} do not name a "
                    "share; give --shard I/N, or 0/1 for everything"
                )
            return (Shard(number - first, count), rank) if count > 1 else None
    return None
