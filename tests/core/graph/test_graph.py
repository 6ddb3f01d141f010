import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cnnviz.core.graph.fold import fold
from cnnviz.core.graph.geometry import Fixed, Merge, Mix, Pointwise, Window
from cnnviz.core.graph.reach import reach
from cnnviz.core.graph.trace import Graph, Untraceable, describe, trace
from cnnviz.core.models.layers import watch_outputs

SIZE = (13, 17)


def graph_of(module: nn.Module, size: tuple[int, int] = SIZE) -> Graph:
    return describe(trace(nn.Sequential(module).eval()), size)


class Block(nn.Module):
    """conv → batch norm → relu twice around a shortcut, relu shared between both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.dropout(self.bn2(self.conv2(y)))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 5, stride=2, padding=2)
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.block(self.stem(x))), 1))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics in every batch norm, so that folding has something to do."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    return module.eval()


def function(run):
    class Function(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return run(x)

    return Function()


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


LOCAL_AND_SLIDING = {
    "conv": nn.Conv2d(3, 2, 3),
    "conv strided": nn.Conv2d(3, 2, 3, stride=2, padding=1),
    "conv dilated, asymmetric": nn.Conv2d(3, 2, (3, 2), stride=(1, 3), dilation=2, padding=(0, 2)),
    "conv same": nn.Conv2d(3, 2, 3, padding="same", dilation=2),
    "conv kernel below stride": nn.Conv2d(3, 2, 1, stride=3),
    "conv depthwise": nn.Conv2d(3, 3, 3, groups=3, padding=1),
    "conv reflect": nn.Conv2d(3, 2, 3, padding=2, padding_mode="reflect"),
    "max pool": nn.MaxPool2d(3, 2, padding=1),
    "max pool ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pool": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "adaptive, divisible": nn.Sequential(nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((3, 4))),
    "zero pad": nn.ZeroPad2d((1, 2, 0, 3)),
    "replication pad": nn.ReplicationPad2d(2),
    "batch norm": nn.BatchNorm2d(3),
    "strided slice": function(lambda x: x[:, :, ::2, 1::3]),
    "channel slice": function(lambda x: torch.unsqueeze(x[:, 1], 1) * 2 + 1),
    "channel padding": function(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))),
    "concatenation": function(lambda x: torch.cat([x, F.max_pool2d(x, 3, 1, 1)], 1)),
    "split": function(lambda x: torch.cat([x.chunk(3, dim=1)[0], x.split(1, 1)[2]], 1)),
    "shuffle": function(shuffle),
    "channels last": function(
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2)
    ),
    "product": function(lambda x: x * torch.sigmoid(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCAL_AND_SLIDING)
def test_reach_is_what_a_change_really_changes(name: str) -> None:
    torch.manual_seed(0)
    module = LOCAL_AND_SLIDING[name].eval()
    graph = graph_of(module)
    image = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        before = module(image)
        for row, column in ((0, 0), (5, 6), (6, 9), (12, 16)):
            changed = image.clone()
            changed[:, :, row, column] += 100 * torch.tensor([1.0, -1.0, 1.5])
            differs = (module(changed) != before).any(1)[0]
            for axis, place in enumerate((row, column)):
                spans = reach(
                    graph, axis, torch.tensor([place]).numpy(), torch.tensor([place]).numpy()
                )
                where = differs.any(1 - axis).nonzero().flatten().tolist()
                span = spans[graph.output]
                if (
                    "max pool" in name
                    or "pad" in name
                    or "reflect" in name
                    or name == "concatenation"
                ):
                    assert not where or span.first_I[0] <= where[0] <= where[-1] <= span.last_I[0]
                elif not where:
                    other = reach(
                        graph, 1 - axis, *2 * (torch.tensor([(column, row)[axis]]).numpy(),)
                    )[graph.output]
                    assert span.last_I[0] < 0 or other.last_I[0] < 0
                else:
                    assert (span.first_I[0], span.last_I[0]) == (where[0], where[-1])


@pytest.mark.parametrize(
    "module",
    [
        nn.GroupNorm(1, 3),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.ConvTranspose2d(3, 3, 2, stride=2),
        function(lambda x: x * x.mean((2, 3), keepdim=True)),
        function(lambda x: x.flip(2)),
        function(lambda x: x.transpose(2, 3) @ x),
        function(lambda x: torch.softmax(x, dim=3)),
        function(lambda x: torch.cat([x, x], 2)),
        function(lambda x: x[:, 1, 2:, ::2].unsqueeze(1)),  # a window reads all channels
        function(lambda x: x[:, :2, :, 3:]),
    ],
)
def test_what_mixes_positions_reaches_everything(module: nn.Module) -> None:
    graph = graph_of(module)
    spans = reach(graph, 0, torch.tensor([5]).numpy(), torch.tensor([5]).numpy())
    span = spans.get(graph.output)
    assert span is None or (span.first_I[0], span.last_I[0] + 1) == (0, span.extent)


def test_geometry_of_a_small_network_is_told_node_by_node() -> None:
    graph = describe(trace(Net().eval()), SIZE)
    geometry = {info.layer: info.geometry for info in graph.info.values() if info.layer}
    sides = ((2, 2), (2, 2))
    assert geometry["stem"] == Window((5, 5), (2, 2), sides)
    assert geometry["block.conv1"] == Window((3, 3), padding=((1, 1), (1, 1)))
    assert geometry["block.bn1"] == Pointwise()
    assert geometry["pool"] == Mix(mean=True)
    assert geometry["head"] == Mix()
    assert Merge() in {info.geometry for info in graph.info.values()}
    assert graph.info[graph.layers["stem"]].shape == (1, 3, 7, 9)
    assert graph.info[graph.layers["pool"]].shape == (1, 3, 1, 1)


def test_a_window_reaches_the_outputs_that_read_its_inputs() -> None:
    window = Window((3, 5), (2, 3), ((1, 1), (0, 2)), (1, 2))

    def reads(axis: int, out: int) -> list[int]:
        first = out * window.stride[axis] - window.padding[axis][0]
        return [first + tap * window.dilation[axis] for tap in range(window.kernel[axis])]

    for axis in (0, 1):
        places = np.arange(20, 40)
        firsts, lasts = window.reaches(axis, places, places)
        for place, first, last in zip(places, firsts, lasts, strict=True):
            real = [out for out in range(30) if place in reads(axis, out)]
            assert not real or (first <= real[0] and real[-1] <= last)
        first, last = (int(end[0]) for end in window.reaches(axis, places[:1], places[10:11]))
        assert reads(axis, first)[-1] >= 20
        assert reads(axis, first - 1)[-1] < 20
        assert reads(axis, last)[0] <= 30
        assert reads(axis, last + 1)[0] > 30


def test_layers_leaf_and_composite_are_found_by_name() -> None:
    module = lively(Net())
    graph = describe(trace(module), SIZE)
    image = torch.rand(2, 3, *SIZE)
    interpreter = torch.fx.Interpreter(graph.module, garbage_collect_values=False)
    interpreter.run(image)
    for layer in ("stem", "block", "pool", "head"):
        with watch_outputs(module, [layer]) as outputs:
            module(image)
        assert torch.equal(interpreter.env[graph.layers[layer]], outputs[layer])


def test_parameters_and_shapes_are_fixed() -> None:
    graph = graph_of(function(lambda x: x.reshape(x.shape[0], -1) + torch.ones(1)))
    kinds = {node.name: info.geometry for node, info in graph.info.items()}
    assert kinds["getattr_1"] == Fixed()
    assert kinds["getitem"] == Fixed()
    assert kinds["reshape"] == Mix()


def test_tracing_and_folding_leave_the_module_as_it_was() -> None:
    module = lively(Net())
    before = {k: (v.clone(), v.data_ptr(), v.stride()) for k, v in module.state_dict().items()}
    layers = dict(module.named_modules())
    fold(trace(module))
    after = module.state_dict()
    assert dict(module.named_modules()) == layers
    assert module.block.relu.inplace
    for name, (value, address, stride) in before.items():
        assert torch.equal(after[name], value)
        assert (after[name].data_ptr(), after[name].stride()) == (address, stride)


def test_folding_gives_the_same_numbers_with_fewer_operations() -> None:
    module = lively(Net())
    folded = fold(trace(module))
    image = torch.rand(2, 3, *SIZE)
    torch.testing.assert_close(folded(image), module(image), rtol=1e-5, atol=1e-6)
    kinds = {
        type(folded.get_submodule(str(n.target))) for n in folded.graph.find_nodes(op="call_module")
    }
    assert nn.BatchNorm2d not in kinds
    assert nn.Dropout not in kinds


def test_what_hooks_and_training_mode_do_is_not_folded_away() -> None:
    """Each of these would be: the norm's own statistics, a dropout, what a hook adds."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    norm.running_mean.fill_(0.3)
    dropout, identity = nn.Dropout(0.5), nn.Identity()
    module = nn.Sequential(conv, norm, dropout, identity).eval()
    image = torch.rand(1, 3, *SIZE)

    def answer() -> Tensor:
        torch.manual_seed(1)
        torch.testing.assert_close(fold(trace(module))(image), module(image))
        return module(image)

    plain = answer()
    for part in (conv, norm, identity):
        hook = part.register_forward_hook(lambda _, _args, out: out * 2 + out.mean())
        assert not torch.equal(answer(), plain)
        hook.remove()
    norm.training = True
    norm.momentum = 0.0
    assert not torch.equal(answer(), plain)
    norm.training, dropout.training = False, True
    kinds = [type(layer) for layer in fold(trace(module)).modules()]
    assert nn.Dropout in kinds


