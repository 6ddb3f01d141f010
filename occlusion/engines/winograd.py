"""3x3 convolutions on the CPU with fewer multiplications: Winograd's minimal filtering.

An m x m tile of outputs takes (m + 2)² multiplications per pair of channels instead of 9 m²: four
times fewer for the m = 4 that is used here (Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks", section 4). The sums are the same in exact arithmetic; in float32
they differ by a few 1e-6 of the largest output. torch's own CPU convolution multiplies directly,
and already at the processor's peak, so this is what is left to save.

Tiles cost transforms and hang over the edge of small maps, and the transformed weights are larger,
so each call takes the tiled or the direct way, whichever is predicted to be the faster.
Shapes: N images, C input and K output channels, T tiles, A = (m + 2)².
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# Per second, on one thread of an AVX-512 processor; only their ratios matter.
_DIRECT_MACS = 55e9
_PRODUCT_MACS = 47e9
_BYTES = 8e9
_LEAST_CHANNELS = 64
_SCRATCH = 10 * 2**20  # bytes of transformed tiles at a time
TILES = (0, 4)  # 0 is the direct way

_INPUT = {
    4: [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ],
}  # fmt: skip
_WEIGHT = {
    4: [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
    ],
}  # fmt: skip
_OUTPUT = {
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


@functools.cache
def _both_ways(kind: str, tile: int) -> Tensor:
    """A transform of columns and rows at once, as one matrix."""
    matrix = torch.tensor({"input": _INPUT, "output": _OUTPUT}[kind][tile], dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


def seconds(tile: int, count: int, size: tuple[int, int], channels: tuple[int, int]) -> float:
    """Predicted time on one thread for `count` outputs of `size`; tile 0 is the direct way."""
    inputs, outputs = channels
    if tile == 0:
        return count * size[0] * size[1] * 9.0 * inputs * outputs / _DIRECT_MACS
    tiles = count * -(-size[0] // tile) * -(-size[1] // tile)
    area = (tile + 2) ** 2
    multiplied = area * inputs * outputs + area**2 * inputs + area * tile**2 * outputs
    moved = 3 * area * (inputs + outputs) * tiles + area * inputs * outputs
    return tiles * multiplied / _PRODUCT_MACS + 4 * moved / _BYTES


class WinogradConv2d(nn.Conv2d):
    """A convolution with 3x3 kernel and stride 1 that picks its algorithm call by call."""

    _transformed: dict[int, Tensor]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """As `nn.Conv2d`."""
        rows, columns = self._sides
        size = (input.shape[2] + 2 * rows - 2, input.shape[3] + 2 * columns - 2)
        tile = self._tile(len(input), size)
        if tile == 0:
            return super().forward(input)
        return self._in_parts(input, tile, size, (rows, columns))

    def valid(self, input: Tensor) -> Tensor:  # noqa: A002
        """Without padding: (N, C, h + 2, w + 2) to (N, K, h, w)."""
        size = (input.shape[2] - 2, input.shape[3] - 2)
        tile = self._tile(len(input), size)
        if tile == 0:
            return F.conv2d(input, self.weight, self.bias)
        return self._in_parts(input, tile, size, (0, 0))

    @property
    def _sides(self) -> tuple[int, int]:
        if isinstance(self.padding, str):
            return (1, 1) if self.padding == "same" else (0, 0)
        return int(self.padding[0]), int(self.padding[1])

    def _tile(self, count: int, size: tuple[int, int]) -> int:
        channels = (self.in_channels, self.out_channels)
        return min(TILES, key=lambda tile: seconds(tile, count, size, channels))

    def _in_parts(
        self, images: Tensor, tile: int, size: tuple[int, int], sides: tuple[int, int]
    ) -> Tensor:
        """Transformed tiles are several times as large as the images, so only some at a time."""
        tiles = -(-size[0] // tile) * -(-size[1] // tile)
        scratch = 4 * (tile + 2) ** 2 * tiles * max(self.in_channels, self.out_channels)
        parts = torch.split(images, max(1, _SCRATCH // scratch))
        done = [self._tiled(part, tile, size, sides) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _tiled(
        self, images: Tensor, tile: int, size: tuple[int, int], sides: tuple[int, int]
    ) -> Tensor:
        high, wide = -(-size[0] // tile), -(-size[1] // tile)
        below, right = high * tile - size[0], wide * tile - size[1]
        around = (sides[1], sides[1] + right, sides[0], sides[0] + below)
        padded = F.pad(images, around) if any(around) else images
        rows_NHWC = padded.permute(0, 2, 3, 1).contiguous()
        span, count = tile + 2, len(images)
        n, y, x, c = rows_NHWC.stride()
        shape = (span, span, count, high, wide, self.in_channels)
        tiles = rows_NHWC.as_strided(shape, (y, x, n, tile * y, tile * x, c))
        tiles_ATC = _both_ways("input", tile) @ tiles.reshape(span * span, -1)
        products_ATK = torch.bmm(
            tiles_ATC.view(span * span, -1, self.in_channels), self._weights(tile)
        )
        pixels = _both_ways("output", tile) @ products_ATK.view(span * span, -1)
        pixels = pixels.view(tile, tile, count, high, wide, -1).permute(2, 3, 0, 4, 1, 5)
        out_NhwK = pixels.reshape(count, high * tile, wide * tile, -1)
        if self.bias is not None:
            out_NhwK += self.bias
        return out_NhwK[:, : size[0], : size[1]].permute(0, 3, 1, 2)

    def _weights(self, tile: int) -> Tensor:
        """The transformed weights (A, C, K), made at first use."""
        if tile not in self._transformed:
            matrix = torch.tensor(_WEIGHT[tile], dtype=torch.float64)
            both_A9 = torch.kron(matrix, matrix)
            weight_9CK = self.weight.detach().permute(2, 3, 1, 0).flatten(0, 1).double()
            made_ACK = self.weight.new_empty(len(both_A9), *weight_9CK.shape[1:])
            for made_CK, row_9 in zip(made_ACK, both_A9, strict=True):
                made_CK.copy_(torch.tensordot(row_9, weight_9CK, 1))
            self._transformed[tile] = made_ACK
        return self._transformed[tile]


def speed_up(module: nn.Module) -> None:
    """Puts `WinogradConv2d` in place of the convolutions of a module where it can help."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _suits(layer):
                parent.add_module(name, _replacement(layer))


def _suits(layer: nn.Conv2d) -> bool:
    plain = (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == (
        (3, 3), (1, 1), (1, 1), 1,
    )  # fmt: skip
    narrow = min(layer.in_channels, layer.out_channels) < _LEAST_CHANNELS
    cpu = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    return plain and cpu and not narrow and layer.padding_mode == "zeros"


def _replacement(layer: nn.Conv2d) -> WinogradConv2d:
    other = WinogradConv2d.__new__(WinogradConv2d)
    other.__dict__.update(layer.__dict__)
    other.__dict__["_transformed"] = {}
    return other
