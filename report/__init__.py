"""Pages of finished runs: single HTML files that open anywhere, offline."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.report.explorer import Explored, explore
    from cnnviz.report.page import Gallery, Picture, Room, Section, Widget, render
    from cnnviz.report.tables import make_table
else:
    __getattr__ = lazily(
        __name__,
        {
            "explorer": ("Explored", "explore"),
            "page": ("Gallery", "Picture", "Room", "Section", "Widget", "render"),
            "tables": ("make_table",),
        },
    )

__all__ = [
    "Explored",
    "Gallery",
    "Picture",
    "Room",
    "Section",
    "Widget",
    "explore",
    "make_table",
    "render",
]
