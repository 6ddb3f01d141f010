"""Receptive fields against the slow truth: which pixels have a gradient from one unit."""

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from cnnviz.core.graph.receptive_field import ReceptiveField, node_fields, receptive_fields
from cnnviz.core.graph.trace import describe, trace

Box = tuple[int, int, int, int]


def make_transparent(module: nn.Module) -> None:
    """Positive weights of sum one, so that no path is blocked or cancels another."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            if parameter.dim() > 1:
                sums = parameter.flatten(1).sum(1)
                parameter.div_(sums.view(-1, *[1] * (parameter.dim() - 1)))
            if name.endswith("bias"):
                parameter.fill_(0.01)


def average_for_maximum(traced: fx.GraphModule) -> None:
    """Max pools pass the gradient to one input alone; averages pass it to all that they read."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.get_submodule(node.target)
            if isinstance(layer, nn.MaxPool2d):
                pool = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
                traced.add_submodule(node.target, pool)
        elif node.op == "call_function" and node.target is functional.max_pool2d:
            node.target = functional.avg_pool2d
            kept = ("kernel_size", "stride", "padding", "ceil_mode")
            node.kwargs = {k: v for k, v in node.kwargs.items() if k in kept}
    traced.recompile()


class Values(fx.Interpreter):
    """Runs a graph and keeps the value of one node, with its gradient."""

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.wanted:  # type: ignore[attr-defined]
            self.kept[n.name] = value  # type: ignore[attr-defined]
        return value


def values(traced: fx.GraphModule, image: Tensor, names: set[str]) -> dict[str, Tensor]:
    runner = Values(traced)
    runner.wanted, runner.kept = names, {}  # type: ignore[attr-defined]
    runner.run(image)
    return runner.kept  # type: ignore[attr-defined, no-any-return]


def support(unit: Tensor, image: Tensor) -> Box:
    """The smallest box that holds every pixel with a gradient."""
    (gradient,) = torch.autograd.grad(unit, image, retain_graph=True)
    pixels = gradient[0].abs().amax(0) > 0
    rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def some_units(field: ReceptiveField) -> set[tuple[int, int]]:
    """Corners, the middle, and one beside the far edge."""
    height, width = field.units
    rows = {0, height // 2, max(0, height - 2), height - 1}
    columns = {0, width // 2, max(0, width - 2), width - 1}
    return {(r, c) for r, c in zip(sorted(rows), sorted(columns), strict=False)} | {
        (0, width - 1),
        (height - 1, width // 2),
    }


def check_against_gradients(
    module: nn.Module, size: tuple[int, int], every: int = 1, channels: int = 3
) -> int:
    """Compares boxes with gradients on every so-many-th map; returns how many were compared."""
    module = module.double().eval()
    make_transparent(module)
    traced = trace(module)
    graph = describe(traced, size, channels=channels, dtype=torch.float64)
    fields = node_fields(graph)
    maps = [(n, p) for n, p in graph.info.items() if p.axes == (2, 3) and p.shape and n in fields]
    chosen = dict([*maps[::every], maps[-1]])
    average_for_maximum(traced)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)
    image.requires_grad_(True)
    kept = values(traced, image, {node.name for node in chosen})
    compared = 0
    for node in chosen:
        for row, col in some_units(fields[node]):
            unit = kept[node.name][0, :, row, col].sum()
            expected = support(unit, image) if unit.requires_grad else (0, 0, 0, 0)
            found = fields[node].box(row, col, clipped_to=size)
            if expected[0] == expected[2] or found[0] == found[2] or found[1] == found[3]:
                assert expected == (0, 0, 0, 0), (node, row, col, found)
                continue
            assert found == expected, (node, row, col)
            compared += 1
    return compared


FAMILIES = {
    "alexnet": 95,
    "vgg11": 64,
    "resnet18": 70,
    "squeezenet1_1": 75,
    "densenet121": 64,
    "googlenet": 70,
    "inception_v3": 99,
    "shufflenet_v2_x0_5": 75,
    "mobilenet_v2": 70,
    "mobilenet_v3_small": 70,
    "mnasnet0_5": 70,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_equal_gradient_support_in_torchvision(name: str) -> None:
    extra = (
        {"aux_logits": False, "init_weights": False}
        if name in ("googlenet", "inception_v3")
        else {}
    )
    module = torchvision.models.get_model(name, weights=None, **extra)
    size = (FAMILIES[name], FAMILIES[name] + 9)
    assert check_against_gradients(module, size, every=9) > 10


def conv(draw: st.DrawFn) -> nn.Module:
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "reflect", "circular"]))
    return nn.Conv2d(2, 2, kernel, stride, padding, dilation, padding_mode=mode)


