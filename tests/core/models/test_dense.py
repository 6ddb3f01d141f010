"""Dense outputs: which pixels are read, what the numbers are, and that both engines agree."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import image_of
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import segmentation
from typer.testing import CliRunner

from cnnviz.cli.main import app
from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import Head
from cnnviz.core.models.load import Model
from cnnviz.core.models.targets import Region
from cnnviz.core.output.summary import ModelRecord
from cnnviz.gradients import Method, SaliencySpec, saliency
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.measurement import load
from cnnviz.occlusion.options import EngineChoice, Score
from cnnviz.occlusion.results import to_arrays

SIDE, NEAR = 16, 5
SOURCE = """
import torch
from torch import nn

class Planted(nn.Module):
    '''Background where nothing is; class 1 by the red, class 2 by the green of 5 x 5 pixels.'''
    def __init__(self, end=lambda x: x):
        super().__init__()
        self.near = nn.AvgPool2d(5, 1, 2, count_include_pad=False)
        self.tell = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            told = torch.tensor([[0., 0, 0], [1, 0, 0], [0, 1, 0]])
            self.tell.weight.copy_(4 * told[..., None, None])
            self.tell.bias.copy_(torch.tensor([1., 0, 0]))
        self.end = end
    def forward(self, x):
        return self.end(self.tell(self.near(x)))

def plain(): return Planted()
def softmax(): return Planted(lambda x: x.softmax(1))
def torchvision_like(): return Planted(lambda x: {"out": x, "aux": x[:, :, ::2, ::2]})
def half(): return Planted(lambda x: x[:, :, ::2, ::2])
def coarse(): return Planted(lambda x: nn.functional.avg_pool2d(x, (16, 8)))
def sigmoid(): return Planted(lambda x: x.sigmoid())
def one(): return Planted(lambda x: x[:, 1:2] - x[:, :1])
def depth(): return Planted(lambda x: x[:, 1:2])
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return str(path)


def made(source: str, name: str, **options: object) -> Model:
    return load_model(f"{source}:{name}", size=SIDE, mean=(0,), std=(1,), **options)  # type: ignore[arg-type]


def picture() -> WorkingImage:
    """A red block on the left, a smaller green one on the right, black elsewhere."""
    pixels = torch.zeros(3, SIDE, SIDE)
    pixels[0, 2:10, 1:7] = 1
    pixels[1, 8:13, 10:15] = 0.9
    return image_of(pixels)


