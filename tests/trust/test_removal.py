"""Removal curves: next to a plain loop, to Quantus, and to a network that adds up pixels."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from networks import image_of
from torch import nn

from cnnviz.core import WorkingImage, load_model
from cnnviz.core.models.load import Model
from cnnviz.trust.removal import (
    BLUR,
    GAIN_SHARES,
    MEAN,
    RANDOM_MAPS,
    SHARES,
    Order,
    Remover,
    gain,
    random_maps,
    ranks,
    rise_blur,
)

SIDE = 20
NET = """
import torch
from torch import nn


class Sum(nn.Module):
    def forward(self, x):
        seen = x[:, 0].mean((1, 2))
        return torch.stack([seen.clamp(1e-6, 1 - 1e-6), 1 - seen.clamp(1e-6, 1 - 1e-6)], 1)


def add():
    return Sum()


def small():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 3),
    )
"""


@pytest.fixture
def source(tmp_path) -> str:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return str(path)


def made(source: str, name: str, head: str = "softmax") -> Model:
    return load_model(f"{source}:{name}", size=SIDE, mean=[0.25], std=[1.0], head=head)


def remover(model: Model, image: WorkingImage) -> Remover:
    with torch.no_grad():
        base = model.logits(model.preprocess.normalise(image.pixels)[None])[0]
    return Remover(model, image, base)


@pytest.fixture
def picture() -> WorkingImage:
    return image_of(torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))


def test_the_curves_are_those_of_a_loop_over_pixels(source: str, picture: WorkingImage) -> None:
    model = made(source, "small")
    map_HW = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    fills = {MEAN: torch.full_like(picture.pixels, 0.25), BLUR: rise_blur(picture.pixels)}
    for curve in remover(model, picture).curves(map_HW, 1):
        places = sorted(
            itertools.product(range(SIDE), range(SIDE)),
            key=lambda place: -float(map_HW[place]),
            reverse=curve.order is Order.LEAST,
        )
        for share, reading in zip(curve.shares, curve.readings, strict=True):
            pixels = picture.pixels.clone()
            for row, column in places[: round(share * SIDE * SIDE)]:
                pixels[:, row, column] = fills[curve.fill][:, row, column]
            with torch.no_grad():
                logits = model.module(model.preprocess.normalise(pixels)[None])
            assert reading == pytest.approx(float(logits.softmax(1)[0, 1]), abs=1e-6)


@pytest.mark.needs("quantus")
def test_quantus_flips_the_same_pixels(source: str, picture: WorkingImage) -> None:
    with warnings.catch_warnings(action="ignore"):
        quantus = pytest.importorskip("quantus")
    model = made(source, "small")
    map_HW = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    normalised = model.preprocess.normalise(picture.pixels)[None].numpy()
    curves = {c.order: c for c in remover(model, picture).curves(map_HW, 2) if c.fill == MEAN}
    softmaxed = nn.Sequential(model.module, nn.Softmax(1)).eval()
    for order, sign in ((Order.MOST, 1), (Order.LEAST, -1)):
        with warnings.catch_warnings(action="ignore"):
            flipping = quantus.PixelFlipping(
                features_in_step=SIDE * SIDE // 10,
                perturb_baseline=0.0,  # the mean, once normalised
                abs=False,
                normalise=False,
                disable_warnings=True,
            )
            (flipped,) = flipping(
                model=softmaxed,
                x_batch=normalised,
                y_batch=np.array([2]),
                a_batch=sign * map_HW[None, None].numpy(),
                device="cpu",
            )
        # It counts each of the three channels of a pixel.
        steps = dict(zip((step / 10 for step in range(1, 11)), flipped[2::3], strict=True))
        ours = dict(zip(curves[order].shares, curves[order].readings, strict=True))
        for share in (*SHARES, 1.0):
            assert ours[share] == pytest.approx(float(steps[share]), abs=1e-5)


def test_rises_areas_are_exact_where_the_class_is_the_sum_of_its_pixels(source: str) -> None:
    """Deletion over a ramp: what is left is a parabola; insertion without a blur is flat."""
    ramp = torch.linspace(1, 0, SIDE * SIDE).view(SIDE, SIDE)
    model = made(source, "add", "probabilities")
    own = remover(model, image_of(ramp.expand(3, SIDE, SIDE).contiguous()))
    curves = own.curves(ramp, 0)
    most = next(c for c in curves if (c.fill, c.order) == (MEAN, Order.MOST))
    # The network sees pixels less 0.25, and nothing where they are replaced by the mean.
    left = [0.5 - 0.25 - sum_of_first(share) for share in most.shares]
    np.testing.assert_allclose(most.readings, np.clip(left, 1e-6, None), atol=3e-3)
    flat = image_of(torch.full((3, SIDE, SIDE), 0.5))
    for curve in remover(model, flat).curves(ramp, 0):
        if curve.fill == BLUR:
            assert curve.area == pytest.approx(0.25, abs=1e-5)


def sum_of_first(share: float) -> float:
    """Of the ramp's normalised pixels, over all pixels."""
    return share * (1 - share / 2) - 0.25 * share


