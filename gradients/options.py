"""Options of `saliency`; imports nothing heavy."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from cnnviz.core.options import At, BatchSize, Inside, Option, Seed, Spec, Targets


class Method(StrEnum):
    """How a class's score is traced back to the image."""

    GRADIENT = "gradient"
    GRADIENT_X_INPUT = "gradient-x-input"
    SMOOTHGRAD = "smoothgrad"
    INTEGRATED_GRADIENTS = "integrated-gradients"
    GUIDED_BACKPROP = "guided-backprop"
    DECONVOLUTION = "deconvolution"
    GRAD_CAM = "grad-cam"
    GRAD_CAM_PP = "grad-cam++"
    LAYERCAM = "layercam"
    SCORE_CAM = "score-cam"

    @property
    def of_layer(self) -> bool:
        """Whether it weights a layer's maps."""
        return self in CAMS

    @property
    def unit(self) -> str:
        """What the values of its maps are."""
        return UNITS[self]


CAMS = (Method.GRAD_CAM, Method.GRAD_CAM_PP, Method.LAYERCAM, Method.SCORE_CAM)
SIGNED = (Method.GRADIENT_X_INPUT, Method.INTEGRATED_GRADIENTS)
"""Methods whose maps are summed over the colours and have negative values."""
UNITS = {
    Method.GRADIENT: "|gradient| of the logit by the normalised pixel",
    Method.GRADIENT_X_INPUT: "gradient × normalised pixel",
    Method.SMOOTHGRAD: "|mean gradient of the logit over noisy images|",
    Method.INTEGRATED_GRADIENTS: "part of the logit's rise from the baseline",
    Method.GUIDED_BACKPROP: "|guided gradient| (ReLUs pass positive gradients only)",
    Method.DECONVOLUTION: "|deconvolution| (ReLUs pass every positive gradient)",
    Method.GRAD_CAM: "Grad-CAM (weighted sum of the layer's maps)",
    Method.GRAD_CAM_PP: "Grad-CAM++ (weighted sum of the layer's maps)",
    Method.LAYERCAM: "LayerCAM (maps × their positive gradients)",
    Method.SCORE_CAM: "Score-CAM (weighted sum of the layer's maps)",
}


class Baseline(StrEnum):
    """The image that integrated gradients start from."""

    BLACK = "black"
    WHITE = "white"
    MEAN = "mean"


LAST_CONV = "last-conv"
"""The last convolution that still has a map (more than one position)."""
OF_METHODS = {
    "layer": CAMS,
    "samples": (Method.SMOOTHGRAD,),
    "noise": (Method.SMOOTHGRAD,),
    "steps": (Method.INTEGRATED_GRADIENTS,),
    "baseline": (Method.INTEGRATED_GRADIENTS,),
}
"""Options that only some methods have."""


@dataclass(frozen=True)
class SaliencySpec(Spec):
    """What `saliency` does; the defaults are those of the command line.

    Raises:
        UsageError: a number is out of range.
    """

    method: Annotated[
        Method,
        Option(
            "Pixel maps: gradient, gradient-x-input, smoothgrad, integrated-gradients, "
            "guided-backprop, deconvolution. Layer maps: grad-cam, grad-cam++, layercam, "
            "score-cam."
        ),
    ] = Method.GRAD_CAM
    layer: Annotated[
        str,
        Option(
            "Layer for the CAMs: its name, or last-conv, the last convolution with a map that the "
            "class depends on. In residual networks the last block (layer4) is common."
        ),
    ] = LAST_CONV
    targets: Targets = ("predicted",)
    samples: Annotated[
        int, Option("With smoothgrad: noisy images to average over.", least=1, most=100_000)
    ] = 50
    noise: Annotated[
        float,
        Option(
            "With smoothgrad: deviation of the noise, as a share of the normalised image's range.",
            least=0,
            most=10,
        ),
    ] = 0.15
    steps: Annotated[
        int,
        Option(
            "With integrated-gradients: images between baseline and image.", least=1, most=100_000
        ),
    ] = 50
    baseline: Annotated[
        Baseline,
        Option("With integrated-gradients: the image to start from; mean: of the preprocessing."),
    ] = Baseline.BLACK
    at: At = None
    inside: Inside = None
    batch_size: BatchSize = None
    seed: Seed = 0
