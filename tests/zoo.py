"""Small networks as people write them: every kind that has once gone wrong somewhere.

Each takes pictures (N, 3, 16, 16) and tells two classes apart. All but a few have the layers `a`,
`b` and `fc`, and differ in what happens between the first two (`middle`) or
behind the last (`end`).
"""

import argparse
import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (its customary name)
from torch.utils.checkpoint import checkpoint

SIDE = 16
CHANNELS = 8


class Plain(nn.Module):
    """Two convolutions, a mean, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.a = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.more()
        self.b = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.fc = nn.Linear(CHANNELS, 2)
        nn.init.normal_(self.fc.weight, std=4)

    def more(self) -> None:
        """Further layers."""

    def middle(self, x: Tensor) -> Any:
        return x

    def end(self, z: Tensor) -> Any:
        return z

    def body(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.a(x)))
        return F.relu(self.b(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(self.body(x)))


ZOO: dict[str, Callable[..., nn.Module]] = {}


def shown(make: Any) -> Any:
    """Puts a network into the zoo."""
    ZOO[make.__name__] = make
    return make


def middle(name: str, change: Callable[[Tensor], Tensor]) -> None:
    globals()[name] = shown(type(name, (Plain,), {"middle": lambda self, x: change(x)}))


def end(name: str, change: Callable[[Tensor], Any]) -> None:
    globals()[name] = shown(type(name, (Plain,), {"end": lambda self, z: change(z)}))


# --- wrapped, compiled, with arguments of their own -----------------------------------------------

shown(Plain)


@shown
def Compiled() -> Any:
    return torch.compile(Plain())


@shown
def CompiledPart() -> nn.Module:
    net: Any = Plain()
    net.b = torch.compile(net.b)
    return net  # type: ignore[no-any-return]


@shown
def Parallel() -> nn.Module:
    return nn.DataParallel(Plain())


@shown
def ParallelCompiled() -> nn.Module:
    return nn.DataParallel(torch.compile(Plain()))  # type: ignore[arg-type]


@shown
class ListOfLayers(Plain):
    def more(self) -> None:
        self.steps = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = F.relu(step(x))
        return x


@shown
class ListOfChunks(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([chunk * (i + 1) for i, chunk in enumerate(list(x.chunk(4, 1)))], 1)


@shown
class OptionalArguments(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        x = x if mask is None else x * mask
        return super().forward(x * scale)


@shown
class KeywordArguments(Plain):
    def forward(self, x: Tensor, *, features: bool = False) -> Any:
        return self.body(x) if features else super().forward(x)


# --- mixing the pictures of a batch, answering differently each time ------------------------------

middle("BatchStatistics", lambda x: F.batch_norm(x, None, None, training=True))
middle("BatchMaximum", lambda x: x / (x.max() + 1e-3))
middle("MinibatchDeviation", lambda x: x + (x.var(0, unbiased=False) + 1e-8).sqrt().mean())
middle("OneAtATime", lambda x: x.view(1, CHANNELS, SIDE, SIDE))


@shown
class AssertsOne(Plain):
    def middle(self, x: Tensor) -> Tensor:
        assert len(x) == 1, "one at a time"
        return x


middle("AlwaysDropout", lambda x: F.dropout(x, 0.3))
end("Jitter", lambda z: z + 0.1 * torch.randn_like(z))

# --- what comes out -------------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


Named = collections.namedtuple("Named", "hidden output")
end("Softmax", lambda z: z.softmax(1))
end("LogSoftmax", lambda z: z.log_softmax(1))
end("Sigmoid", lambda z: z.sigmoid())
end("Tuple", lambda z: (z, z.mean(1)))
end("Dict", lambda z: {"loss": None, "logits": z})
end("Dataclass", lambda z: Output(None, z))
end("NamedTuple", lambda z: Named(z.mean(1), z))
end("OnePosition", lambda z: z[:, :, None, None])
end("OneLogit", lambda z: z[:, 1:] - z[:, :1])
end("OneFlatLogit", lambda z: z[:, 1] - z[:, 0])
end("OneProbability", lambda z: (z[:, 1:] - z[:, :1]).sigmoid())

# --- operations -----------------------------------------------------------------------------------


@shown
class SqueezeAndExcitation(Plain):
    def more(self) -> None:
        self.squeeze, self.excite = nn.Conv2d(CHANNELS, 2, 1), nn.Conv2d(2, CHANNELS, 1)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


@shown
class TestTimeFlip(Plain):
    __test__ = False

    def forward(self, x: Tensor) -> Any:
        return (super().forward(x) + super().forward(x.flip(3))) / 2


middle("GlobalGate", lambda x: x * x.mean())
middle("Flip", lambda x: x.flip(3))
middle("Roll", lambda x: x.roll((2, -3), (2, 3)))
middle("Transpose", lambda x: x.transpose(2, 3))
middle("Quarter", lambda x: x.rot90(1, (2, 3)))
middle("Shuffle", lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2))
middle("UnfoldFold", lambda x: F.fold(F.unfold(x, 2, stride=2), (SIDE, SIDE), 2, stride=2))
middle("Where", lambda x: torch.where(x > 0.2, x, -x))
middle("NormalizeRows", lambda x: F.normalize(x, dim=2))
middle("Cumulative", lambda x: x.cumsum(3) / SIDE)
middle("Sorted", lambda x: x.sort(2).values)
middle("SplitColumns", lambda x: torch.cat([part * 0.5 for part in x.split(SIDE // 2, 3)], 3))
middle("SplitChannels", lambda x: torch.cat(x.split(CHANNELS // 2, 1)[::-1], 1))
middle("PowerPool", lambda x: F.lp_pool2d(x + 1e-3, 2, 2))
middle("Einsum", lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(CHANNELS) * 2))
middle("SpatialMatmul", lambda x: x @ x.transpose(2, 3) / SIDE)
middle("Attention", lambda x: x * x.flatten(2).softmax(2).view_as(x) * SIDE)
middle("Rounded", lambda x: x + (torch.round(x * 16) / 16 - x).detach())
middle("Upsampled", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"))
middle("UnevenPool", lambda x: F.adaptive_avg_pool2d(x, (5, 7)))
middle("Reflected", lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"))
middle("Strided", lambda x: x[:, :, ::2, 1::2])
middle("Clamped", lambda x: x.clamp(0.1, 0.4))
middle("Stacked", lambda x: torch.stack([x, -x], 1).flatten(1, 2)[:, :CHANNELS])
middle("Coordinates", lambda x: torch.cat([x[:, 1:], _columns(x)], 1))


def _columns(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.size(3)).view(1, 1, 1, -1).expand(x.size(0), 1, x.size(2), -1)


def with_layer(name: str, layer: Callable[[], nn.Module]) -> None:
    def more(self: Any) -> None:
        self.between = layer()

    def change(self: Any, x: Tensor) -> Any:
        return self.between(x)

    globals()[name] = shown(type(name, (Plain,), {"more": more, "middle": change}))


with_layer("LayerNormOverMaps", lambda: nn.LayerNorm([CHANNELS, SIDE, SIDE]))
with_layer("GroupNorm", lambda: nn.GroupNorm(2, CHANNELS))
with_layer("InstanceNorm", lambda: nn.InstanceNorm2d(CHANNELS))
with_layer("Transposed", lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, stride=2))
with_layer("Dilated", lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, dilation=2))
with_layer("Depthwise", lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS))


@shown
class Twice(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x))


@shown
class ViewBehind(Plain):
    def more(self) -> None:
        self.flat = nn.Linear(CHANNELS * 16, CHANNELS)

    def body(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 4)
        out: Tensor = self.flat(x.view(x.size(0), -1))
        return out


@shown
class FiveDimensions(Plain):
    def more(self) -> None:
        self.deep = nn.Conv3d(CHANNELS, CHANNELS, (1, 3, 3), padding=(0, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.deep(x.unsqueeze(2)).squeeze(2)
        return out


@shown
class Branches(Plain):
    def forward(self, x: Tensor) -> Any:
        z = super().forward(x)
        return z if z.sum() > -1e9 else -z


# --- gradients that are cut or forbidden ----------------------------------------------------------

middle("Detached", lambda x: x.detach())


@shown
class NoGradient(Plain):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


@shown
class Checkpointed(Plain):
    def middle(self, x: Tensor) -> Any:
        return checkpoint(torch.tanh, x, use_reentrant=True)


@shown
class CheckpointedAnew(Plain):
    def middle(self, x: Tensor) -> Any:
        return checkpoint(torch.tanh, x, use_reentrant=False)


# --- what the user's code does beside -------------------------------------------------------------


@shown
class Prints(Plain):
    def middle(self, x: Tensor) -> Tensor:
        print("shape", tuple(x.shape))  # noqa: T201
        return x


@shown
def ParsesArguments() -> nn.Module:
    argparse.ArgumentParser().parse_args()
    return Plain()


@shown
def TakesAnything(**_options: object) -> nn.Module:
    return Plain()


@shown
def RequiresClasses(num_class: int) -> nn.Module:
    net = Plain()
    net.fc = nn.Linear(CHANNELS, num_class)
    return net


ZOO["Instance"] = Instance = Plain()  # type: ignore[assignment]
ZOO["Partial"] = Partial = functools.partial(Plain)  # type: ignore[assignment]
