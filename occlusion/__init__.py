"""Which parts of an image carry the prediction: cover them one by one and watch the scores."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.occlusion.boxes import Detected, detect
    from cnnviz.occlusion.experiment import look, occlude
    from cnnviz.occlusion.figures import draw
    from cnnviz.occlusion.measurement import load
    from cnnviz.occlusion.options import Border, OcclusionSpec, PanelSpec, Score, Upsample
    from cnnviz.occlusion.results import OcclusionResult, load_run
else:
    __getattr__ = lazily(
        __name__,
        {
            "options": ("Border", "OcclusionSpec", "PanelSpec", "Score", "Upsample"),
            "boxes": ("Detected", "detect"),
            "experiment": ("look", "occlude"),
            "figures": ("draw",),
            "measurement": ("load",),
            "results": ("OcclusionResult", "load_run"),
        },
    )

__all__ = [
    "Border",
    "Detected",
    "OcclusionResult",
    "OcclusionSpec",
    "PanelSpec",
    "Score",
    "Upsample",
    "detect",
    "draw",
    "load",
    "load_run",
    "look",
    "occlude",
]
