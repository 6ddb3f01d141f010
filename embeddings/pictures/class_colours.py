"""Colours and marks by which classes are told apart on a map.

Up to ten classes each has a colour of its own, chosen so that people with any kind of
colour-blindness can tell them apart (Petroff 2021, "Accessible color sequences for data
visualization", with black for the second of its greys). Beyond ten the colours come again with
another mark, and beyond sixty the marks repeat as well, so that names have to stand on the map.
"""

import numpy as np
from numpy.typing import NDArray

PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#1a1a1a", "#92dadd",
)  # fmt: skip
MARKS = ("o", "s", "^", "D", "v", "P")
NO_LABEL = "#8c8c8c"
ONLY_COLOUR = "#3f90da"
TOLD_APART = len(PALETTE) * len(MARKS)


def colour_of(label: int) -> str:
    """The colour of a class, as #rrggbb; grey where the class is unknown (-1)."""
    return NO_LABEL if label < 0 else PALETTE[label % len(PALETTE)]


def mark_of(label: int) -> str:
    """The mark of a class, in matplotlib's letters."""
    return "o" if label < 0 else MARKS[label // len(PALETTE) % len(MARKS)]


def rgb(colour: str) -> NDArray[np.uint8]:
    """`#rrggbb` to (3,) uint8."""
    return np.frombuffer(bytes.fromhex(colour.removeprefix("#")), np.uint8)
