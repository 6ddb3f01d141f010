"""Choices that library and command line share; imports nothing heavy, so that `--help` is fast."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    import torch


LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey of the same brightness (ITU-R BT.601)."""


class Precision(StrEnum):
    """Floating-point precision of weights and activations."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> "torch.dtype":
        """The torch type."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.value]


class FigureFormat(StrEnum):
    """File formats of figures; sheets of pixels are always PNG."""

    PNG = "png"
    PDF = "pdf"
    SVG = "svg"


class HeadChoice(StrEnum):
    """What a network's outputs mean; `auto` determines it from those for random images."""

    AUTO = "auto"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    PROBABILITIES = "probabilities"
    NONE = "none"


class Decode(StrEnum):
    """How JPEG files are decoded: exactly, or at a reduced size where they are large."""

    EXACT = "exact"
    FAST = "fast"


def whole_number(text: str) -> int | None:
    """Parse plain digits; None for anything else, or more than 18 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def percent(share: float | None, digits: int = 0) -> str:
    """A share as text, "95 %"; a dash for None."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


_MINUS = re.compile(
    r"(?<![^\s(\[=:<>≤≥≈±/…])-(?=(?:inf|\d[\d.,]*(?:e[-+]?\d+)?)(?:[\s%)\]:;/…]|$))"
)


def typeset(text: str) -> str:
    """Text for people, in figures, tables and pages: negative numbers have a minus sign."""
    return _MINUS.sub("−", text)


def decimals(value: float) -> str:
    """Three decimals, and never 0.000 for what is not zero."""
    shown = f"{value:.3f}"
    return shown if value == 0 or float(shown) else f"{'<' if value > 0 else '>-'}0.001"


def pixels(text: str, option: str) -> tuple[int, int]:
    """Parse `15` to (15, 15) and `15x30` to (15, 30): rows, columns; `option` is for the error."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.lower())
    rows, columns = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(rows, columns) > 0:
        return rows, columns
    what = option.strip("-").replace("-", " ")
    raise UsageError(
        f"invalid {what} '{text[:40]}'; {option} takes a side in pixels (15) or HxW (15x30), each "
        "from 1 to 99999"
    )


def pixels_text(sides: int | tuple[int, ...]) -> str:
    """Format what `pixels` parses: `15`, or `15x30`."""
    rows, columns = pair_of(sides)
    return str(rows) if rows == columns else f"{rows}x{columns}"


def pair_of(sides: int | tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns, of one number for both."""
    rows, columns = (sides, sides) if isinstance(sides, int) else sides
    return rows, columns


class Scaling(StrEnum):
    """Where the largest value, which becomes white, is taken from when drawing grey levels."""

    FILTER = "filter"
    LAYER = "layer"
