"""Options for drawing maps; imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cnnviz.core.choices import Colormap
from cnnviz.core.options import Option, Spec


@dataclass(frozen=True)
class Look(Spec):
    """How maps are drawn.

    Raises:
        UsageError: `alpha` is out of range.
    """

    HEADING: ClassVar[str] = "figures"

    colormap: Annotated[
        Colormap,
        Option(
            "Colours of the maps: diverging has white at zero, the others run from the smallest "
            "value to the largest."
        ),
    ] = Colormap.DIVERGING
    alpha: Annotated[
        float, Option("Weight of the map over the image, 0 (image) to 1 (map).", least=0, most=1)
    ] = 0.5
    scale: Annotated[
        float | None,
        Option(
            "Value at which the colours of every map end, so that maps of several images can be "
            "compared. Default: each map's own largest.",
            least=1e-12,
            most=1e12,
            metavar="NUMBER",
        ),
    ] = None
    columns: Annotated[
        int | None,
        Option(
            "Panels in a row of a figure. Default: 4 at most; of several masks a column each.",
            least=1,
        ),
    ] = None
