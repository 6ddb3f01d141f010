"""Two runs of one command with two networks: what changed, and is it more than noise?"""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.diff.experiment import diff
    from cnnviz.diff.options import DiffSpec
    from cnnviz.diff.results import DiffResult
    from cnnviz.diff.sides import Answers, Evidence, Layer, Side
else:
    __getattr__ = lazily(
        __name__,
        {
            "experiment": ("diff",),
            "options": ("DiffSpec",),
            "results": ("DiffResult",),
            "sides": ("Answers", "Evidence", "Layer", "Side"),
        },
    )

__all__ = ["Answers", "DiffResult", "DiffSpec", "Evidence", "Layer", "Side", "diff"]
