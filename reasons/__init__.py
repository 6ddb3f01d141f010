"""Why a network says what it says: how many reasons an image has, and whether they need others."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.reasons.experiment import reasons
    from cnnviz.reasons.figures import draw
    from cnnviz.reasons.options import ReasonsSpec
    from cnnviz.reasons.results import ReasonsResult, load_run
else:
    __getattr__ = lazily(
        __name__,
        {
            "experiment": ("reasons",),
            "figures": ("draw",),
            "options": ("ReasonsSpec",),
            "results": ("ReasonsResult", "load_run"),
        },
    )

__all__ = ["ReasonsResult", "ReasonsSpec", "draw", "load_run", "reasons"]
