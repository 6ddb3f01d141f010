"""Choices of the gradient methods; imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import At, Inside, Option, Spec, Targets


class Method(StrEnum):
    """How a class's score is traced back to the picture."""

    GRADIENT = "gradient"
    GRADIENT_X_INPUT = "gradient-x-input"
    GRAD_CAM = "grad-cam"


LAST_CONV = "last-conv"
"""Stands for the last convolution that still has a map (more than one position)."""


@dataclass(frozen=True)
class SaliencySpec(Spec):
    """What `saliency` does; every default is the one of the command line."""

    method: Annotated[
        Method,
        Option("gradient: of the pixels; gradient-x-input; grad-cam: of a layer's maps."),
    ] = Method.GRADIENT
    layer: Annotated[
        str,
        Option(
            "For grad-cam: a layer's name, or last-conv, the last convolution with a map. In "
            "residual networks the last block (layer4) is customary."
        ),
    ] = LAST_CONV
    targets: Targets = ("predicted",)
    at: At = None
    inside: Inside = None
