"""What the gradient says about an image: saliency and Grad-CAM."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.gradients.options import Method, SaliencySpec
    from cnnviz.gradients.experiment import SaliencyResult, saliency
    from cnnviz.gradients.figures import draw
else:
    __getattr__ = lazily(
        __name__,
        {
            "options": ("Method", "SaliencySpec"),
            "experiment": ("SaliencyResult", "saliency"),
            "figures": ("draw",),
        },
    )

__all__ = ["Method", "SaliencyResult", "SaliencySpec", "draw", "saliency"]
