"""Text of figures: literal, measured, wrapped and drawn.

Text from users (labels, file names) is drawn literally, since matplotlib reads `$` as mathematics.
It is measured before a figure is made, so that its layout needs no pass of matplotlib's. Lengths
are in points (1/72 inch).
"""

import math
from functools import cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.ft2font import FT2Font, LoadFlags
from matplotlib.text import Text
from PIL import ImageFont, features

from cnnviz.core.choices import typeset

FONT = "DejaVu Sans"
LINE = 1.3
"""Height of a line of text over its size."""
RAQM = features.check("raqm")
"""Whether Pillow places glyphs as finely as they are measured."""


@cache
def _drawable() -> frozenset[int]:
    """The code points for which the figures' font has a glyph."""
    return frozenset(_font().get_charmap())


@cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(FONT))


def escape(text: str, longest: int = 60) -> str:
    """Text that matplotlib draws literally, on one line, without missing glyphs, not too long."""
    return _plain(text, longest).replace("$", r"\$")


def _plain(text: str, longest: int) -> str:
    glyphs = _drawable()
    shown = "".join(c if c.isprintable() and ord(c) in glyphs else "\ufffd" for c in typeset(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def text_width(text: str, size: float) -> float:
    """The width of a line of text in points."""
    return size * sum(map(_advance, text))


@cache
def _advance(character: str) -> float:
    """The width of a character over the size of the text (kerning is left out)."""
    font = _font()
    font.set_size(100, 72)
    glyph = font.load_char(ord(character), LoadFlags.NO_HINTING)
    return float(glyph.linearHoriAdvance) / 65536 / 100


def wrap(text: str, size: float, width: float, most: int = 4) -> list[str]:
    """Breaks text into at most `most` lines no wider than `width`, the last one cut off by '…'.

    Lines break at spaces; words that are wider break after a dot, slash or underscore, or anywhere.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        rest = _plain(paragraph, 400)
        while rest:
            fits = _fitting(rest, size, width)
            lines.append(rest[:fits].rstrip())
            rest = rest[fits:].lstrip()
    if len(lines) > most:
        lines = [*lines[: most - 1], shortened(lines[most - 1] + "……", size, width)]
    return lines


def balanced(text: str, size: float, width: float, most: int) -> list[str]:
    """Breaks a title as `wrap` does, into lines of about equal length."""
    lines = wrap(text, size, width, most)
    for share in (0.55, 0.65, 0.75, 0.85) if 1 < len(lines) < most else ():
        even = wrap(text, size, share * width, most)
        if len(even) == len(lines) and not even[-1].endswith("…"):
            return even
    return lines


def _fitting(text: str, size: float, width: float) -> int:
    """How many characters of the text make the next line."""
    if text_width(text, size) <= width:
        return len(text)
    ends = np.cumsum([size * _advance(character) for character in text])
    fits = max(1, int((ends <= width).sum()))
    space = text.rfind(" ", 0, fits + 1)
    if text[space + 1 : space + 2] == "%":  # stays with its number
        space = text.rfind(" ", 0, space)
    if space > 0:
        return space
    marks = [text.rfind(mark, 0, fits) + 1 for mark in "./_-"]
    return max(marks) if max(marks) > fits // 3 else fits


def shortened(text: str, size: float, width: float) -> str:
    """The text, cut off by '…' where it is wider than `width`."""
    shown = _plain(text, 400)
    if text_width(shown, size) <= width:
        return shown
    while len(shown) > 1 and text_width(shown + "…", size) > width:
        shown = shown[:-1]
    return shown.rstrip(" …") + "…"


def shortened_inside(text: str, size: float, width: float, tail: int = 10) -> str:
    """The text, with '…' in place of its middle where it is wider: its last characters stay."""
    shown = _plain(text, 400)
    if text_width(shown, size) <= width:
        return shown
    end = shown[-tail:]
    return shortened(shown[:-tail] + "……", size, width - text_width(end, size)) + end


def number(value: float) -> str:
    """A number of a colour bar, with two significant digits."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if 0.001 <= abs(value) < 10_000:
        return typeset(f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}")
    return f"{value:.1e}".replace("-", "−")


class Written(Text):
    """A horizontal line of text; in PNG files Pillow draws it, ten times as fast as matplotlib."""

    def draw(self, renderer: Any) -> None:
        """Draws the line."""
        if not (isinstance(renderer, RendererAgg) and RAQM):
            super().draw(renderer)
            return
        font = _pillow_font(self.get_fontsize() * renderer.dpi / 72)
        mask, offset = font.getmask2(self.get_text().replace(r"\$", "$"), "L", anchor="ls")
        wide, high = mask.size
        x, y = self.get_transform().transform(self.get_position())
        red, green, blue, alpha = to_rgba(self.get_color(), self.get_alpha())
        pixels = np.empty((high, wide, 4), np.uint8)
        pixels[..., :3] = np.rint(255 * np.array([red, green, blue]))
        pixels[..., 3] = np.frombuffer(bytes(mask), np.uint8).reshape(high, wide)[::-1] * alpha
        gc = renderer.new_gc()
        left, bottom = round(x) + offset[0], round(y) - offset[1] - high
        renderer.draw_image(gc, left, bottom, pixels)
        gc.restore()


@cache
def _pillow_font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont(FONT), size)
