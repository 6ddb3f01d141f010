"""Choices of `max-patches`; imports nothing heavy, so that `--help` is quick."""

from enum import StrEnum


class Ranking(StrEnum):
    """What ranks the images for a filter, given the filter's map on each."""

    MAX = "max"
    """The largest unit."""
    NORM = "norm"
    """The Frobenius norm of the map."""
    MEAN = "mean"
    """The mean over the map."""


class Crop(StrEnum):
    """Which part of the image is the patch of a unit."""

    RECEPTIVE_FIELD = "receptive-field"
    """All pixels that the unit can see."""
    EFFECTIVE = "effective"
    """Where that is most of the image: the box with 90 % of the unit's input-gradient energy."""