def pool(draw: st.DrawFn) -> nn.Module:
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = min(kernel) // 2 * draw(st.integers(0, 1))
    return nn.MaxPool2d(kernel, draw(st.integers(1, 3)), padding, ceil_mode=draw(st.booleans()))


def transposed(draw: st.DrawFn) -> nn.Module:
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, dilation = draw(st.integers(0, 1)), draw(st.integers(1, 2))
    return nn.ConvTranspose2d(2, 2, kernel, stride, padding, dilation=dilation)


def resampling(draw: st.DrawFn) -> nn.Module:
    rows, columns = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    return draw(
        st.sampled_from(
            [
                nn.AdaptiveAvgPool2d((rows, columns)),
                nn.Upsample(scale_factor=2),
                nn.Upsample(scale_factor=0.5),
                nn.Upsample(scale_factor=0.4, mode="bilinear"),
                nn.Upsample((rows + 6, columns + 6), mode="bilinear"),
                nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True),
            ]
        )
    )


class Sum(nn.Module):
    """Two branches of the same output size."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    kinds = st.sampled_from([conv, conv, pool, transposed, resampling])
    layers = [draw(kinds)(draw) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        half, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        branch = nn.Conv2d(2, 2, 2 * half + 1, padding=half * dilation, dilation=dilation)
        layers.insert(draw(st.integers(0, len(layers))), Sum(branch, nn.Conv2d(2, 2, 1)))
    return nn.Sequential(*layers)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(networks(), st.integers(9, 17), st.integers(9, 17))
def test_boxes_equal_gradient_support_in_generated_networks(
    module: nn.Module, height: int, width: int
) -> None:
    try:
        module.double()(torch.zeros(2, 2, height, width, dtype=torch.float64))
    except (RuntimeError, ValueError):
        return  # a map shrank to nothing, or reflection asks for more rows than there are
    check_against_gradients(module, (height, width), channels=2)


def strided(*kernels: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(*[nn.Conv2d(3, 3, k, stride, padding, dilation) for k in kernels]).eval()


def test_size_follows_the_recursion() -> None:
    kernels, stride, dilation = (5, 3, 4), 2, 3
    field = receptive_fields(strided(*kernels, stride=2, dilation=3, padding=1), (160, 160))["2"]
    expected = 1 + sum((k - 1) * dilation * stride**i for i, k in enumerate(kernels))
    assert field.size == (expected, expected)
    assert field.jump == (8, 8)
    assert field.start == (-7, -7)


def test_clipped_and_unclipped_agree_inside_the_image() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 3, (3, 5), padding=(1, 0), stride=(1, 2)),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3, 3, (1, 7), dilation=2),
    ).eval()
    field = receptive_fields(module, (90, 120))["2"]
    assert field.size == (5, 57)
    assert field.box(20, 7) == field.box(20, 7, clipped_to=(90, 120)) == (38, 26, 43, 83)


def resnet50(stride_in_first: bool) -> nn.Module:
    module = torchvision.models.resnet50(weights=None).eval()
    if stride_in_first:  # He et al. 2015; torchvision strides in the 3x3 convolution
        for stage in (module.layer2, module.layer3, module.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("stride_in_first", "size"), [(True, 483), (False, 427)])
def test_last_convolution_of_resnet50(stride_in_first: bool, size: int) -> None:
    field = receptive_fields(resnet50(stride_in_first), (224, 224))["layer4.2.conv3"]
    assert field.size == (size, size)
    assert field.jump == (32, 32)


@pytest.mark.slow
def test_last_convolution_and_pool_of_vgg16() -> None:
    fields = receptive_fields(torchvision.models.vgg16(weights=None).eval(), (224, 224))
    assert fields["features.28"].size == (196, 196)
    assert fields["features.30"].size == (212, 212)
    assert fields["features.30"].jump == (32, 32)


def test_infinite_behind_global_pooling_and_gates() -> None:
    gated = torchvision.ops.SqueezeExcitation(3, 2)
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), gated, nn.AdaptiveAvgPool2d(1)).eval()
    fields = receptive_fields(module, (20, 30))
    assert fields["0"].size == (3, 3)
    for name in ("1", "2"):
        assert fields[name].is_global
        assert fields[name].box(0, 0) == (-math.inf, -math.inf, math.inf, math.inf)
        assert fields[name].box(0, 0, clipped_to=(20, 30)) == (0, 0, 20, 30)
    assert fields["1"].jump == (1, 1)
    assert fields["1"].units == (20, 30)
    assert fields["2"].units == (1, 1)


def test_pixels_behind_a_floored_stride_are_not_claimed() -> None:
    module = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, padding=1)).eval()
    field = receptive_fields(module, (5, 5))["1"]
    assert field.box(1, 1) == (0, 0, 6, 6)
    assert field.box(1, 1, clipped_to=(5, 5)) == (0, 0, 4, 4)


def test_a_unit_that_reads_only_padding_has_an_empty_box() -> None:
    field = receptive_fields(nn.Sequential(nn.Conv2d(3, 3, 1, padding=2)).eval(), (4, 4))["0"]
    assert field.box(0, 0, clipped_to=(4, 4)) == (0, 0, 0, 0)


def test_a_missing_unit_or_another_image_size_is_refused() -> None:
    field = receptive_fields(strided(3), (10, 10))["0"]
    with pytest.raises(ValueError, match=r"no unit \(8, 0\) in a map of 8x8"):
        field.box(8, 0)
    with pytest.raises(ValueError, match=r"for \(10, 10\) images"):
        field.box(0, 0, clipped_to=(12, 12))


def test_fields_of_containers_are_those_of_their_output() -> None:
    module = nn.Sequential(strided(3, 3), nn.ReLU()).eval()
    fields = receptive_fields(module, (12, 12))
    assert fields["0"].size == fields["0.1"].size == fields["1"].size == (5, 5)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_copies_pixels_shows_where_they_come_from(mode: str) -> None:
    module = nn.Conv2d(3, 3, 1, padding=3, padding_mode=mode)  # type: ignore[arg-type]
    assert check_against_gradients(nn.Sequential(module), (7, 8)) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "resnet18", "densenet121", "mobilenet_v3_small"])
def test_the_page_has_what_its_script_finds(name: str) -> None:
    docs = Path(__file__).parent.parent.parent.parent / "docs"
    script = runpy.run_path(str(docs / "write_receptive_fields.py"))
    page = (docs / "receptive-fields.md").read_text(encoding="utf-8")
    assert f"\n{script['line_of'](name)}\n" in page


class Excited(nn.Module):
    """A gate of 1x1 convolutions behind global pooling, as squeeze-and-excitation has it."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Conv2d(4, 4, 1 + 2 * padding, padding=padding)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        out: torch.Tensor = self.head((x * self.gate(self.pool(x)).sigmoid()).mean((2, 3)))
        return out


