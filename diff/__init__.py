"""Two runs of one command with two networks: what changed, and is it more than noise?"""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.diff.choices import DiffSpec
    from cnnviz.diff.experiment import DiffResult, diff
    from cnnviz.diff.sides import Answers, Evidence, Layer, Side
else:
    __getattr__ = lazily(
        __name__,
        {
            "choices": ("DiffSpec",),
            "experiment": ("DiffResult", "diff"),
            "sides": ("Answers", "Evidence", "Layer", "Side"),
        },
    )

__all__ = ["Answers", "DiffResult", "DiffSpec", "Evidence", "Layer", "Side", "diff"]
