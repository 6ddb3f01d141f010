"""A self-contained page: text, pictures and Bokeh's models in a single HTML file.

Names and labels are never markup: Jinja2 escapes them, Bokeh carries them as JSON, and the scripts
of this folder write them as text nodes. The page's security policy lets it load nothing.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.choices import typeset

QUALITY = 82
LONGEST = 1800
"""Maximum side of a picture in pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture with a caption; `data` is its address, a data URL."""

    caption: str
    data: str


@dataclass(frozen=True)
class Widget:
    """A model of Bokeh's, with a heading and a text above it."""

    model: Any
    heading: str = ""
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    heading: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Findings:
    """A small table as the terminal shows it, or a sentence, which has no columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """The part of a page about one run: findings, blocks, and folded ones; a fact has a name."""

    title: str
    facts: list[tuple[str, str]]
    findings: list[Findings] = field(default_factory=list)
    blocks: list[Widget | Gallery] = field(default_factory=list)
    folded: list[Widget] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Room:
    """The space that is left on a page, in bytes."""

    def __init__(self, size: int) -> None:
        """Starts with the maximum size of the page, less what Bokeh takes."""
        self.left = size - sum(map(len, _resources()))

    def take(self, size: int) -> bool:
        """Takes the space for a part; returns False if it does not fit."""
        if size > self.left:
            return False
        self.left -= size
        return True


def data_address(kind: str, content: bytes) -> str:
    """`data:image/webp;base64,…`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def pixels_address(pixels: NDArray[np.uint8] | None) -> str:
    """The address of pixels as PNG, unchanged; empty for None."""
    if pixels is None:
        return ""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return data_address("image/png", stream.getvalue())


def picture_address(picture: Image.Image | NDArray[np.uint8], longest: int = LONGEST) -> str:
    """The address of a picture as WebP, shrunk to at most `longest` pixels."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=QUALITY, method=4)
    return data_address("image/webp", stream.getvalue())


def _resources() -> tuple[str, str]:
    """Bokeh's scripts and styles."""
    if not _LOADED:
        resources_of: Any = import_module("bokeh.resources").Resources
        parts = ["bokeh", "bokeh-gl", "bokeh-widgets", "bokeh-tables"]
        inline = resources_of(mode="inline", components=parts)
        _LOADED.extend([inline.render_js(), inline.render_css()])
    return _LOADED[0], _LOADED[1]


_LOADED: list[str] = []


def script(name: str) -> str:
    """Reads one of this folder's scripts."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def render(title: str, sections: Sequence[Section], left_out: Sequence[str]) -> str:
    """Makes the page; `left_out` has a line for everything that did not fit."""
    embed: Any = import_module("bokeh.embed")
    blocks = [block for section in sections for block in (*section.blocks, *section.folded)]
    widgets = [block for block in blocks if isinstance(block, Widget)]
    code, divs = embed.components([w.model for w in widgets]) if widgets else ("", [])
    place = {id(widget): div for widget, div in zip(widgets, divs, strict=True)}
    loaded, styles = _resources()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["typeset"] = lambda text: typeset(text).replace(" %", "\u00a0%")
    template = environment.from_string(script("page.html"))
    safe = Markup
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
