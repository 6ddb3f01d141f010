"""How far a map can be believed: what its removal does, and who agrees with it."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.trust.options import Verdict
    from cnnviz.trust.removal import Curve, Order, Remover, gain
    from cnnviz.trust.scorecard import Scorecard, Witnesses
else:
    __getattr__ = lazily(
        __name__,
        {
            "options": ("Verdict",),
            "removal": ("Curve", "Order", "Remover", "gain"),
            "scorecard": ("Scorecard", "Witnesses"),
        },
    )

__all__ = ["Curve", "Order", "Remover", "Scorecard", "Verdict", "Witnesses", "gain"]
