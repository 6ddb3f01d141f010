from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from parts import slow_but
from torch import Tensor, nn

from cnnviz.core.errors import UsageError
from cnnviz.occlusion.engines.choose import choose
from cnnviz.occlusion.engines.full import FullEngine, cover
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.incremental.groups import largest_windows, reach_of_boxes
from cnnviz.occlusion.engines.incremental.schedule import Schedule, Scheduler, Segment, Sizes
from cnnviz.occlusion.engines.incremental.steps import compile_steps
from cnnviz.occlusion.engines.network import Network, Scores, prepare
from cnnviz.occlusion.options import EngineChoice

CPU = torch.device("cpu")
SIZE = (33, 41)
Make = Callable[[str], nn.Module]
Plain = Callable[[], nn.Module]


class Means(nn.Module):
    """The mean of each map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def pictures(size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, *size, generator=generator), torch.randn(3, *size, generator=generator)


def masks(size: tuple[int, int] = SIZE, count: int = 12, seed: int = 0) -> Tensor:
    """Boxes of all sizes, the four corners, the whole image, and one pixel."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randint(0, height - 1, (count,), generator=generator)
    x0 = torch.randint(0, width - 1, (count,), generator=generator)
    y1 = (y0 + torch.randint(1, 12, (count,), generator=generator)).clamp(max=height)
    x1 = (x0 + torch.randint(1, 12, (count,), generator=generator)).clamp(max=width)
    special = [
        [0, 0, 5, 4], [0, width - 3, 4, width], [height - 1, 0, height, 6],
        [height - 2, width - 2, height, width], [0, 0, height, width], [9, 9, 10, 10],
    ]  # fmt: skip
    return torch.cat([torch.stack([y0, x0, y1, x1], 1), torch.tensor(special)])


