"""Traces a prediction back to the image: gradients, and class activation maps."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.gradients.experiment import saliency
    from cnnviz.gradients.figures import draw
    from cnnviz.gradients.options import Method, SaliencySpec
    from cnnviz.gradients.results import SaliencyResult, load_run
else:
    __getattr__ = lazily(
        __name__,
        {
            "experiment": ("saliency",),
            "figures": ("draw",),
            "options": ("Method", "SaliencySpec"),
            "results": ("SaliencyResult", "load_run"),
        },
    )

__all__ = ["Method", "SaliencyResult", "SaliencySpec", "draw", "load_run", "saliency"]
