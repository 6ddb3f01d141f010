"""Tables that are sorted by clicking and searched by typing."""

import html
import math
from collections.abc import Sequence
from typing import Any

from cnnviz.report.look import WIDGETS, models, sheet

ROW, MOST_SHOWN, HEADER = 25, 16, 32
WIDEST, NARROWEST, LETTER = 360, 64, 8
NUMBER = """<div style="text-align: right"><%= isNaN(value) ? "" :
  value.toLocaleString("en", {maximumFractionDigits: 4}).replace("-", "\u2212") %></div>"""
SEARCH = """
const wanted = box.value.trim().toLowerCase().split(/\\s+/).filter((word) => word);
const columns = names.map((name) => source.data[name]);
const found = [];
for (let row = 0; row < source.get_length(); row++) {
  const text = columns.map((column) => String(column[row])).join("\\n").toLowerCase();
  found.push(wanted.every((word) => text.includes(word)));
}
return found;
"""


def _numbers(cells: Sequence[object]) -> list[float] | None:
    """The cells as numbers, NaN where empty; None unless all are numbers."""
    numbers = []
    for cell in cells:
        if cell is None or cell == "":
            numbers.append(math.nan)
            continue
        try:
            numbers.append(float(cell))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None
    return numbers if any(not math.isnan(value) for value in numbers) else None


def make_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[Any, Any]:
    """Makes Bokeh's table, with a search box, and its data source.

    Args:
        header: names of the columns.
        rows: the cells; numbers, text, or empty.
    """
    parts = models()
    source = parts.ColumnDataSource()
    columns, texts, width = [], [], 0
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        numbers = _numbers(cells)
        values: list[Any] = numbers if numbers is not None else [_text(cell) for cell in cells]
        longest = max([len(name), *(len(_text(cell)) for cell in cells[:500])], default=0)
        wide = min(max(longest * LETTER + 16, NARROWEST), WIDEST)
        if numbers is None:
            texts.append(name)
            formatter = parts.StringFormatter()
        else:
            formatter = parts.HTMLTemplateFormatter(template=NUMBER)
            wide = max(min(wide, 110), len(name) * LETTER + 16)
        source.add(values, name)
        title = html.escape(name)  # Bokeh shows titles as HTML
        columns.append(parts.TableColumn(field=name, title=title, width=wide, formatter=formatter))
        width += wide
    shown = min(len(rows), MOST_SHOWN)
    table = parts.DataTable(
        source=source,
        columns=columns,
        index_position=None,
        width=min(max(width + 24, 320), 1200),
        height=HEADER + ROW * max(shown, 2) + 12,
        row_height=ROW,
        autosize_mode="none",
        reorderable=False,
        stylesheets=[sheet(WIDGETS)],
    )
    if len(rows) <= MOST_SHOWN or not texts:
        return table, source
    box = parts.TextInput(placeholder="search", width=260, stylesheets=[sheet(WIDGETS)])
    search = parts.CustomJSFilter(args={"box": box, "names": texts}, code=SEARCH)
    table.view = parts.CDSView(filter=search)
    box.js_on_change("value", parts.CustomJS(args={"search": search}, code="search.change.emit()"))
    return parts.Column(box, table), source


def _text(cell: object) -> str:
    return "" if cell is None else str(cell)
