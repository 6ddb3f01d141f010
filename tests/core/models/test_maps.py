"""Outputs of layers as maps: channels second or last, and tokens of a grid."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import model_of, noise
from PIL import Image
from torch import Tensor, nn
from torchvision.models import convnext_tiny, swin_t
from torchvision.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from cnnviz.cli.main import app
from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.errors import UsageError
from cnnviz.core.models.layers import Form, Layout, Layouts, token_grid
from cnnviz.core.models.load import Model
from cnnviz.filters.activations.maps import feature_maps
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.gradients.options import Method, SaliencySpec

SIDE, PATCH = 24, 4
SOURCE = """
import torch
from torch import nn

class Attention(nn.Module):
    '''Each token gets the mean of all; written by hand, so that gradients can be checked.'''
    def forward(self, x):
        return x.mean(1, keepdim=True).expand_as(x)

class Tokens(nn.Module):
    '''Patches of 4 x 4 by their mean colours, some tokens before them, two blocks.'''
    def __init__(self, extra=1, classes=4):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.before = nn.Parameter(torch.randn(1, extra, 6)) if extra else None
        self.extra = extra
        self.norm1, self.mix1, self.mlp1 = nn.LayerNorm(6), Attention(), nn.Linear(6, 6)
        self.norm2, self.mix2, self.mlp2 = nn.LayerNorm(6), Attention(), nn.Linear(6, 6)
        self.norm3 = nn.LayerNorm(6)
        self.head = nn.Linear(6, classes)
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.before is not None:
            x = torch.cat([self.before.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.mlp1(self.mix1(self.norm1(x)))
        x = x + self.mlp2(self.mix2(self.norm2(x)))
        x = self.norm3(x)
        return self.head(x[:, 0] if self.extra else x.mean(1))

def none(): return Tokens(0)
def one(): return Tokens(1)
def five(): return Tokens(5)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return str(path)


def made(source: str, name: str, size: int | tuple[int, int] = SIDE) -> Model:
    return load_model(f"{source}:{name}", size=size, mean=(0,), std=(1,))  # type: ignore[arg-type]


def picture(rows: int = SIDE, columns: int = SIDE) -> WorkingImage:
    return noise((rows, columns))


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (196, (224, 224), (0, (14, 14))),
        (197, (224, 224), (1, (14, 14))),
        (198, (224, 224), (2, (14, 14))),
        (201, (224, 224), (5, (14, 14))),
        (50, (224, 224), (1, (7, 7))),
        (257, (224, 224), (1, (16, 16))),
        (577, (384, 384), (1, (24, 24))),
        (1 + 10 * 14, (160, 224), (1, (10, 14))),
        (35, (160, 224), (0, (5, 7))),
        (77, (224, 224), None),  # words
        (10, (32, 32), None),  # 2x2 and more that stand for no place than do
        (16, (32, 32), (0, (4, 4))),
        (1, (32, 32), None),
        (8, (32, 32), None),  # likewise
        (5, (8, 8), (1, (2, 2))),
    ],
)
def test_a_grid_of_tokens_is_found_where_there_is_just_one(
    count: int, size: tuple[int, int], expected: tuple[int, tuple[int, int]] | None
) -> None:
    assert token_grid(count, size) == expected


@pytest.mark.parametrize(("name", "extra"), [("none", 0), ("one", 1), ("five", 5)])
@pytest.mark.parametrize("size", [(24, 24), (24, 36)])
def test_tokens_become_the_maps_of_the_convolution_they_come_from(
    source: str, name: str, extra: int, size: tuple[int, int]
) -> None:
    model = made(source, name, size)
    found = Layouts(model).of(["patches", "norm1", "head"])
    grid = (size[0] // PATCH, size[1] // PATCH)
    assert found["patches"] == Layout(Form.MAPS, (6, *grid))
    assert found["norm1"] == Layout(Form.TOKENS, (6, *grid), extra)
    assert found["head"].form is Form.VECTOR
    tokens = torch.rand(2, extra + math.prod(grid), 6)
    by_hand = tokens[:, extra:].reshape(2, *grid, 6).permute(0, 3, 1, 2)
    assert torch.equal(found["norm1"].maps(tokens), by_hand)


def test_channels_last_is_told_from_channels_second() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 12, 3, padding=1)
            self.second, self.last = nn.Identity(), nn.Identity()
            self.untold = Sneaky()
            self.head = nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.conv(x))
            x = self.untold(self.last(x.permute(0, 2, 3, 1)))
            out: Tensor = self.head(x.mean((1, 2)))
            return out

    class Sneaky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    for size in ((12, 12), (12, 18), (24, 12)):  # 12 channels: the shape alone does not tell
        model = as_model(Both().eval(), size)
        found = Layouts(model).of(["conv", "second", "last", "untold"])
        assert [layout.form for layout in found.values()] == [Form.MAPS] * 2 + [Form.LAST] * 2
        assert {layout.shape for layout in found.values()} == {(12, *size)}
        values = torch.rand(3, *size, 12)
        assert torch.equal(found["last"].maps(values), values.permute(0, 3, 1, 2))


def as_model(module: nn.Module, size: tuple[int, int]) -> Model:
    return model_of(module, size, "ab")


