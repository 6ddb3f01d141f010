"""Choices of `ablate`; imports nothing heavy, so that `--help` is quick."""

from enum import StrEnum


class Mode(StrEnum):
    """What stands in for an ablated channel."""

    ZERO = "zero"
    """Nothing: every unit of the channel is 0."""
    MEAN = "mean"
    """The channel's mean over all images and positions of the data."""


class RemovalOrder(StrEnum):
    """In which order the filters of a layer are removed, one more at a time."""

    RANDOM = "random"
    LEAST_HARM = "least harm first"
    MOST_HARM = "most harm first"
    SMALLEST_NORM = "smallest kernel norm first"
    WEAKEST = "weakest activation first"