@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_behind_global_pooling_see_everything_and_are_numbers(padding: int) -> None:
    field = receptive_fields(Excited(padding).eval(), (12, 10))["gate"]
    assert field.size == (math.inf, math.inf)
    assert field.start == (-math.inf, -math.inf)
    assert not any(math.isnan(number) for number in (*field.size, *field.jump, *field.start))
    assert field.box(0, 0, clipped_to=(12, 10)) == (0, 0, 12, 10)


class Rolled(nn.Module):
    """An operation that nobody has a rule for, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.roll(self.first(x), 2, 3))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def test_units_behind_an_unknown_operation_see_the_whole_image() -> None:
    field = receptive_fields(Rolled().eval(), (12, 10))["second"]
    assert field.is_global
    assert field.box(5, 3, clipped_to=(12, 10)) == (0, 0, 12, 10)


def test_a_parameter_times_a_pooled_map_in_either_order() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)
            self.last, self.scale = nn.Conv2d(4, 5, 1), nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.scale * self.last(self.scale * self.pool(x) * self.scale + self.scale)

    fields = receptive_fields(Scaled().eval(), (12, 12))
    assert fields["conv"].size == (3, 3)
    assert fields["last"].is_global


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Columns(nn.Conv2d):
    """Its columns wrap round, its rows are padded with zeros."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wrapped = functional.pad(x, (1, 1, 0, 0), mode="circular")
        return functional.conv2d(functional.pad(wrapped, (0, 0, 1, 1)), weight, bias)