def test_windows_and_words_are_no_maps(source: str) -> None:
    model = made(source, "one", 32)  # 64 patches: with the class token 65
    assert Layouts(model).of(["norm1"])["norm1"].extra == 1
    model = load_model("swin_t", weights="none", size=224)
    attention = "features.1.0.attn"
    assert Layouts(model).of([attention])[attention] == Layout(Form.LAST, (96, 56, 56))
    odd = made(source, "five", 8)  # four patches, and five tokens before them: more than these
    assert Layouts(odd).of(["norm1"], refuse=False) == {}
    with pytest.raises(UsageError, match="returns 77x6, not channels of maps"):
        Layouts(as_model(Words(), (224, 224))).of(["words"])
    assert Layouts(as_model(Words(), (224, 224))).of(["words"], refuse=False) == {}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.words(x.mean() * torch.ones(len(x), 77, 6)).mean(1)


@pytest.mark.parametrize("name", ["none", "one", "five"])
def test_grad_cam_at_tokens_is_the_formula(source: str, name: str) -> None:
    model, image = made(source, name), picture()
    found = saliency(model, image, SaliencySpec(method=Method.GRAD_CAM, targets=("2",)))
    # Behind the last mixing a class token alone reaches the classes.
    assert found.layer == ("norm3" if name == "none" else "norm2")
    kept: list[Tensor] = []
    layer = dict(model.module.named_modules())[found.layer]
    hook = layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    model.module(image.pixels[None])[0, 2].backward(inputs=[*model.module.parameters()])
    hook.remove()
    kept.clear()
    hook = layer.register_forward_hook(lambda _m, _i, out: kept.append(out))
    score = model.module(image.pixels[None])[0, 2]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    places = [x[0, -36:].detach() for x in (gradient, kept[0])]
    by_hand = (places[1] @ places[0].mean(0)).reshape(6, 6)
    torch.testing.assert_close(found.maps[0].raw, by_hand, atol=1e-6, rtol=1e-4)


def test_the_default_layer_of_real_transformers_is_where_places_matter() -> None:
    torch.manual_seed(0)
    small = VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=5).eval()
    nn.init.normal_(small.heads.head.weight)
    assert default_layer(as_model(small, (64, 64))) == "encoder.layers.encoder_layer_2.ln_1"
    assert default_layer(as_model(swin_t().eval(), (64, 64))) == "norm"
    assert default_layer(as_model(convnext_tiny().eval(), (64, 64))).endswith("block.0")


def test_activations_of_tokens_and_their_places(source: str) -> None:
    model, image = made(source, "one"), picture()
    found = feature_maps(model, image, ["patches", "norm1"])
    with torch.no_grad():
        tokens = model.module.patches(image.pixels[None]).flatten(2).transpose(1, 2)
        by_hand = model.module.norm1(tokens)[0].T.reshape(6, 6, 6)
    torch.testing.assert_close(found.layers[1].maps_CHW, by_hand)
    rows_H, columns_W = found.layers[1].units
    assert rows_H.tolist() == columns_W.tolist() == [k // PATCH for k in range(SIDE)]


def test_max_patches_of_tokens_are_the_plain_loop(source: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(9):
        noise = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / f"{number}.png")
    model = made(source, "five")
    loop = {}
    for path in sorted((tmp_path / "data").iterdir()):
        pixels = read_image(path, model.preprocess).pixels[None]
        with torch.no_grad():
            tokens = model.module.patches(pixels).flatten(2).transpose(1, 2)
            maps = model.module.norm1(tokens)[0].T.reshape(6, 6, 6)
        loop[path.name] = maps
    common = ["--model", f"{source}:five", "--size", str(SIDE), "--mean", "0", "--std", "1"]
    out = tmp_path / "out"
    asked = ["max-patches", str(tmp_path / "data"), "--layer", "norm1", "--top", "3", "--quiet"]
    ran = CliRunner().invoke(app, [*asked, *common, "--crop", "effective", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    results = json.loads((out / "summary.json").read_text())["results"]
    assert results["layers"][0]["map"] == [6, 6, 6]
    assert len(results["filters"]) == 6
    for channel, row in enumerate(results["filters"]):
        best = sorted(loop, key=lambda name: -float(loop[name][channel].max()))[:3]
        assert [Path(patch["image"]).name for patch in row["patches"]] == best
        peak = divmod(int(loop[best[0]][channel].argmax()), 6)
        assert tuple(row["patches"][0]["unit"]) == peak
        y, x = peak  # nothing has mixed yet: a token sees its own patch alone
        assert row["patches"][0]["box"] == [4 * y, 4 * x, 4 * y + 4, 4 * x + 4]


@pytest.mark.parametrize("name", ["none", "one", "five"])
def test_commands_draw_tokens(source: str, name: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(tmp_path / "x.png")
    model = ["--model", f"{source}:{name}", "--size", str(SIDE), "--quiet"]
    photo = str(tmp_path / "x.png")
    for number, line in enumerate(
        (
            ["activations", photo, "--layer", "norm2", "--filters", "0-2"],
            ["saliency", photo, "--method", "grad-cam"],
            ["saliency", photo, "--method", "grad-cam", "--layer", "norm1"],
        )
    ):
        ran = CliRunner().invoke(app, [*line, *model, "--out", str(tmp_path / str(number))])
        assert ran.exit_code == 0, ran.output
    assert list((tmp_path / "0").rglob("overlay_norm2.png"))
