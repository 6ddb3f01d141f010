"""What `occlude` lets its user choose; imports nothing heavy."""

from enum import StrEnum


class Border(StrEnum):
    """Which positions the masks take."""

    COVER = "cover"
    INSIDE = "inside"
    CENTER = "center"


class Score(StrEnum):
    """What is compared between the untouched and the covered image."""

    PROBABILITY = "probability"
    LOGIT = "logit"
    LOSS = "loss"


class Upsample(StrEnum):
    """How position values become pixel values."""

    COVERAGE = "coverage"
    BILINEAR = "bilinear"
    NEAREST = "nearest"


class EngineChoice(StrEnum):
    """How the covered images are run through the network."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"
