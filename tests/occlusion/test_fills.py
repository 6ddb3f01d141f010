import pytest
import torch

from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import UsageError
from cnnviz.occlusion.masks import FILLS, fill_picture

PREPROCESS = Preprocess(8, (8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))


def test_mean_fill_normalises_to_zero():
    fill = fill_picture("mean", torch.rand(3, 8, 8), PREPROCESS)
    assert (PREPROCESS.normalise(fill) == 0).all()


def test_plain_fills_have_the_colour_they_are_named_after():
    pixels = torch.rand(3, 8, 8)
    assert (fill_picture("gray", pixels, PREPROCESS) == 0.5).all()
    assert (fill_picture("black", pixels, PREPROCESS) == 0).all()
    assert (fill_picture("white", pixels, PREPROCESS) == 1).all()
    orange = fill_picture("#ff8000", pixels, PREPROCESS)
    torch.testing.assert_close(orange[:, 3, 3], torch.tensor([1.0, 128 / 255, 0.0]))
    own = fill_picture("image-mean", pixels, PREPROCESS)
    torch.testing.assert_close(own[:, 0, 0], pixels.mean((1, 2)))


def test_noise_is_the_same_for_the_same_seed_only():
    pixels = torch.rand(3, 8, 8)
    first, again, other = (fill_picture("noise", pixels, PREPROCESS, s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_blur_keeps_the_mean_colour_and_takes_the_detail():
    pixels = torch.rand(3, 64, 64)
    blurred = fill_picture("blur", pixels, PREPROCESS)
    assert blurred.std() < 0.3 * pixels.std()
    torch.testing.assert_close(blurred.mean((1, 2)), pixels.mean((1, 2)), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (32, 24)])
def test_every_fill_is_a_picture_of_the_images_size(name, size):
    fill = fill_picture(name, torch.rand(3, *size), PREPROCESS)
    assert fill.shape == (3, *size)
    assert fill.isfinite().all()


@pytest.mark.parametrize("name", ["grey", "#12345", "#12345g", ""])
def test_an_unknown_fill_is_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match=r"no fill .*--fill takes mean, gray, black"):
        fill_picture(name, torch.rand(3, 8, 8), PREPROCESS)
