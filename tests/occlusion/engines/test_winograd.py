import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cnnviz.occlusion.engines import winograd
from cnnviz.occlusion.engines.winograd import WinogradConv2d, speed_up


def pair(padding: int | str, *, bias: bool = True) -> tuple[nn.Conv2d, WinogradConv2d]:
    direct = nn.Conv2d(64, 70, 3, padding=padding, bias=bias)
    holder = nn.Sequential(direct)
    speed_up(holder)
    filtered = holder[0]
    assert isinstance(filtered, WinogradConv2d)
    return direct, filtered


@pytest.mark.parametrize("tile", winograd.TILES)
@pytest.mark.parametrize("padding", [0, 1, 2, "same"])
def test_minimal_filtering_equals_direct_convolution(
    tile: int, padding: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "seconds", lambda t, *_rest: float(t != tile))
    direct, filtered = pair(padding, bias=padding != 2)
    x = torch.randn(3, 64, 9, 13).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = F.conv2d(x.double(), direct.weight.double(), padding=padding)
        if direct.bias is not None:
            exact += direct.bias.double()[:, None, None]
        limit = 2e-5 * float(exact.abs().max())
        assert float((filtered(x) - exact).abs().max()) < limit
        valid = F.conv2d(x, direct.weight, direct.bias)
        assert float((filtered.valid(x) - valid).abs().max()) < limit


def test_only_plain_wide_3x3_convolutions_are_replaced() -> None:
    kept = [
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 3, stride=2), nn.Conv2d(64, 64, 3, dilation=2),
        nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3).bfloat16(),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
    ]  # fmt: skip
    module = nn.Sequential(*kept, nn.Conv2d(64, 64, 3))
    speed_up(module)
    assert [type(layer) for layer in module] == [nn.Conv2d] * len(kept) + [WinogradConv2d]


def test_large_calls_take_tiles_and_tiny_ones_do_not() -> None:
    def best(count: int, size: int, channels: int) -> int:
        return min(
            winograd.TILES,
            key=lambda tile: winograd.seconds(tile, count, (size, size), (channels, channels)),
        )

    assert best(16, 12, 512) == 4
    assert best(1, 1, 512) == 0
    assert best(8, 56, 64) == 0