def one_by_one(module: nn.Module, image: Tensor, fill: Tensor, boxes: Tensor) -> Tensor:
    """The slow, obvious way."""
    rows = []
    for y0, x0, y1, x1 in boxes.tolist():
        covered = image.clone()
        covered[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
        with torch.no_grad():
            rows.append(module(covered[None])[0])
    return torch.stack(rows)


def both(prepared: Network, boxes: Tensor, **options: int) -> tuple[Scores, Scores]:
    image, fill = pictures()
    return (
        FullEngine(prepared, **options).run(image, fill, boxes),
        IncrementalEngine(prepared, **options).run(image, fill, boxes),
    )


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_both_engines_give_what_one_image_at_a_time_gives(name: str, network: Make) -> None:
    module = network(name)
    image, fill = pictures()
    expected = one_by_one(module, image, fill, masks())
    assert float(expected.std(0).min()) > 1e-3  # masks matter, or the comparison proves nothing
    full, incremental = both(prepare(module, SIZE, device=CPU), masks())
    assert_close(full.logits_PK, expected)
    assert_close(incremental.logits_PK, expected)
    with torch.no_grad():
        assert_close(incremental.base_logits_K, module(image[None])[0])


@pytest.mark.parametrize("name", ["residual", "dense", "branches", "channels last", "shuffle"])
def test_whole_image_mask_is_the_fill_image(name: str, network: Make) -> None:
    module = network(name)
    image, fill = pictures()
    prepared = prepare(module, SIZE, device=CPU)
    scores = IncrementalEngine(prepared).run(image, fill, torch.tensor([[0, 0, *SIZE]]))
    with torch.no_grad():
        assert_close(scores.logits_PK[0], module(fill[None])[0])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_nothing(batch_size: int, network: Make) -> None:
    prepared = prepare(network("residual"), SIZE, device=CPU)
    reference = both(prepared, masks())
    full, incremental = both(prepared, masks(), batch_size=batch_size)
    assert_close(full.logits_PK, reference[0].logits_PK, 1e-6)
    assert_close(incremental.logits_PK, reference[1].logits_PK, 1e-6)


@pytest.fixture
def cut_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment of its own, of 1, 2 or 3 positions at a time, wherever a batch can be split."""

    def schedule(self: Scheduler, _sizes: Sizes) -> Schedule:
        edges = [*self.borders, len(self.steps)]
        cuts = enumerate(pairwise(edges))
        return Schedule(5, [Segment(self.steps[a:b], 1 + i % 3) for i, (a, b) in cuts])

    monkeypatch.setattr(Scheduler, "schedule", schedule)


@pytest.mark.usefixtures("cut_everywhere")
def test_both_engines_agree_wherever_batches_are_split(name: str, network: Make) -> None:
    prepared = prepare(network(name), SIZE, device=CPU)
    full, incremental = both(prepared, masks())
    assert_close(incremental.logits_PK, full.logits_PK)


NAMED = ("0", "0.1", "1.body.1", "2", "3.body.0.2", "4", "6")
LAYERS = [(segments, layer) for segments in (1, 2) for layer in NAMED]


@pytest.mark.parametrize(
    ("segments", "layer"), slow_but(LAYERS, (1, "0.1"), (1, "6"), (2, "1.body.1"), (2, "2"))
)
def test_layer_sums_are_those_of_the_strongest_map(
    layer: str, segments: int, network: Make, request: pytest.FixtureRequest
) -> None:
    if segments > 1:
        request.getfixturevalue("cut_everywhere")
    module = network("residual")
    image, fill = pictures()
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output.clone())

    handle = module.get_submodule(layer).register_forward_hook(keep)
    one_by_one(module, image, fill, torch.cat([torch.zeros(1, 4, dtype=torch.int64), masks()]))
    handle.remove()
    sums = torch.stack([o[0].flatten(1).sum(1) if o.dim() > 2 else o[0] for o in outputs])
    channel = int(sums[0].argmax())
    for scores in both(prepare(module, SIZE, device=CPU, layer=layer), masks()):
        assert scores.activation_channel == channel
        assert scores.base_activation == pytest.approx(float(sums[0, channel]), rel=1e-4)
        assert scores.activation_P is not None
        assert_close(scores.activation_P, sums[1:, channel], 1e-4)


def test_a_network_that_cannot_be_traced_runs_in_full_with_a_note(plain: Plain) -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x if x.mean() > 100 else -x)

    module = Choosy().eval()
    prepared = prepare(module, SIZE, device=CPU, layer="net.0")
    engine = choose(prepared, EngineChoice.AUTO, masks(), name="choosy")
    assert engine.name == "full"
    assert engine.note is not None
    assert engine.note.startswith("choosy: Choosy cannot be traced (")
    assert engine.note.endswith("); using the full engine")
    image, fill = pictures()
    scores = engine.run(image, fill, masks())
    assert_close(scores.logits_PK, one_by_one(module, image, fill, masks()))
    assert scores.activation_P is not None


def test_a_trace_that_gives_other_numbers_is_not_used(plain: Plain) -> None:
    class Fickle(nn.Module):
        """Tracing sees the number at hand; the next pass takes another one."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = plain(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x * self.calls)

    prepared = prepare(Fickle().eval(), SIZE, device=CPU)
    assert prepared.graph is None
    assert prepared.reason == "its traced graph gives other numbers"


def test_a_layer_that_never_runs_is_refused(plain: Plain) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.idle = plain(), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(UsageError, match="layer 'idle' does not run in a forward pass"):
        prepare(Idle().eval(), SIZE, device=CPU, layer="idle")


def test_engines_leave_the_module_as_it_was(network: Make) -> None:
    module = network("residual")
    before = {k: (v.clone(), v.data_ptr(), v.stride()) for k, v in module.state_dict().items()}
    both(prepare(module, SIZE, device=CPU, layer="1"), masks())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert (value.data_ptr(), value.stride()) == before[name][1:]
    assert not any(layer._forward_hooks for layer in module.modules())
    assert module[0][2].inplace


def test_half_precision_engines_agree_to_its_precision(network: Make) -> None:
    module = network("residual").to(torch.bfloat16)
    full, incremental = both(prepare(module, SIZE, device=CPU, dtype=torch.bfloat16), masks())
    assert full.logits_PK.dtype == torch.float32
    assert_close(incremental.logits_PK, full.logits_PK, 0.05)


def test_large_maps_run_a_few_at_a_time(settled: Callable[..., nn.Module], network: Make) -> None:
    body = [nn.Conv2d(3, 8, 3, 2), network("gate")[1], nn.Conv2d(8, 256, 1), nn.Conv2d(256, 8, 3)]
    prepared = prepare(settled(nn.Sequential(*body, Means()), (224, 224)), (224, 224), device=CPU)
    assert prepared.graph is not None
    steps = compile_steps(prepared.graph)
    boxes = torch.tensor([[y, 9, y + 9, 18] for y in range(0, 200, 9)])
    windows = largest_windows(*reach_of_boxes(prepared.graph, boxes.numpy()))
    schedule = Scheduler(prepared.graph, steps, CPU, torch.float32).schedule(windows)
    assert [step for segment in schedule.segments for step in segment.steps] == steps
    small, large = schedule.segments[0].size, min(s.size for s in schedule.segments)
    map_bytes = 256 * 111 * 111 * 4
    assert small == schedule.size >= 48
    assert large * map_bytes <= 14 * 2**20 < (large + 1) * map_bytes
    asked = Scheduler(prepared.graph, steps, CPU, torch.float32, batch_size=7).schedule(windows)
    assert (asked.size, [s.size for s in asked.segments]) == (7, [7])


def test_auto_weighs_what_masks_reach(settled: Callable[..., nn.Module], network: Make) -> None:
    size = (128, 128)
    boxes = torch.tensor([[y, x, y + 9, x + 9] for y in range(0, 120, 8) for x in range(0, 120, 8)])
    body = [nn.Conv2d(3, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))]
    local = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    gate = network("gate")[1]
    gated = nn.Sequential(
        nn.Conv2d(3, 8, 1), gate, nn.Conv2d(8, 64, 3), nn.Conv2d(64, 5, 3), Means()
    )
    for module, engine in ((settled(local, size), "incremental"), (gated.eval(), "full")):
        prepared = prepare(module, size, device=CPU)
        assert prepared.graph is not None, prepared.reason
        assert choose(prepared, EngineChoice.AUTO, boxes).name == engine
    prepared = prepare(local, size, device=CPU)
    assert choose(prepared, EngineChoice.AUTO, torch.tensor([[0, 0, *size]])).name == "full"


