"""The style of Bokeh's parts, light and dark like the page around them."""

from importlib import import_module
from typing import Any

TEXT = """
:host { color: inherit; font: 14px/1.45 system-ui, sans-serif; }
table { border-collapse: collapse; }
td, th { padding: 1px 12px 1px 0; text-align: left; font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
.faint { opacity: .7; }
img, .cut { border: 1px solid #8888; vertical-align: top; }
.strip { display: flex; flex-wrap: wrap; gap: 8px; margin: 6px 0; }
.strip > div { font-size: 12px; max-width: 100px; overflow-wrap: anywhere; }
"""
WIDGETS = """
@media screen and (prefers-color-scheme: dark) {
  :host { color: #e6edf3; }
  .bk-input { background: #161b22; color: #e6edf3; border-color: #30363d; }
  .bk-input option { background: #161b22; }
  .slick-header, .slick-header-column, .bk-data-table .slick-header-column {
    background: #161b22 !important; color: #e6edf3 !important; }
  .slick-row, .slick-viewport, .bk-data-table {
    background: #0d1117 !important; color: #e6edf3 !important; }
  .slick-row.odd, .slick-row:nth-child(odd) { background: #11161d !important; }
  .slick-cell { border-color: #30363d !important; }
  .slick-cell.selected { background: #1f3a5f !important; color: #fff !important; }
}
"""
LINES = "#8a929b"
"""A grey that is legible on white and on black."""


def models() -> Any:
    """`bokeh.models`."""
    return import_module("bokeh.models")


def sheet(text: str) -> Any:
    """Makes a style sheet for one of Bokeh's parts."""
    return models().InlineStyleSheet(css=text)


def text_of(html: str = "") -> Any:
    """Makes an element that scripts write to."""
    return models().Div(text=html, stylesheets=[sheet(TEXT)], sizing_mode="stretch_width")


def empty_figure(width: int, height: int, **options: Any) -> Any:
    """Makes a figure with a transparent background."""
    figure: Any = import_module("bokeh.plotting").figure(width=width, height=height, **options)
    figure.background_fill_alpha = 0
    figure.border_fill_alpha = 0
    figure.outline_line_color = LINES
    for axis in figure.axis:
        axis.major_label_text_color = LINES
        axis.axis_label_text_color = LINES
        axis.axis_line_color = LINES
        axis.major_tick_line_color = LINES
        axis.minor_tick_line_color = None
    figure.grid.grid_line_color = None
    figure.toolbar.logo = None
    return figure
