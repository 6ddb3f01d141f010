"""The model that ships with cnnviz: its network, its weights and its card.

A narrow residual network for 32x32 colour images (CIFAR-10; `benchmarks/train_bundled.py` trains
it). Three stages, each a widening convolution, a 2x2 max pool and one residual block (He et al.
2015, "Deep Residual Learning for Image Recognition"); a global average feeds the linear head, so
images of any size fit. Every activation is a module with its own name, so that it can be watched
and ablated.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "cifar10.safetensors"
CARD = FOLDER / "card.json"


@dataclass(frozen=True)
class Card:
    """What the bundled model was trained on, and its accuracy; `text` is the whole card."""

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    text: dict[str, Any]


def read_card() -> Card:
    """Read the card that ships with the weights."""
    try:
        text = json.loads(CARD.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CnnvizError(
            f"the bundled model is missing from this installation ({CARD} does not exist); "
            "install cnnviz again"
        ) from error
    return Card(
        tuple(text["labels"]), tuple(text["mean"]), tuple(text["std"]), int(text["size"]), text
    )


WIDTHS = (24, 48, 96, 160)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity shortcut; (N, C, H, W) in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The rectified sum of the input and what the two convolutions make of it."""
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(x + self.bn2(self.conv2(y)))
        return out


def _widen(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(channels_out),
            relu=nn.ReLU(),
        )
    )


class CifarNet(nn.Module):
    """(N, 3, H, W) normalised images, H and W at least 8, to (N, classes) logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        first, *stages = WIDTHS
        self.stem = _widen(3, first)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (before, after) in enumerate(zip(WIDTHS, stages, strict=False), start=1):
            layers[f"widen{number}"] = _widen(before, after)
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            layers[f"block{number}"] = ResidualBlock(after)
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not probabilities."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(self.stem(x)))))
        return logits