def test_auto_leaves_transformers_to_the_full_engine(settled: Callable[..., nn.Module]) -> None:
    module = torchvision.models.VisionTransformer(
        image_size=64, patch_size=8, num_layers=3, num_heads=2, hidden_dim=384, mlp_dim=1536
    )
    prepared = prepare(settled(module, (64, 64)), (64, 64), device=CPU)
    boxes = torch.tensor([[y, x, y + 9, x + 9] for y in range(0, 55, 6) for x in range(0, 55, 6)])
    assert prepared.graph is not None
    assert choose(prepared, EngineChoice.AUTO, boxes).name == "full"


def test_progress_counts_every_position_once(network: Make) -> None:
    prepared = prepare(network("residual"), SIZE, device=CPU)
    image, fill = pictures()
    for engine in (FullEngine(prepared), IncrementalEngine(prepared, batch_size=4)):
        steps: list[int] = []
        engine.run(image, fill, masks(), steps.append)
        assert sum(steps) == len(masks())


def test_covering_pastes_the_fill_inside_each_box() -> None:
    image, fill = pictures()
    boxes = masks()
    covered = cover(image, fill, boxes)
    assert covered.is_contiguous(memory_format=torch.channels_last)
    for one, (y0, x0, y1, x1) in zip(covered, boxes.tolist(), strict=True):
        expected = image.clone()
        expected[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
        assert torch.equal(one, expected)


class Viewed(nn.Module):
    """Flattens its maps by `.view`, which maps that lie channels last cannot stand."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 16 * 20, 5)
        self.decides = decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() < -1e9:  # what tracing cannot follow
            x = -x
        out: Tensor = self.fc(self.conv(x).relu().view(-1, 4 * 16 * 20))
        return out


class FiveAxes(nn.Module):
    """A three-dimensional convolution, whose weights have no channels-last layout of maps."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv3d(3, 4, (1, 3, 3)), nn.Linear(4, 5)
        self.decides = decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() < -1e9:
            x = -x
        out: Tensor = self.fc(self.conv(x.unsqueeze(2)).relu().mean((2, 3, 4)))
        return out


@pytest.mark.parametrize("kind", [Viewed, FiveAxes])
@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("choice", [EngineChoice.AUTO, EngineChoice.FULL])
def test_networks_that_cannot_stand_channels_last_keep_their_numbers(
    kind: type[Viewed | FiveAxes], decides: bool, choice: EngineChoice
) -> None:
    module = kind(decides=decides).eval()
    image, fill = pictures()
    network = prepare(module, SIZE, device=CPU)
    assert (network.graph is None) == decides
    engine = choose(network, choice, masks())
    expected = one_by_one(module, image, fill, masks())
    torch.testing.assert_close(
        engine.run(image, fill, masks()).logits_PK, expected, rtol=1e-4, atol=1e-5
    )
