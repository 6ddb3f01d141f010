from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core import load_model
from cnnviz.core.device import rounding
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.behaviour import FirstRun, check_batch, examine, run_first
from cnnviz.core.models.files.checkpoints import StateDict
from cnnviz.core.models.fitting import choose
from cnnviz.core.models.load import Model
from cnnviz.core.models.zoo.factories import unwrapped
from cnnviz.filters.ablation.replay import ablated_logits
from cnnviz.filters.channels import expand, parse
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.options import EngineChoice

SIZE = (12, 12)
SHAPE = (3, *SIZE)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(functional.relu(self.a(x)))
        out: Tensor = self.fc(functional.relu(self.b(x)).mean((2, 3)))
        return out


class BatchStatistics(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True)


class BatchMaximum(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x / x.max()


class MinibatchDeviation(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x + (x.var(0, keepdim=True, unbiased=False) + 1e-8).sqrt().mean()


class Single(Plain):
    """Takes one picture and no other number, as networks with a fixed `.view(1, …)` do."""

    def middle(self, x: Tensor) -> Tensor:
        return x.view(1, 6, *SIZE)


class Asserting(Plain):
    """Refuses a batch with an exception of its own choice."""

    def middle(self, x: Tensor) -> Tensor:
        assert len(x) == 1, "one at a time"
        return x


class AlwaysDropout(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


class BatchSize(Plain):
    """Depends on the number of images, not on what they are."""

    def middle(self, x: Tensor) -> Tensor:
        return x / len(x)


class EarlyExit(Plain):
    """All of a batch leave at the first branch if one of them is sure; noise never is."""

    def forward(self, x: Tensor) -> Tensor:
        even = 20 - 100 * x[:, :, 4:8, 4:8].std((1, 2, 3))
        if bool((even > 0).any()):
            return functional.pad(even[:, None], (0, 4))
        return super().forward(x)


class Experts(Plain):
    """An expert that takes at most five eighths of a batch: of two images, both."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        mine = x.isfinite().all((1, 2, 3)).nonzero()[: -(-len(x) * 5 // 8), 0]
        return out.index_add(0, mine, 3 * out[mine])


class Amplified(Plain):
    """Rounding in its first layer becomes a large difference, as in deep untrained networks."""

    def middle(self, x: Tensor) -> Tensor:
        return torch.sin(1e7 * (x + len(x) * torch.finfo(x.dtype).eps))


RARELY = [EarlyExit, Experts]
"""They mix a batch only if its images cause it."""
MIXERS = [BatchStatistics, BatchMaximum, MinibatchDeviation, Single, Asserting, BatchSize]


@pytest.mark.parametrize("kind", MIXERS)
def test_networks_that_mix_a_batch_are_found_out(kind: type[Plain]) -> None:
    _, behaviour = examine(kind().eval(), SHAPE, torch.float32)
    assert behaviour.mixes_batch
    assert behaviour.noise == 0
    (note,) = behaviour.notes("net")
    assert note.startswith("net mixes the images of a batch")


def test_networks_that_answer_differently_each_time_are_found_out() -> None:
    _, behaviour = examine(AlwaysDropout().eval(), SHAPE, torch.float32)
    assert behaviour.noise > 0.01 * behaviour.scale
    assert not behaviour.mixes_batch
    (note,) = behaviour.notes("net")
    assert note.startswith("net is stochastic: two passes over one image differ")


def test_loading_leaves_the_random_generator_of_torch_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Noisy(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.nn.functional.dropout(x.mean((2, 3)), 0.5, training=True)\n"
    )
    before = torch.get_rng_state()
    model = load_model(f"{tmp_path / 'net.py'}:Noisy", size=SIZE)
    assert model.behaviour.noise > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_networks_have_no_habits(dtype: torch.dtype) -> None:
    module = Plain().eval().to(dtype)
    _, behaviour = examine(lambda x: module(x.to(dtype)).float(), SHAPE, dtype)
    assert not behaviour.mixes_batch
    assert behaviour.notes("net") == []


def model_of(module: nn.Module) -> Model:
    behaviour = examine(module.eval(), SHAPE, torch.float32)[1]
    return networks.model_of(module, SIZE, "abcde", resize=SIZE[0], behaviour=behaviour)


@pytest.mark.parametrize("kind", RARELY)
def test_what_noise_does_not_show_is_found_on_the_images_of_the_run(
    kind: type[Plain], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(kind())
    assert not model.behaviour.mixes_batch
    spec = OcclusionSpec(masks=((5, 5),), stride=2)
    experiment = Occluder(model, spec)
    experiment.run(networks.noise(SIZE))
    assert "net mixes the images of a batch: alone, an image's scores differ by" in caplog.text
    assert "before it" not in caplog.text
    caplog.clear()
    experiment.run(networks.noise(SIZE))
    assert not caplog.text  # from then on each is run alone
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(2))
    images[0] = 0.5
    with pytest.raises(CnnvizError, match=r"net mixes the images of a batch: one .*--batch-size 1"):
        check_batch(model.outputs, images, "net")
    with pytest.raises(CnnvizError, match="mixes the images of a batch"):
        check_batch(model.outputs, images, "net", model.outputs(images))
    check_batch(model.outputs, images[:1], "net")
    check_batch(Plain().eval(), images, "net")


def test_rounding_that_a_network_amplifies_is_not_mixing() -> None:
    module = Amplified().eval()
    first = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    apart = (module(torch.cat([first, first]))[0] - module(first)[0]).abs().max()
    assert apart > 10 * rounding(torch.float32) * module(first).abs().max()
    _, behaviour = examine(module, SHAPE, torch.float32)
    assert not behaviour.mixes_batch
    check_batch(module, torch.cat([first, first + 1]), "net")


@pytest.mark.parametrize("kind", [*MIXERS, *RARELY, Amplified, Plain])
@pytest.mark.parametrize("choice", [EngineChoice.AUTO, EngineChoice.FULL])
def test_each_covered_picture_is_answered_as_if_alone(
    kind: type[Plain], choice: EngineChoice
) -> None:
    model = model_of(kind())
    pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    image = networks.image_of(pixels)
    spec = OcclusionSpec(masks=((5, 5),), stride=4, engine=choice)
    found = occlude(model, image, spec).measured
    alone = []
    mean = torch.tensor(model.preprocess.mean)[:, None, None]
    for y0, x0, y1, x1 in found.grids[0].boxes_P4.tolist():
        covered = pixels.clone()
        covered[:, y0:y1, x0:x1] = mean
        with torch.no_grad():
            alone.append(model.module(model.preprocess.normalise(covered)[None])[0])
    if kind is Amplified:
        return  # its numbers are what rounding makes them; it runs, and that is all
    torch.testing.assert_close(found.logits_PK, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_wrappers_are_taken_off() -> None:
    plain = Plain()
    assert unwrapped(nn.DataParallel(torch.compile(nn.DataParallel(plain)))) is plain  # type: ignore[arg-type]
    assert unwrapped(plain) is plain


def test_compiled_parts_are_taken_out_and_their_names_in_files_and_filters_too() -> None:
    plain = Plain().eval()
    state = dict(plain.state_dict())
    parts = Plain().eval()
    parts.b = torch.compile(parts.b)  # type: ignore[assignment]
    assert "b._orig_mod.weight" in parts.state_dict()
    open_ = unwrapped(parts)
    assert open_.state_dict().keys() == state.keys()
    saved = {name.replace("b.", "b._orig_mod."): value for name, value in state.items()}
    assert choose([StateDict("", saved)], plain, None, Path("ck")).tensors.keys() == state.keys()
    assert expand(parse("_orig_mod.a:0"), ["a", "b"], ["a", "b"]) == ("a",)


def test_an_ablation_that_reaches_nothing_is_an_error() -> None:
    class Unseen(Plain):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.b.forward(self.a(x)).mean((2, 3)))
            return out

    model = model_of(Unseen())
    image = torch.zeros(1, 3, *SIZE)
    assert ablated_logits(model, image, {"a": (0,)}, {}).shape == (1, 5)
    with pytest.raises(CnnvizError, match="the output of layer 'b' of net cannot be replaced"):
        ablated_logits(model, image, {"b": (0,)}, {})


class Formats(Plain):
    """Its code converts the image to a number format of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.to(dtype)
        self.kept = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.kept))


def first_run(module: nn.Module, dtype: torch.dtype = torch.float32) -> FirstRun:
    return run_first(module.eval(), "net", 3, SIZE, dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_whose_code_fixes_a_number_format_runs_in_it(dtype: torch.dtype) -> None:
    image = torch.rand(1, *SHAPE)
    right = Formats(dtype).eval()(image)
    ran = first_run(Formats(dtype))
    assert torch.equal(ran.module(image), right)
    (note,) = ran.notes
    assert f"runs with weights of {str(dtype).removeprefix('torch.')}, as its code" in note
    plain = first_run(Plain().to(dtype))  # converted, as ever
    assert {tensor.dtype for tensor in plain.module.parameters()} == {torch.float32}
    assert plain.notes == ()


class Fourier(Plain):
    """A filter in the frequency domain, of complex weights."""

    def __init__(self, dtype: torch.dtype = torch.complex64) -> None:
        super().__init__()
        values = torch.randn(6, 12, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
        self.filter = nn.Parameter(values)

    def middle(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[-2:])


def test_complex_weights_stay_complex() -> None:
    image, network = torch.rand(1, *SHAPE), Fourier().eval()
    right = network(image)
    assert torch.equal(first_run(network).module(image), right)
    double = Fourier(torch.complex128)
    assert first_run(double).module.filter.dtype == torch.complex64
    with pytest.raises(CnnvizError, match=r"bfloat16.*or --precision fp32"):
        first_run(Fourier(), torch.bfloat16)


def failing(error: Exception) -> nn.Module:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    return Failing()


class TwoInputs(Plain):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(a - b)


class Records(Plain):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(torch.stack([entry["image"] for entry in batch]))


class ChannelsLast(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class Views(Plain):
    def forward(self, x: Tensor) -> Tensor:
        n, views, _c, _h, _w = x.shape
        return super().forward(x.flatten(0, 1)).view(n, views, -1).mean(1)


class Lacking(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale * x)


class OneSize(Plain):
    def middle(self, x: Tensor) -> Tensor:
        return x.view(len(x), 6, 40, 40)


@pytest.mark.parametrize(
    ("module", "ending"),
    [
        (TwoInputs(), "takes more than one image; --input NAME=FILE gives the others"),
        (Records(), r"something other than one tensor \(N, C, H, W\); write a factory .*it"),
        (ChannelsLast(), r"takes \(N, H, W, C\); write a factory that permutes its input, .*"),
        (Views(), r"2-D images, .* an input of 5 dimensions \(depth, time or views\)"),
        (Lacking(), "object has no attribute 'scale'"),
        (OneSize(), "; --size gives another size"),
        (failing(RuntimeError("Found no NVIDIA driver on your system")), r"write \.to\(x.device\)"),
        (failing(RuntimeError("Input type (float) and bias type (Half) should be the same")),
         "its code fixes a number format: let it convert to that of its input"),
        (failing(ValueError("Expected more than 1 value per channel")), "gives another size"),
        (failing(KeyError("feats")), "'feats'"),
    ],
)  # fmt: skip
def test_the_remedy_fits_the_fault(module: nn.Module, ending: str) -> None:
    with pytest.raises(CnnvizError, match=rf"net cannot run on an image .*{ending}$"):
        first_run(module)
