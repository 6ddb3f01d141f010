"""Which parts of an image carry the prediction: cover them one by one and watch the scores."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.occlusion.archive import load
    from cnnviz.occlusion.options import Border, OcclusionSpec, PanelSpec, Score, Upsample
    from cnnviz.occlusion.experiment import OcclusionResult, look, occlude
    from cnnviz.occlusion.figures import draw
else:
    __getattr__ = lazily(
        __name__,
        {
            "archive": ("load",),
            "options": ("Border", "OcclusionSpec", "PanelSpec", "Score", "Upsample"),
            "experiment": ("OcclusionResult", "look", "occlude"),
            "figures": ("draw",),
        },
    )

__all__ = [
    "Border",
    "OcclusionResult",
    "OcclusionSpec",
    "PanelSpec",
    "Score",
    "Upsample",
    "draw",
    "load",
    "look",
    "occlude",
]
