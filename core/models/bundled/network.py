"""The network that ships with cnnviz: nine convolutions, three residual blocks, batch norm.

A narrow residual network for 32x32 colour images (CIFAR-10). Three stages, each a widening
convolution, a 2x2 max pool and one residual block (He et al. 2015, "Deep Residual Learning for
Image Recognition"); a global average feeds the linear head, so images of any size fit.
Every activation is a module with a name of its own, so that it can be tapped and ablated.
"""

from collections import OrderedDict

from torch import Tensor, nn

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
