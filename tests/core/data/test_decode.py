"""`--decode fast`: large JPEG files are decoded at a reduced size, close to the exact image."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cnnviz.core.data.images import decode_rgb, prepare, read_image
from cnnviz.core.models.load import load_model
from cnnviz.core.models.preprocess import plain

EXACT = plain(64)
FAST = replace(EXACT, fast=True)
ORIENTATION = 0x0112


def scene(width, height):
    """Smooth shapes and a little noise, as photographs have."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (9, 9, 3), np.uint8)
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(large).astype(int) + rng.normal(0, 4, (height, width, 3)).astype(int)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encoded(image, kind="JPEG", orientation=1):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


def working(content, preprocess):
    return prepare(decode_rgb(io.BytesIO(content), "x", preprocess), preprocess, "x")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(640, 480), (645, 517), (519, 1031)])
def test_the_difference_is_small_and_the_geometry_the_same(size, orientation):
    content = encoded(scene(*size), orientation=orientation)
    exact, fast = (working(content, preprocess) for preprocess in (EXACT, FAST))
    assert decode_rgb(io.BytesIO(content), "x", FAST).width < max(size) / 1.9
    assert (fast.box_original, fast.original_size) == (exact.box_original, exact.original_size)
    difference = 255 * (fast.pixels - exact.pixels).abs()
    assert 0 < difference.mean() < 0.6
    assert difference.max() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_exactly(kind):
    content = encoded(scene(640, 480), kind)
    assert (working(content, FAST).pixels == working(content, EXACT).pixels).all()


def test_a_jpeg_file_that_is_not_large_is_decoded_exactly():
    content = encoded(scene(200, 180))
    assert (working(content, FAST).pixels == working(content, EXACT).pixels).all()


def test_grey_and_cmyk_files_too():
    for mode in ("L", "CMYK"):
        content = encoded(scene(640, 480).convert(mode))
        exact, fast = (working(content, preprocess) for preprocess in (EXACT, FAST))
        assert 255 * (fast.pixels - exact.pixels).abs().mean() < 0.6


def test_a_network_without_resizing_sees_every_pixel():
    content, whole = encoded(scene(640, 480)), replace(FAST, resize=None, crop=(480, 640))
    exact = working(content, replace(whole, fast=False))
    assert (working(content, whole).pixels == exact.pixels).all()


def test_runs_of_the_two_kinds_do_not_mix(tmp_path):
    """The identity of every journal has the preprocessing."""
    models = [load_model(decode=kind) for kind in ("exact", "fast")]
    assert repr(models[0].preprocess) != repr(models[1].preprocess)
    (tmp_path / "a.jpg").write_bytes(encoded(scene(640, 480)))
    images = [read_image(tmp_path / "a.jpg", model.preprocess) for model in models]
    assert (images[0].pixels != images[1].pixels).any()
