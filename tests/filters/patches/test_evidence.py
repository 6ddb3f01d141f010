"""The evidence in patches against plain autograd on the single image, with its own ReLU."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import model_of
from PIL import Image
from torch import Tensor, nn

from cnnviz.cli.main import run
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.images import read_image
from cnnviz.filters.patches.boxes import PatchImages
from cnnviz.filters.patches.evidence import EvidenceTracer
from cnnviz.filters.patches.max_patches import find_patches
from cnnviz.filters.patches.options import Crop, MaxPatchesSpec
from cnnviz.filters.patches.scan import make_plan

SIZE, STD = (20, 16), (0.5, 0.25, 2.0)
Rectify = Callable[[Tensor], Tensor]


class Guided(torch.autograd.Function):
    """A ReLU whose backward pass is rectified, too."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return slope * (x > 0) * (slope > 0)


class Plain(nn.Module):
    """ReLUs as modules in place, as functions and as ReLU6; two branches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 5, 3),
        )
        self.relu = nn.ReLU(inplace=True)

    def parts(self, x: Tensor, relu: Rectify) -> Tensor:
        x = relu(self.a(x))
        return self.c(relu(self.b(x)) + x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        x = torch.relu(self.c(torch.relu(self.b(x)) + x))
        return x.mean((2, 3))


class Tied(Plain):
    """One convolution twice; the evidence is of its last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.c = self.b

    def parts(self, x: Tensor, relu: Rectify) -> Tensor:
        x = relu(self.a(x))
        return self.b(relu(self.b(x)) + x)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    generator = np.random.default_rng(0)
    for number in range(3):
        pixels = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return open_data([str(tmp_path)])


@pytest.mark.parametrize(("kind", "layer"), [(Plain, "c"), (Plain, "b"), (Tied, "b")])
@pytest.mark.parametrize("crop", list(Crop))
def test_evidence_is_that_of_plain_autograd_on_the_single_image(
    kind: type[Plain], layer: str, crop: Crop, data: ImageData
) -> None:
    torch.manual_seed(1)
    net = kind()
    model = model_of(net, SIZE, tuple("0123"[:4]) if kind is Tied else tuple("01234"), std=STD)
    plan = make_plan(model, MaxPatchesSpec(layers=(layer,), top=3, crop=crop))
    images = PatchImages(data, model.preprocess)
    rows = find_patches(model, data, plan).of(layer)
    traced = EvidenceTracer(model, images, plan.layouts, 2).of(rows)
    for row, ones in zip(rows, traced, strict=True):
        for patch, evidence in zip(row.patches, ones, strict=True):
            for relu, got in ((torch.relu, evidence.gradient), (Guided.apply, evidence.guided)):
                wanted = by_hand(net, layer, relu, patch.image, model, row.filter, patch.unit)
                y0, x0, y1, x1 = patch.box
                assert got.shape == (3, y1 - y0, x1 - x0)
                np.testing.assert_allclose(got, wanted[:, y0:y1, x0:x1], rtol=1e-4, atol=1e-6)
    assert any((one.gradient != one.guided).any() for ones in traced for one in ones)


def by_hand(
    net: Plain, layer: str, relu: Rectify, path: str, model: Any, number: int, unit: tuple[int, int]
) -> np.ndarray:
    pixels = read_image(path, model.preprocess).pixels.clone().requires_grad_()
    x = (pixels / torch.tensor(STD)[:, None, None])[None]
    maps = net.b(relu(net.a(x))) if layer == "b" and type(net) is Plain else net.parts(x, relu)
    maps[(0, number, *unit)].backward()
    assert pixels.grad is not None
    return pixels.grad.numpy()


def test_a_network_without_relu_is_noted_once(
    data: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(2)
    )
    model = model_of(net, SIZE, ("0", "1"))
    model.logits(torch.zeros(1, 3, *SIZE))
    plan = make_plan(model, MaxPatchesSpec(layers=("2",), top=2))
    rows = find_patches(model, data, plan).of("2")
    with caplog.at_level(logging.WARNING, "cnnviz"):
        EvidenceTracer(model, PatchImages(data, model.preprocess), plan.layouts, 1).of(rows)
    assert [r.message.count("guided back-projection is the plain") for r in caplog.records] == [1]


@pytest.mark.parametrize("pictures", [[], ["--no-pictures"]])
def test_the_command_writes_arrays_and_sheets(
    data: ImageData, tmp_path: Path, pictures: list[str]
) -> None:
    line = ["max-patches", *data.sources, "--layer", "stem.conv", "--filters", "0-8", "--evidence"]
    assert run([*line, "--top", "2", *pictures, "--out", str(tmp_path / "o"), "--quiet"]) == 0
    folder = tmp_path / "o" / "stem.conv"
    with np.load(folder / "evidence.npz") as arrays, np.load(folder / "evidence-2.npz") as more:
        assert arrays["gradient_0_1"].shape == arrays["guided_0_1"].shape
        assert {name.split("_")[1] for name in arrays} == set("01234567")
        assert {name.split("_")[1] for name in more} == {"8"}
    assert (folder / "evidence-2.png").exists() == (not pictures)
