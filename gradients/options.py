"""Options of `saliency`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import At, Inside, Option, Spec, Targets


class Method(StrEnum):
    """How a class's score is traced back to the image."""

    GRADIENT = "gradient"
    GRADIENT_X_INPUT = "gradient-x-input"
    GRAD_CAM = "grad-cam"


LAST_CONV = "last-conv"
"""The last convolution that still has a map (more than one position)."""


@dataclass(frozen=True)
class SaliencySpec(Spec):
    """What `saliency` does; the defaults are those of the command line."""

    method: Annotated[
        Method,
        Option("gradient: of the pixels; gradient-x-input; grad-cam: of a layer's maps."),
    ] = Method.GRADIENT
    layer: Annotated[
        str,
        Option(
            "Layer for grad-cam: its name, or last-conv, the last convolution with a map. In "
            "residual networks the last block (layer4) is common."
        ),
    ] = LAST_CONV
    targets: Targets = ("predicted",)
    at: At = None
    inside: Inside = None
