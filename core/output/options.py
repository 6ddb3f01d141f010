"""Options for drawing maps; imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from cnnviz.core.errors import UsageError
from cnnviz.core.options import Option, Spec

DIVERGING, JET = "diverging", "jet"
LARGEST = 1e12


class Display(StrEnum):
    """How a map's values are shown between its positions."""

    SMOOTH = "smooth"
    CELLS = "cells"


class Ends(StrEnum):
    """Where the colours of a figure's maps end."""

    SHARED = "shared"
    OWN = "own"


def colour_map(text: str, option: str) -> str:
    """Returns the name if matplotlib has a colour map of it, or it is `diverging`."""
    if text in (DIVERGING, JET):
        return text
    from difflib import get_close_matches

    from matplotlib import colormaps

    names = [DIVERGING, *colormaps]
    if text in names:
        return text
    near = get_close_matches(text, names, 3) or ["viridis", "magma", "turbo"]
    raise UsageError(
        f"no colour map '{text[:40]}'; {option} takes diverging or a name of matplotlib's, as "
        f"{', '.join(near)}"
    )


def colour_ends(text: str, option: str) -> "Ends | float":
    """`shared`, `own`, or a positive number."""
    if text in tuple(Ends):
        return Ends(text)
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 1e-12 <= number <= LARGEST:
        return number
    raise UsageError(
        f"invalid scale '{text[:40]}'; {option} takes shared, own or a number from 1e-12 to 1e12"
    )


@dataclass(frozen=True)
class Look(Spec):
    """How maps are drawn.

    Raises:
        UsageError: `alpha` is out of range, or there is no such colour map.
    """

    HEADING: ClassVar[str] = "figures"

    colormap: Annotated[
        str,
        Option(
            "Colours of the maps: diverging (symmetric about zero), jet (the classic blend), or "
            "any colour map of matplotlib.",
            parse=colour_map,
        ),
    ] = DIVERGING
    alpha: Annotated[
        float | None,
        Option(
            "Opacity of the map over the image at the ends of the colour scale; elsewhere it is "
            "proportional to the value. With jet, everywhere. Default: 0.9; 0.5 with jet.",
            least=0,
            most=1,
        ),
    ] = None
    display: Annotated[
        Display,
        Option("Between positions: interpolated (smooth), or the exact tiles (cells)."),
    ] = Display.SMOOTH
    scale: Annotated[
        Ends | float,
        Option(
            "Maximum of the colour scale: the largest value in the figure (shared) or in each map "
            "(own), or a number, so that figures can be compared.",
            parse=colour_ends,
        ),
    ] = Ends.SHARED
    columns: Annotated[
        int | None,
        Option(
            "Panels in a row of a figure. Default: 4 at most; of several masks a column each.",
            least=1,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        colour_map(self.colormap, "--colormap")

    @property
    def limit(self) -> float | None:
        """The value of `scale`, if it is a number."""
        return None if isinstance(self.scale, Ends) else self.scale

    @property
    def opacity(self) -> float:
        """`alpha`, or its default."""
        if self.alpha is not None:
            return self.alpha
        return 0.5 if self.colormap == JET else 0.9