def between(middle: nn.Module) -> nn.Sequential:
    """Two convolutions with something in between."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), middle, nn.Conv2d(4, 4, 3, padding=1))


def in_training(layer: nn.Module) -> nn.Module:
    """A layer that stays in training mode, as test-time adaptation has it."""
    layer.train = lambda _mode=True: layer  # type: ignore[method-assign, assignment]
    return layer


def changed(conv: nn.Module, **methods: object) -> nn.Module:
    """A layer with other methods than its class's."""
    vars(conv).update({name: MethodType(method, conv) for name, method in methods.items()})
    return conv


def hooked(conv: nn.Module, hook: Callable[..., object], before: bool = False) -> nn.Module:
    """A layer with a hook that its user registered."""
    (conv.register_forward_pre_hook if before else conv.register_forward_hook)(hook)
    return conv


def padded() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


LOCAL: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm of many devices": lambda: nn.SyncBatchNorm(4),
    "instance norm with kept statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "its function": lambda: Call(
        lambda x: functional.instance_norm(x, torch.zeros(4), torch.ones(4), use_input_stats=False)
    ),
    "dropout in training": lambda: in_training(nn.Dropout(1e-9)),
    "glu over channels": lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.GLU(1)),
    "its function too": lambda: Call(lambda x: functional.glu(torch.cat([x, x], 1), 1)),
    "circular padding": lambda: nn.CircularPad2d(2),
    "root mean square over channels": lambda: Call(
        lambda x: functional.rms_norm(x.permute(0, 2, 3, 1), [4]).permute(0, 3, 1, 2)
    ),
    "torch.max of two maps": lambda: Call(lambda x: torch.max(x, x * 0.5)),
    "a hook that only looks": lambda: hooked(padded(), lambda _layer, _args, _out: None),
    "a wrapped forward": lambda: changed(padded(), forward=nn.Conv2d.forward),
    "weight norm": lambda: weight_norm(padded()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCAL)
def test_what_is_local_in_its_state_has_the_gradient_s_field(name: str) -> None:
    module = between(LOCAL[name]())
    assert check_against_gradients(module, (9, 11)) >= 8
    field = receptive_fields(module, (9, 11))["2"]
    assert field.units != (1, 1)
    assert not field.is_global


SPREADING: dict[str, Callable[[], nn.Module]] = {
    "batch norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "batch norm in training": lambda: in_training(nn.BatchNorm2d(4, momentum=0.0)),
    "batch norm of many devices, without": lambda: nn.SyncBatchNorm(4, track_running_stats=False),
    "its function": lambda: Call(lambda x: functional.batch_norm(x, None, None, training=True)),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "batch norm along rows": lambda: nn.Sequential(
        Call(lambda x: x.transpose(1, 2)),
        Call(lambda x: functional.batch_norm(x, None, None, training=True)),
        Call(lambda x: x.transpose(1, 2)),
    ),
    "response norm along rows": lambda: nn.Sequential(
        Call(lambda x: x.permute(0, 2, 3, 1)),
        nn.LocalResponseNorm(9, alpha=1.0),
        Call(lambda x: x.permute(0, 3, 1, 2)),
    ),
    "a patched convolution": lambda: changed(padded(), _conv_forward=Columns._conv_forward),
    "a replaced forward": lambda: changed(
        padded(), forward=lambda self, x: type(self).forward(self, x) + x.mean((2, 3), keepdim=True)
    ),
    "a hook": lambda: hooked(padded(), lambda _, x, out: out + x[0].mean((2, 3), True)),
    "a hook before": lambda: hooked(padded(), lambda _, x: (x[0] + x[0].flip(2, 3),), before=True),
    "a subclass with computed weights": lambda: weight_norm(Columns(4, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPREADING)
def test_what_is_not_local_in_its_state_never_has_too_small_a_field(name: str) -> None:
    """Batch statistics, patches and hooks: the layer's class alone says another field."""
    torch.manual_seed(0)
    module, size = between(SPREADING[name]()).double().eval(), (9, 11)
    fields = receptive_fields(module, size)
    image = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    x, wider = image, 0
    for index, layer in enumerate(module):
        x = layer(x)
        seen = support(x[0, 1, 0, 0], image)
        box = fields[str(index)].box(0, 0, clipped_to=size)
        assert box[:2] <= seen[:2]
        assert all(end >= other for end, other in zip(box[2:], seen[2:], strict=True))
        wider += seen[2] > 2 * index + 2 or seen[3] > 2 * index + 2
    assert wider == 2  # the network is a fair trial: a unit really sees more than its class says
