"""One page that needs nothing beside it: text, pictures and Bokeh's models in a single HTML file.

Whatever names and labels say is text: Jinja2 escapes it, Bokeh carries it as JSON, and the scripts
of this folder write it as text nodes. The page's own policy lets it load nothing.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.extras import required
from cnnviz.report.options import EXTRA

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 82
LONGEST = 1800
"""Pixels of the longer side of a picture."""


@dataclass(frozen=True)
class Picture:
    """A picture with a line under it.

    Attributes:
        caption: what it is.
        data: its address, which holds all of it.
    """

    caption: str
    data: str


@dataclass(frozen=True)
class Widget:
    """Something of Bokeh's, and what is said over it."""

    model: Any
    heading: str = ""
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other."""

    heading: str
    pictures: Sequence[Picture]


@dataclass
class Section:
    """What a page says of one run.

    Attributes:
        title: over it.
        facts: a name and a value each.
        blocks: from top to bottom.
        notes: what the reader should know.
    """

    title: str
    facts: list[tuple[str, str]]
    blocks: list[Widget | Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Room:
    """How many bytes are left on a page."""

    def __init__(self, size: int) -> None:
        """Takes what the page may have in all, of which Bokeh takes its part."""
        self.left = size - sum(map(len, _resources()))

    def take(self, size: int) -> bool:
        """Whether something of that size still fits; then it counts."""
        if size > self.left:
            return False
        self.left -= size
        return True


def data_address(kind: str, content: bytes) -> str:
    """`data:image/webp;base64,…`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_address(picture: "Image | NDArray[np.uint8]", longest: int = LONGEST) -> str:
    """A picture as WebP, made smaller where its longer side is above `longest`."""
    from PIL import Image

    found = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.convert("RGB")
    found.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    found.save(stream, "WEBP", quality=QUALITY, method=4)
    return data_address("image/webp", stream.getvalue())


def _resources() -> tuple[str, str]:
    """Bokeh's own scripts and styles."""
    if not _LOADED:
        module: Any = required("bokeh.resources", "report", EXTRA)
        parts = ["bokeh", "bokeh-gl", "bokeh-widgets", "bokeh-tables"]
        inline = module.Resources(mode="inline", components=parts)
        _LOADED.extend([inline.render_js(), inline.render_css()])
    return _LOADED[0], _LOADED[1]


_LOADED: list[str] = []


def script(name: str) -> str:
    """One of this folder's scripts."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def render(title: str, sections: Sequence[Section], left_out: Sequence[str]) -> str:
    """The page.

    Args:
        title: of it.
        sections: a run each.
        left_out: what did not fit, a line each.
    """
    embed: Any = required("bokeh.embed", "report", EXTRA)
    jinja: Any = required("jinja2", "report", EXTRA)
    widgets = [b for s in sections for b in s.blocks if isinstance(b, Widget)]
    code, divs = embed.components([w.model for w in widgets]) if widgets else ("", [])
    place = {id(widget): div for widget, div in zip(widgets, divs, strict=True)}
    loaded, styles = _resources()
    environment = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(script("page.html"))
    safe = jinja.utils.markupsafe.Markup
    return str(
        template.render(
            title=title,
            sections=sections,
            left_out=left_out,
            style=safe(script("page.css")),
            scripts=safe(loaded) if widgets else "",
            styles=safe(styles) if widgets else "",
            code=safe(code),
            div=lambda widget: safe(place[id(widget)]),
            is_widget=lambda block: isinstance(block, Widget),
        )
    )
