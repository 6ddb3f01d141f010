"""Networks and masks that hypothesis makes up: incremental equals full."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import prepare

SIZE = (29, 34)
CHANNELS = 4


@st.composite
def windows(draw: st.DrawFn) -> nn.Module:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    kind = draw(st.sampled_from(["conv", "conv", "max", "average"]))
    if kind == "conv":
        padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        groups = draw(st.sampled_from([1, 2, CHANNELS]))
        mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "reflect"]))
        return nn.Conv2d(
            CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups, padding_mode=mode
        )
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    ceil = draw(st.booleans())
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    return nn.AvgPool2d(kernel, stride, padding, ceil, draw(st.booleans()))


class Made(nn.Module):
    """Stages in a row; some have a branch beside them that is added or concatenated."""

    def __init__(self, stages: list[tuple[nn.Module, str]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.stages = nn.ModuleList(stage for stage, _join in stages)
        self.joins = [join for _stage, join in stages]
        self.beside = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in stages)
        self.narrow = nn.ModuleList(nn.Conv2d(2 * CHANNELS, CHANNELS, 1) for _ in stages)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage, join, beside, narrow in zip(
            self.stages, self.joins, self.beside, self.narrow, strict=True
        ):
            x = torch.tanh(stage(x))
            if join == "add":
                x = x + beside(x)
            if join == "cat":
                x = narrow(torch.cat([beside(x), x], 1))
        return x.mean((2, 3))


@st.composite
def boxes(draw: st.DrawFn) -> Tensor:
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        y0, x0 = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
        y1, x1 = draw(st.integers(y0 + 1, SIZE[0])), draw(st.integers(x0 + 1, SIZE[1]))
        rows.append([y0, x0, y1, x1])
    return torch.tensor(rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(windows(), st.sampled_from(["", "add", "cat"])), min_size=1, max_size=4),
    boxes(),
    st.integers(0, 1000),
)
def test_incremental_equals_full_for_made_up_networks(
    stages: list[tuple[nn.Module, str]], masks: Tensor, seed: int
) -> None:
    torch.manual_seed(seed)
    module = Made(stages).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    image, fill = torch.randn(3, *SIZE), torch.randn(3, *SIZE)
    prepared = prepare(module, SIZE, device=torch.device("cpu"))
    if prepared.graph is None:  # the made-up windows do not fit one another
        assert prepared.reason is not None
        assert "does not run on" in prepared.reason
        return
    full = FullEngine(prepared).run(image, fill, masks).logits_PK
    incremental = IncrementalEngine(prepared).run(image, fill, masks).logits_PK
    assert float((full - incremental).abs().max()) <= 1e-5 * max(1.0, float(full.abs().max()))
