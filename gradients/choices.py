"""Choices of the gradient methods; imports nothing heavy, so that `--help` is quick."""

from enum import StrEnum


class Method(StrEnum):
    """How a class's score is traced back to the picture."""

    GRADIENT = "gradient"
    GRADIENT_X_INPUT = "gradient-x-input"
    GRAD_CAM = "grad-cam"


LAST_CONV = "last-conv"
"""Stands for the last convolution that still has a map (more than one position)."""
