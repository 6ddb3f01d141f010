"""Choices of the filter commands; imports nothing heavy, so that `--help` is quick."""

from enum import StrEnum


class MapOrder(StrEnum):
    """In which order a layer's maps are shown."""

    CHANNEL = "channel"
    STRONGEST = "strongest"
