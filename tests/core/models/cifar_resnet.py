"""The CIFAR-10 residual networks of He et al. 2015, "Deep Residual Learning", section 4.2.

Three stages of n blocks with 16, 32 and 64 channels, 6n + 2 layers in all. Shortcuts between
stages have no parameters (option A): every second row and column, new channels zero.
"""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.added = after - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.added:
            side = self.added // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = nn.functional.pad(x, (0, 0, 0, 0, side, self.added - side))
        return torch.relu(x + y)


class CifarResNet(nn.Module):
    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16)
        self.layer2 = self._stage(blocks, 16, 32)
        self.layer3 = self._stage(blocks, 32, 64)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(blocks: int, before: int, after: int) -> nn.Sequential:
        first = BasicBlock(before, after, after // before)
        return nn.Sequential(first, *(BasicBlock(after, after, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean((2, 3)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    return CifarResNet(9, num_classes)