def by_hand(pixels_N3HW: Tensor) -> Tensor:
    """Probabilities (N, 3, H, W) of the planted network."""
    near = functional.avg_pool2d(pixels_N3HW, NEAR, 1, NEAR // 2, count_include_pad=False)
    red, green = near[:, 0], near[:, 1]
    return torch.stack([torch.ones_like(red), 4 * red, 4 * green], 1).softmax(1)


def spec(**options: object) -> OcclusionSpec:
    base = {"masks": ((3, 3),), "stride": 2, "fill": "black"}
    return OcclusionSpec(**(base | options))  # type: ignore[arg-type]


def means_by_hand(
    image: WorkingImage, target: int, inside_HW: Tensor | None
) -> tuple[float, list[float]]:
    """The mean probability over the pixels read: untouched, and with each mask, by a plain loop."""
    base_KHW = by_hand(image.pixels[None])[0]
    where = base_KHW.argmax(0) == target if inside_HW is None else inside_HW
    found = []
    for top in range(0, SIDE - 3 + 2, 2):
        for left in range(0, SIDE - 3 + 2, 2):
            covered = image.pixels.clone()
            covered[:, top : top + 3, left : left + 3] = 0
            found.append(float(by_hand(covered[None])[0, target][where].mean()))
    return float(base_KHW[target][where].mean()), found


PLACES = {
    "own": ({}, None),
    "at": ({"at": (9.0, 12.0)}, (slice(9, 10), slice(12, 13))),
    "inside": ({"inside": "2,4,8,12"}, (slice(4, 12), slice(2, 8))),
}


@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("network", ["plain", "softmax", "torchvision_like"])
def test_probabilities_are_means_over_the_pixels_read(
    source: str, network: str, place: str, engine: EngineChoice
) -> None:
    options, cut = PLACES[place]
    inside_HW = None
    if cut is not None:
        inside_HW = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside_HW[cut] = True
    image = picture()
    for target in (1, 2):
        asked = spec(targets=(str(target),), engine=engine, **options)  # type: ignore[arg-type]
        found = occlude(made(source, network), image, asked)
        base, covered = means_by_hand(image, target, inside_HW)
        panel = found.panels[0]
        assert found.engine == engine.value
        assert panel.probability == pytest.approx(base, abs=1e-5)
        assert panel.probabilities_P.tolist() == pytest.approx(covered, abs=1e-5)
        assert max(abs(base - value) for value in covered) > 0.01


def test_a_covered_object_is_read_where_it_was(source: str) -> None:
    """Pixels stay those of the untouched picture, though covering moves what is predicted."""
    asked = spec(masks=((8, 8),), stride=8, targets=("1",))
    panel = occlude(made(source, "plain"), picture(), asked).panels[0]
    assert panel.reliance is not None
    assert panel.reliance > 0.5
    assert panel.flips is not None
    assert panel.flips.share > 0


def test_the_logit_is_the_log_odds(source: str) -> None:
    asked = spec(targets=("1",), score=Score.LOGIT, at=(5.0, 3.0))
    found = occlude(made(source, "plain"), picture(), asked)
    shares = by_hand(picture().pixels[None].double())[0, :, 5, 3]
    expected = math.log(float(shares[1] / (shares[0] + shares[2])))
    assert float(found.measured.base_logits_K[1]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sure", [2.0, 40.0, -40.0])
def test_the_log_odds_are_exact_where_the_probability_is_rounded(sure: float) -> None:
    region = Region(Head())
    output = torch.zeros(1, 3, 4, 4)
    output[:, 0] = sure
    rows = region.read(output)
    assert rows[0, 0].item() == pytest.approx(sure - math.log(2), abs=1e-4)


def test_the_predicted_class_has_the_most_pixels_and_is_no_background(
    source: str, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("__background__\nred\ngreen\n")
    unnamed = occlude(made(source, "plain"), picture(), spec())
    named = occlude(made(source, "plain", labels=labels), picture(), spec(targets=("top2",)))
    assert [panel.target for panel in unnamed.panels] == [0]
    assert [panel.target for panel in named.panels] == [1, 2]


def test_a_class_that_is_nowhere_is_refused_with_what_there_is(source: str) -> None:
    image = picture()
    image.pixels[1] = 0
    with pytest.raises(CnnvizError, match=r"no pixel is predicted as 2 \(predicted are 0 69"):
        occlude(made(source, "plain"), image, spec(targets=("2",)))
    with pytest.raises(CnnvizError, match="no pixel is predicted as 2"):
        saliency(made(source, "plain"), image, SaliencySpec(Method.GRADIENT, targets=("2",)))
    at = occlude(made(source, "plain"), image, spec(targets=("2",), at=(0.0, 0.0)))
    assert 0 < at.panels[0].probability < 0.3


def test_an_output_of_half_the_size_is_read_by_shares_of_its_pixels(source: str) -> None:
    image = picture()
    inside = occlude(made(source, "half"), image, spec(targets=("1",), inside="2,4,5,12"))
    shares = by_hand(image.pixels[None])[0, 1, ::2, ::2]
    weights = functional.avg_pool2d(functional.pad(torch.ones(1, 1, 8, 3), (2, 11, 4, 4)), 2)[0, 0]
    expected = float((shares * weights).sum() / weights.sum())
    assert inside.panels[0].probability == pytest.approx(expected, abs=1e-5)


def test_classes_on_their_own_one_channel_and_values(source: str) -> None:
    image = picture()
    near = functional.avg_pool2d(image.pixels[None], NEAR, 1, 2, count_include_pad=False)[0]
    own = made(source, "sigmoid")
    assert ModelRecord.of(own).head == "sigmoid per pixel"
    red = (4 * near[0]).sigmoid()
    found = occlude(own, image, spec(targets=("1",))).panels[0]
    assert found.probability == pytest.approx(float(red[red >= 0.5].mean()), abs=1e-5)
    one = occlude(made(source, "one"), image, spec(targets=("positive",))).panels[0]
    yes = (4 * near[0] - 1).sigmoid()
    assert one.probability == pytest.approx(float(yes[yes > 0.5].mean()), abs=1e-5)
    depth = occlude(made(source, "depth", head="none"), image, spec(inside="0,0,8,16")).panels[0]
    assert depth.value == pytest.approx(float(4 * near[0, :, :8].mean()), abs=1e-5)


def test_gradients_are_those_of_the_log_odds(source: str) -> None:
    image = picture()
    found = saliency(made(source, "plain"), image, SaliencySpec(Method.GRADIENT, targets=("1",)))
    leaf = image.pixels[None].double().requires_grad_(True)
    shares = by_hand(leaf)[0]
    where = shares.argmax(0) == 1
    mean = shares[1][where].mean()
    (expected,) = torch.autograd.grad(mean.log() - (1 - mean).log(), leaf)
    assert found.maps[0].raw.double() == pytest.approx(expected[0], abs=1e-5)
    assert found.maps[0].raw.abs().max() > 0.01


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_engines_agree_on_torchvisions_networks(name: str) -> None:
    model = load_model(name, weights="none", size=64)
    last = [layer for layer in model.module.modules() if isinstance(layer, nn.Conv2d)][-1]
    assert name in dir(segmentation)
    noise = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for layer in model.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():  # else random weights say the same of everything
        model.module.train()(noise)
        model.module.eval()
        last.weight.mul_(10)
    pixels = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))
    image = image_of(pixels)
    asked = {"masks": ((24, 24),), "stride": 20, "inside": "10,12,40,60", "score": Score.LOGIT}
    full = occlude(model, image, OcclusionSpec(engine=EngineChoice.FULL, **asked))  # type: ignore[arg-type]
    fast = occlude(model, image, OcclusionSpec(engine=EngineChoice.INCREMENTAL, **asked))  # type: ignore[arg-type]
    assert fast.engine == "incremental"
    moved = full.panels[0].values_P.abs().max()
    assert moved > 1e-3
    assert (full.panels[0].values_P - fast.panels[0].values_P).abs().max() < 1e-2 * moved


def test_what_was_read_is_in_the_archive(source: str, tmp_path: Path) -> None:
    found = occlude(made(source, "plain"), picture(), spec(targets=("1",), at=(5.0, 3.0)))
    arrays = to_arrays(found)
    assert arrays["pixels"].sum() == 1
    assert str(arrays["place"]) == "at 5,3"
    np.savez(tmp_path / "scores.npz", **arrays)
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "input.png")
    again = load(tmp_path)
    assert again.reading is not None
    assert again.reading.pointed
    assert again.reading.shares_K.tolist() == pytest.approx([0, 1, 0])


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("coarse", {}, "not a row of numbers for each image"),
        ("plain", {"at": (1.0, 1.0), "inside": "0,0,4,4"}, "give one of them"),
        ("plain", {"at": (1.0, 99.0)}, "outside the working image, which shows rows 0 to 16"),
        ("plain", {"inside": "90,90,99,99"}, "lies outside the working image"),
        ("plain", {"inside": "nowhere.json"}, "--inside 'nowhere.json' cannot be used"),
    ],
)
def test_refusals(source: str, network: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(CnnvizError, match=message):
        occlude(made(source, network), picture(), spec(**options))


def test_rows_have_no_place() -> None:
    image = image_of(torch.rand(3, 32, 32))
    with pytest.raises(UsageError, match="bundled has one row of scores per image"):
        occlude(load_model(), image, OcclusionSpec(at=(1, 1)))


def test_commands(source: str, tmp_path: Path) -> None:
    file = tmp_path / "two.png"
    pixels = (picture().pixels.permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(file)
    common = [str(file), "--model", f"{source}:torchvision_like", "--size", str(SIDE), "--quiet"]
    runs = {
        "occlude": ["--target", "1", "--inside", "1,2,7,10", "--mask", "4", "--stride", "3"],
        "saliency": [
            "--target=1",
            "--at=5,3",
            "--method=gradient",
            "--compare=occlusion",
            "--mask=3",
        ],
    }
    for command, options in runs.items():
        out = tmp_path / command
        done = CliRunner().invoke(app, [command, *common, *options, "--out", str(out)])
        assert done.exit_code == 0, done.output
        (entry,) = json.loads((out / "two" / "summary.json").read_text())["results"]
        assert entry["read"] == ("inside 1,2,7,10" if command == "occlude" else "at 5,3")
        assert entry["targets"][0]["pixels"] > 0.05
    assert entry["targets"][0]["comparison"]["rank_correlation"] > 0.5  # of the same place
    rows = CliRunner().invoke(app, ["saliency", str(file), "--at", "3,4", "--quiet"])
    assert "bundled has one row of scores per image" in str(rows.exception)
    done = CliRunner().invoke(app, ["ablate", *common, "--filters", "tell:0"])
    assert "gives a class to each pixel" in str(done.exception)
