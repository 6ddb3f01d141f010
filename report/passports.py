"""A passport of each unit: its kernel, its strongest patches, its numbers, in a table to search.

What several runs know of the same filters of the same network stands in one row. Shapes: h w of a
picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnviz.report.look import models, text_of
from cnnviz.report.page import script
from cnnviz.report.tables import make_table

PATCHES = 9


@dataclass
class Passport:
    """One unit.

    Attributes:
        layer: its layer.
        filter: its number there.
        numbers: what is known of it, by name.
        patches: (number of the picture, y0, x0, y1, x1 as shares of it, score, class) each.
        kernel: its address; empty where there is none to see.
        lines: what else is to be said.
    """

    layer: str
    filter: int
    numbers: dict[str, Any] = field(default_factory=dict)
    patches: list[list[Any]] = field(default_factory=list)
    kernel: str = ""
    lines: list[str] = field(default_factory=list)


def bytes_of(passport: Passport) -> int:
    """How much of a page it takes, about, without pictures."""
    numbers = 14 * len(passport.numbers)
    return (
        60
        + numbers
        + 60 * len(passport.patches)
        + len(passport.kernel)
        + sum(map(len, passport.lines))
    )


def passports(units: Sequence[Passport], pictures: Sequence[Mapping[str, Any]]) -> Any:
    """The table of all units, and the passport of the chosen one.

    Args:
        units: in the order of the table.
        pictures: `name`, `data` (its address, or empty), `width` and `height` of each picture.

    Returns:
        A layout of Bokeh's.
    """
    parts = models()
    names = list(dict.fromkeys(name for unit in units for name in unit.numbers))
    header = ["layer", "filter", *names]
    rows = [
        [unit.layer, unit.filter, *(unit.numbers.get(name, "") for name in names)] for unit in units
    ]
    table, source = make_table(header, rows)
    said = text_of("<i>Choose a row to see the unit.</i>")
    show = parts.CustomJS(
        args={
            "source": source,
            "said": said,
            "header": header,
            "patches": [unit.patches for unit in units],
            "kernels": [unit.kernel for unit in units],
            "lines": [unit.lines for unit in units],
            "pictures": list(pictures),
        },
        code=script("passports.js"),
    )
    source.selected.js_on_change("indices", show)
    return parts.Column(table, said, sizing_mode="stretch_width")
