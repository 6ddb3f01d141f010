"""How much a map can be trusted: what its removal does, and who agrees with it."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.core.output.judged import Scorecard, Verdict
    from cnnviz.trust.removal import Curve, Order, Remover, gain
    from cnnviz.trust.results import load_run
    from cnnviz.trust.scorecard import Evidence, Witnesses
else:
    __getattr__ = lazily(
        __name__,
        {
            "removal": ("Curve", "Order", "Remover", "gain"),
            "results": ("Scorecard", "Verdict", "load_run"),
            "scorecard": ("Evidence", "Witnesses"),
        },
    )

__all__ = [
    "Curve",
    "Evidence",
    "Order",
    "Remover",
    "Scorecard",
    "Verdict",
    "Witnesses",
    "gain",
    "load_run",
]