def test_a_norm_of_many_devices_is_folded() -> None:
    module = lively(nn.SyncBatchNorm.convert_sync_batchnorm(Net()))
    folded, image = fold(trace(module)), torch.rand(2, 3, *SIZE)
    torch.testing.assert_close(folded(image), module(image), rtol=1e-5, atol=1e-6)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in folded.modules())


def test_a_kept_layer_is_not_folded_away() -> None:
    module = lively(Net())
    graph = describe(fold(trace(module), keep=["block.conv1"]), SIZE)
    image = torch.rand(2, 3, *SIZE)
    interpreter = torch.fx.Interpreter(graph.module, garbage_collect_values=False)
    interpreter.run(image)
    torch.testing.assert_close(
        interpreter.env[graph.layers["block.conv1"]], module.block.conv1(module.stem(image))
    )
    assert "block.conv1" not in describe(fold(trace(module)), SIZE).layers


def test_overwriting_in_place_is_seen_by_later_readers() -> None:
    def run(x: Tensor) -> Tensor:
        y = x * 1.0
        z = F.relu(y, inplace=True)
        return y + z

    module = function(run).eval()
    image = torch.randn(2, 3, *SIZE)
    graph = describe(fold(trace(module)), SIZE)
    add = graph.output
    assert add.args[0] is add.args[1]
    torch.testing.assert_close(graph.module(image), module(image))


