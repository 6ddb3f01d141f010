"""Choices that library and command line share; imports nothing heavy, so that `--help` is quick."""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


class Colormap(StrEnum):
    """Colours of a map. Diverging ones are symmetric about zero; jet is the classic look."""

    DIVERGING = "diverging"
    JET = "jet"
    VIRIDIS = "viridis"
    GRAY = "gray"


class Scaling(StrEnum):
    """What full white is the largest value of, when kernels or maps become grey levels."""

    FILTER = "filter"
    LAYER = "layer"
