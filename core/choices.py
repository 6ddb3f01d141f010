"""Choices that library and command line share; imports nothing heavy, so that `--help` is quick."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    import torch


LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey that looks as bright (ITU-R BT.601)."""


class Precision(StrEnum):
    """The number format that weights and activations have during the run."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> "torch.dtype":
        """The torch type of the same meaning."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.value]


class FigureFormat(StrEnum):
    """Kinds of files that figures are written as; sheets of pixels are always PNG."""

    PNG = "png"
    PDF = "pdf"
    SVG = "svg"


class Colormap(StrEnum):
    """Colours of a map. Diverging ones are symmetric about zero; jet is the classic look."""

    DIVERGING = "diverging"
    JET = "jet"
    VIRIDIS = "viridis"
    GRAY = "gray"


class HeadChoice(StrEnum):
    """What a network's numbers mean; `auto` settles it on its outputs for random pictures."""

    AUTO = "auto"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    PROBABILITIES = "probabilities"
    NONE = "none"


def whole_number(text: str) -> int | None:
    """A number in plain digits; None for anything else, or beyond 18 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def pixels(text: str, option: str) -> tuple[int, int]:
    """`15` to (15, 15), `15x30` to (15, 30): rows, columns.

    Raises:
        UsageError: neither of the two forms, or a side out of range; `option` is named.
    """
    found = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text.lower())
    rows, columns = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(rows, columns) > 0:
        return rows, columns
    what = option.strip("-").replace("-", " ")
    raise UsageError(
        f"'{text[:40]}' is no {what}; {option} takes a side in pixels (15) or HxW (15x30), each "
        "from 1 to 99999"
    )


class Scaling(StrEnum):
    """What full white is the largest value of, when kernels or maps become grey levels."""

    FILTER = "filter"
    LAYER = "layer"