def test_overwriting_through_a_view_is_refused() -> None:
    def run(x: Tensor) -> Tensor:
        y = x * 1.0
        y.chunk(3, 1)[0].relu_()
        return y + 1

    with pytest.raises(Untraceable, match="overwrites a part of"):
        fold(trace(function(run).eval()))


def test_control_flow_on_values_is_untraceable() -> None:
    module = function(lambda x: x if x.sum() > 0 else -x).eval()
    with pytest.raises(
        Untraceable, match=r"Function cannot be traced \(symbolically traced variab"
    ):
        trace(module)


def test_compiled_training_and_many_inputs_are_untraceable() -> None:
    with pytest.raises(Untraceable, match=r"in training mode; call \.eval"):
        trace(Net().train())

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(Untraceable, match="it takes 2 inputs, not one"):
        trace(Two().eval())


def test_a_size_that_does_not_fit_is_told() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(Untraceable, match="the network does not run on 13x17"):
        describe(trace(module), SIZE)


class Flagged(nn.Module):
    """Arguments beside the image that all have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(
        self,
        x: Tensor,
        features: bool = False,
        mask: Tensor | None = None,
        scale: float = 2.0,
        mode: str = "mean",
    ) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.conv(x) * scale
        if mask is not None:
            maps = maps * mask
        pooled = maps.mean((2, 3)) if mode == "mean" else maps.amax((2, 3))
        out: Tensor = self.fc(pooled)
        return (out, pooled) if features else out


def test_arguments_with_defaults_are_fixed_at_them() -> None:
    torch.manual_seed(0)
    module = Flagged().eval()
    x = torch.randn(2, 3, 8, 8)
    traced = trace(module)
    assert torch.equal(traced(x), module(x))
    assert [node.name for node in traced.graph.find_nodes(op="placeholder")] == ["x"]
    graph = describe(traced, (8, 8))
    assert graph.layers.keys() == {"conv", "fc"}


class Caching(nn.Module):
    """Keeps a bias by device, its last map and its shapes, as attention of LeViT and hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bias = nn.Parameter(torch.ones(4, 2))
        self.cache: dict[str, Tensor] = {}
        self.shapes: list[object] = []

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.bias[:, 0]
        self.last = self.conv(x)
        self.shapes.append(x.shape)
        return self.last.mean((2, 3)) + self.cache[key]


def test_what_a_forward_keeps_while_it_is_traced_is_forgotten() -> None:
    module, image = Caching().eval(), torch.rand(1, 3, 8, 8)
    for _ in range(2):
        graph = describe(trace(module), (8, 8))
        assert not module.cache
        assert not module.shapes
        assert not hasattr(module, "last")
    expected = module(image)
    torch.testing.assert_close(graph.module(image), expected)
    torch.testing.assert_close(trace(module)(image), expected)
    assert list(module.cache) == ["cpu"]
    assert isinstance(module.last, Tensor)