def test_the_gain_is_the_area_between_the_orders_and_turns_with_the_map(
    source: str, picture: WorkingImage
) -> None:
    own = remover(made(source, "small"), picture)
    map_HW = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    curves = own.curves(map_HW, 0)
    kept = (0.0, *GAIN_SHARES, 1.0)
    areas = {
        (c.fill, c.order): np.trapezoid([c.scores[c.shares.index(s)] for s in kept], kept)
        for c in curves
    }
    by_hand = [areas[fill, Order.LEAST] - areas[fill, Order.MOST] for fill in (MEAN, BLUR)]
    assert gain(curves) == pytest.approx(np.mean(by_hand))
    assert gain(own.curves(-map_HW, 0)) == pytest.approx(-gain(curves), abs=1e-6)


def test_the_lead_is_over_the_best_mirror_image_while_the_first_30_percent_go(
    source: str, picture: WorkingImage
) -> None:
    own = remover(made(source, "small"), picture)
    map_HW = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(6))

    def early(image_HW: torch.Tensor) -> float:
        areas = {
            (c.fill, c.order): np.trapezoid(c.scores[:3], c.shares[:3])
            for c in own.curves(image_HW, 2)
        }
        gains = [areas[fill, Order.LEAST] - areas[fill, Order.MOST] for fill in (MEAN, BLUR)]
        return float(np.mean(gains))

    images = [map_HW.flip(axes) for axes in ((0,), (1,), (0, 1))]
    by_hand = early(map_HW) - max(map(early, images))
    assert own.lead(map_HW, own.curves(map_HW, 2), 2) == pytest.approx(by_hand, abs=1e-6)
    leads = [own.lead(image, own.curves(image, 2), 2) for image in (map_HW, *images)]
    assert sum(lead > 0 for lead in leads) == 1  # the best of the four


def test_random_maps_come_with_their_opposites_and_are_measured_as_the_map_is(
    source: str, picture: WorkingImage
) -> None:
    own = remover(made(source, "small"), picture)
    gains = own.random_gains(own.random_logits(7), 1)
    assert len(gains) == 2 * RANDOM_MAPS
    for number, map_HW in enumerate(random_maps((SIDE, SIDE), 7)):
        assert gain(own.curves(map_HW, 1)) == pytest.approx(gains[number], abs=1e-6)
        opposite = gain(own.curves(-map_HW, 1))
        assert opposite == pytest.approx(gains[number + RANDOM_MAPS], abs=1e-6)


def test_equal_pixels_go_from_the_top_left() -> None:
    assert ranks(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).tolist() == [[2, 0], [1, 3]]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_pictures_of_few_pixels_are_removed_too(tmp_path, size: tuple[int, int]) -> None:
    path = tmp_path / "tiny.py"
    path.write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))\n"
    )
    model = load_model(f"{path}:make", size=size)
    own = remover(model, image_of(torch.rand(3, *size)))
    curves = own.curves(torch.zeros(size), 0)
    assert all(len(curve.readings) == len(SHARES) + 2 for curve in curves)
    assert gain(curves) == pytest.approx(-gain(own.curves(-torch.ones(size), 0)), abs=2)


def test_the_shares_of_the_gain_are_ones_that_maps_have_and_scores_are_log_odds(
    source: str, picture: WorkingImage
) -> None:
    assert set(GAIN_SHARES) <= set(SHARES)
    assert tuple(round(1 - share, 9) for share in reversed(GAIN_SHARES)) == GAIN_SHARES
    own = remover(made(source, "small"), picture)
    for curve in own.curves(torch.rand(SIDE, SIDE), 1):
        p = np.array(curve.readings)
        assert np.allclose(curve.scores, np.log(p / (1 - p)))
