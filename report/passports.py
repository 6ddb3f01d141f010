"""Passports of units: kernel, strongest patches and numbers of each, in a table to search.

A row joins what several runs measure of the same filter of the same network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnviz.core.choices import typeset
from cnnviz.report.look import models, text_of
from cnnviz.report.page import script
from cnnviz.report.tables import make_table

PATCHES = 9


@dataclass
class Passport:
    """One unit.

    Attributes:
        layer: name of its layer.
        filter: number in the layer.
        numbers: measured values by name.
        patches: (number of the picture, y0, x0, y1, x1 as shares of it, score, class) each.
        kernel: address of its picture; empty if there is none.
        lines: further text.
    """

    layer: str
    filter: int
    numbers: dict[str, Any] = field(default_factory=dict)
    patches: list[list[Any]] = field(default_factory=list)
    kernel: str = ""
    lines: list[str] = field(default_factory=list)


def bytes_of(passport: Passport) -> int:
    """The approximate size of a passport on the page, without pictures."""
    numbers = 14 * len(passport.numbers)
    return (
        60
        + numbers
        + 60 * len(passport.patches)
        + len(passport.kernel)
        + sum(map(len, passport.lines))
    )


def passports(units: Sequence[Passport], pictures: Sequence[Mapping[str, Any]]) -> Any:
    """Bokeh's layout of the table of all units, and the passport of the selected one.

    Args:
        units: in the order of the table.
        pictures: `name`, `data` (its address, or empty), `width` and `height` of each picture.
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
            "lines": [[*map(typeset, unit.lines)] for unit in units],
            "pictures": list(pictures),
        },
        code=script("passports.js"),
    )
    source.selected.js_on_change("indices", show)
    return parts.Column(table, said, sizing_mode="stretch_width")
