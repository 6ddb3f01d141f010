"""Small networks, one for each kind of operation that the incremental engine knows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def settle(module: nn.Module, size: tuple[int, int], seed: int = 0) -> nn.Module:
    """Random weights and batch-norm statistics that let a change of the image come through."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -0.2, 0.2)
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    with torch.no_grad():
        module(torch.randn(4, 3, *size))
    return module.eval()


def conv(channels_in: int, channels_out: int, *args: int, **kwargs: object) -> nn.Sequential:
    """Convolution, batch norm, relu in place."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, *args, bias=False, **kwargs),  # type: ignore[arg-type]
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def with_head(*body: nn.Module, channels: int = 8) -> nn.Sequential:
    """The body, a global mean and a linear head."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    return nn.Sequential(*body, *head)


class Residual(nn.Module):
    """A strided residual block with a projected shortcut."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, 8, 3, stride=stride, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
        )
        self.shortcut = nn.Conv2d(channels, 8, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class PlainShortcut(nn.Module):
    """The shortcut of CIFAR ResNets: every second pixel, channels padded with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)


class Dense(nn.Module):
    """A dense block: everything before is concatenated again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4 + 4 * i), nn.ReLU(), nn.Conv2d(4 + 4 * i, 4, 3, padding=1)
            )
            for i in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Branches(nn.Module):
    """An inception module: kernels of several shapes side by side, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.one = conv(4, 2, 1)
        self.wide = nn.Sequential(
            conv(4, 2, (1, 7), padding=(0, 3)), conv(2, 2, (7, 1), padding=(3, 0))
        )
        self.after = conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        return torch.cat([self.one(x), self.wide(x), self.after(pooled)], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze(x) * x


class ChannelsLast(nn.Module):
    """A ConvNeXt block: depthwise convolution, then layer norm and linear in NHWC."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.scale * y.permute(0, 3, 1, 2)


class Shuffle(nn.Module):
    """ShuffleNet's unit: half of the channels through a convolution, then shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)[0], x.chunk(2, dim=1)[1]
        joined = torch.cat((left, self.branch(right)), dim=1)
        n, c, h, w = joined.size()
        return joined.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Positions(nn.Module):
    """Adds a learned map, one value for each place."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.randn(1, 8, *size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map


class Mean(nn.Module):
    """A global mean written as a method."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])


class Larger(nn.Module):
    """The larger of two maps."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.max(x, x * 0.5 - 0.1)


def hooked(block: nn.Sequential) -> nn.Sequential:
    """The block; its convolution adds a mean, its norm only looks."""
    block[0].register_forward_hook(lambda _, args, out: out + args[0].mean((1, 2, 3), True))
    block[1].register_forward_hook(lambda *_: None)
    return block


SIZE = (33, 41)
STEM = (9, 11)


def networks() -> dict[str, nn.Module]:
    """Fresh networks for images of SIZE, by name."""
    small = conv(3, 8, 5, stride=2, padding=2)
    return {
        "strided dilated asymmetric": with_head(
            conv(3, 8, (3, 2), stride=(2, 3), dilation=(1, 2), padding=(0, 1)),
            conv(8, 8, 3, dilation=2, padding=2),
        ),
        "grouped, same padding": with_head(conv(3, 8, 3), conv(8, 8, 3, padding="same", groups=4)),
        "reflect and replicate": with_head(
            conv(3, 8, 3, padding=2, padding_mode="reflect"),
            nn.ReplicationPad2d(1),
            conv(8, 8, 3, padding=1, padding_mode="circular"),
        ),
        "padding with a value": with_head(nn.ConstantPad2d((1, 2, 0, 3), 0.7), conv(3, 8, 3)),
        "pools": with_head(
            conv(3, 8, 3),
            nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
            nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
            nn.AvgPool2d(3, 2, ceil_mode=True),
        ),
        "residual": with_head(
            conv(3, 4, 3, padding=1), Residual(4, 2), Residual(8, 1), Residual(8, 2)
        ),
        "plain shortcut": with_head(conv(3, 4, 3, padding=1), PlainShortcut()),
        "dense": nn.Sequential(
            conv(3, 4, 3), Dense(), nn.AvgPool2d(2), nn.Conv2d(16, 8, 3), Mean(), nn.Linear(8, 5)
        ),
        "branches": with_head(conv(3, 4, 3, stride=2), Branches(), nn.MaxPool2d(2)),
        "gate": with_head(small, Gate(), conv(8, 8, 3, padding=1)),
        "channels last": with_head(small, ChannelsLast(), ChannelsLast()),
        "shuffle": with_head(small, Shuffle(), Shuffle()),
        "learned map": with_head(small, Positions((17, 21)), conv(8, 8, 3)),
        "group norm": with_head(small, nn.GroupNorm(2, 8), conv(8, 8, 3)),
        "transposed": with_head(small, nn.ConvTranspose2d(8, 8, 2, stride=2), conv(8, 8, 3)),
        "flattened": nn.Sequential(
            small, nn.AdaptiveAvgPool2d((17, 7)), nn.Flatten(), nn.Linear(8 * 17 * 7, 5)
        ),
        "layers in their state": with_head(
            conv(3, 8, 3),
            nn.SyncBatchNorm(8),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
            nn.CircularPad2d(1),
            nn.Conv2d(8, 16, 3),
            nn.GLU(1),
            Larger(),
        ),
        "hooks and patches": with_head(small, hooked(conv(8, 8, 3)), conv(8, 8, 3)),
        "no places at all": nn.Sequential(nn.Flatten(), nn.Linear(3 * 33 * 41, 5)),
    }


@pytest.fixture
def network() -> Callable[[str], nn.Module]:
    """One of the networks by name, its random weights settled."""
    return lambda name: settle(networks()[name], SIZE)


@pytest.fixture
def settled() -> Callable[[nn.Module, tuple[int, int]], nn.Module]:
    """Puts lively random weights into any network."""
    return settle


@pytest.fixture
def plain() -> Callable[[], nn.Module]:
    """Convolutions and a head."""
    return lambda: settle(with_head(conv(3, 8, 3), conv(8, 8, 3, padding=1)), SIZE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `name` run once for each network."""
    if "name" in metafunc.fixturenames and metafunc.function.__name__.startswith("test_both"):
        metafunc.parametrize("name", list(networks()))
