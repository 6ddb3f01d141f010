"""3x3 convolutions on the CPU with fewer multiplications: Winograd's minimal filtering.

An m x m tile of outputs takes (m + 2)² multiplications per pair of channels instead of 9 m²: four
times fewer for m = 4, the size used here (Lavin and Gray 2016, "Fast Algorithms for Convolutional
Neural Networks", section 4). The sums are the same in exact arithmetic; in float32 they differ by a
few 1e-6 of the largest output. torch's CPU convolution multiplies directly, already at the CPU's
peak rate, so only fewer multiplications can be faster.

Tiles need transforms and exceed the edge of small maps, and the transformed weights are larger, so
each call uses the tiled or the direct algorithm, whichever is predicted to be faster.
Shapes: N images, C input and K output channels, T tiles, A = (m + 2)².
"""

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cnnviz.core.graph.trace import replaced

# Per second, on one thread of an AVX-512 CPU; only their ratios matter.
_DIRECT_MACS = 55e9
_PRODUCT_MACS = 47e9
_BYTES = 8e9
_MINIMUM_CHANNELS = 64
_SCRATCH = 10 * 2**20  # bytes of transformed tiles at a time
_TILE = 4  # m
TILES = (0, _TILE)  # 0 is the direct algorithm


def _both_axes(rows: list[list[float]]) -> Tensor:
    """The transform of columns and rows together, as one float64 matrix."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix)


_INPUT = _both_axes([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
]).float()  # fmt: skip
_WEIGHT = _both_axes([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
])  # fmt: skip
_OUTPUT = _both_axes(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
).float()


def seconds(tile: int, count: int, size: tuple[int, int], channels: tuple[int, int]) -> float:
    """Predicts the time on one thread for `count` outputs of `size`; tile 0 is direct."""
    inputs, outputs = channels
    if tile == 0:
        return count * size[0] * size[1] * 9.0 * inputs * outputs / _DIRECT_MACS
    tiles = count * -(-size[0] // tile) * -(-size[1] // tile)
    area = (tile + 2) ** 2
    multiplied = area * inputs * outputs + area**2 * inputs + area * tile**2 * outputs
    moved = 3 * area * (inputs + outputs) * tiles + area * inputs * outputs
    return tiles * multiplied / _PRODUCT_MACS + 4 * moved / _BYTES


class WinogradConv2d(nn.Conv2d):
    """A convolution with 3x3 kernel and stride 1 that selects its algorithm for each call."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Computes what `nn.Conv2d` computes."""
        rows, columns = self._sides
        size = (input.shape[2] + 2 * rows - 2, input.shape[3] + 2 * columns - 2)
        if self._direct(len(input), size):
            return super().forward(input)
        return self._in_parts(input, size, (rows, columns))

    def valid(self, input: Tensor) -> Tensor:  # noqa: A002
        """Convolves without padding: (N, C, h + 2, w + 2) to (N, K, h, w)."""
        size = (input.shape[2] - 2, input.shape[3] - 2)
        if self._direct(len(input), size):
            return F.conv2d(input, self.weight, self.bias)
        return self._in_parts(input, size, (0, 0))

    @property
    def _sides(self) -> tuple[int, int]:
        if isinstance(self.padding, str):
            return (1, 1) if self.padding == "same" else (0, 0)
        return int(self.padding[0]), int(self.padding[1])

    def _direct(self, count: int, size: tuple[int, int]) -> bool:
        channels = (self.in_channels, self.out_channels)
        return not min(TILES, key=lambda tile: seconds(tile, count, size, channels))

    def _in_parts(self, images: Tensor, size: tuple[int, int], sides: tuple[int, int]) -> Tensor:
        """Convolves few images at a time: their transformed tiles are several times larger."""
        tiles = -(-size[0] // _TILE) * -(-size[1] // _TILE)
        scratch = 4 * (_TILE + 2) ** 2 * tiles * max(self.in_channels, self.out_channels)
        parts = torch.split(images, max(1, _SCRATCH // scratch))
        done = [self._tiled(part, size, sides) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _tiled(self, images: Tensor, size: tuple[int, int], sides: tuple[int, int]) -> Tensor:
        tile = _TILE
        high, wide = -(-size[0] // tile), -(-size[1] // tile)
        below, right = high * tile - size[0], wide * tile - size[1]
        around = (sides[1], sides[1] + right, sides[0], sides[0] + below)
        padded = F.pad(images, around) if any(around) else images
        rows_NHWC = padded.permute(0, 2, 3, 1).contiguous()
        span, count = tile + 2, len(images)
        n, y, x, c = rows_NHWC.stride()
        shape = (span, span, count, high, wide, self.in_channels)
        tiles = rows_NHWC.as_strided(shape, (y, x, n, tile * y, tile * x, c))
        tiles_ATC = _INPUT @ tiles.reshape(span * span, -1)
        products_ATK = torch.bmm(tiles_ATC.view(span * span, -1, self.in_channels), self._weights)
        pixels = _OUTPUT @ products_ATK.view(span * span, -1)
        pixels = pixels.view(tile, tile, count, high, wide, -1).permute(2, 3, 0, 4, 1, 5)
        out_NhwK = pixels.reshape(count, high * tile, wide * tile, -1)
        if self.bias is not None:
            out_NhwK += self.bias
        return out_NhwK[:, : size[0], : size[1]].permute(0, 3, 1, 2)

    @cached_property
    def _weights(self) -> Tensor:
        """The transformed weights (A, C, K)."""
        weight_9CK = self.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).double()
        transformed_ACK = self.weight.new_empty(len(_WEIGHT), *weight_9CK.shape[1:])
        for transformed_CK, row_9 in zip(transformed_ACK, _WEIGHT, strict=True):
            transformed_CK.copy_(torch.tensordot(row_9, weight_9CK, 1))
        return transformed_ACK


def speed_up(module: nn.Module) -> None:
    """Replaces convolutions of a module by `WinogradConv2d` where that can be faster."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _suits(layer) and not replaced(layer):
                parent.add_module(name, _replacement(layer))


def _suits(layer: nn.Conv2d) -> bool:
    plain = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == (
        (3, 3), (1, 1), (1, 1), 1,
    )  # fmt: skip
    narrow = min(layer.in_channels, layer.out_channels) < _MINIMUM_CHANNELS
    cpu = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    return plain and cpu and not narrow and layer.padding_mode == "zeros"


def _replacement(layer: nn.Conv2d) -> WinogradConv2d:
    other = WinogradConv2d.__new__(WinogradConv2d)
    other.__dict__.update(layer.__dict__)
    return other
