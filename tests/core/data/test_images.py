import math
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights, ResNet50_Weights
from torchvision.transforms.v2 import functional

from cnnviz.core.data.images import (
    Preprocess,
    file_crop,
    find_images,
    images_below,
    prepare,
    read_image,
    read_rgb,
)
from cnnviz.core.data.rasters import read_raster
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.zoo.published import of_torchvision

SMALL = Preprocess(resize=16, crop=(14, 14))


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colours(path: Path) -> np.ndarray:
    return np.asarray(read_rgb(path))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_every_format_decodes_to_the_same_flat_colour(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"flat.{suffix}"
    Image.new("RGB", (9, 7), (200, 100, 50)).save(path)
    image = read_rgb(path)
    assert (image.mode, image.size) == ("RGB", (9, 7))
    assert np.abs(np.asarray(image).astype(int) - (200, 100, 50)).max() <= 3


def test_lossless_formats_keep_every_pixel(tmp_path: Path) -> None:
    pixels = noise(11, 13)
    for suffix in ("png", "bmp", "tiff"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
        assert np.array_equal(colours(tmp_path / f"a.{suffix}"), pixels)


def test_gif_shows_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (5, 5), (255, 0, 0)), Image.new("RGB", (5, 5), (0, 0, 255))
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    assert tuple(colours(tmp_path / "two.gif")[2, 2]) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_shows_the_picture_upright(tmp_path: Path, orientation: int) -> None:
    upright = noise(6, 10)
    # What each orientation means, by its definition: where the file's row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(colours(tmp_path / "turned.png"), upright)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(wide).save(tmp_path / f"wide.{suffix}")
        assert colours(tmp_path / f"wide.{suffix}")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_float_images_between_zero_and_one_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "f.tiff")
    assert colours(tmp_path / "f.tiff")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [2.0, -0.5, math.nan])
def test_float_images_outside_zero_to_one_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.array([[0.0, value]], dtype=np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(CnnvizError, match=r"f\.tiff' cannot be decoded: its values run from"):
        read_rgb(tmp_path / "f.tiff")


def test_grey_palette_bilevel_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (3, 3), 77).save(tmp_path / "grey.png")
    assert tuple(colours(tmp_path / "grey.png")[0, 0]) == (77, 77, 77)
    palette = Image.new("P", (3, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert tuple(colours(tmp_path / "palette.png")[0, 0]) == (10, 20, 30)
    Image.new("1", (3, 3), 1).save(tmp_path / "bilevel.png")
    assert tuple(colours(tmp_path / "bilevel.png")[0, 0]) == (255, 255, 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert tuple(colours(tmp_path / "cmyk.tiff")[0, 0]) == (255, 0, 0)


def test_alpha_lies_over_mid_grey(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 0] = 255
    pixels[0, :, 3] = (0, 128, 255)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    got = colours(tmp_path / "alpha.png")[0].astype(int)
    for position, alpha in enumerate((0, 128, 255)):
        expected = [255 * alpha / 255 + 128 * (1 - alpha / 255), *[128 * (1 - alpha / 255)] * 2]
        assert np.abs(got[position] - expected).max() <= 1


def test_transparent_palette_colour_and_grey_alpha_lie_over_mid_grey(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    assert colours(tmp_path / "p.png")[0].tolist() == [[128, 128, 128], [10, 20, 30]]
    Image.fromarray(np.array([[[9, 0], [9, 255]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert colours(tmp_path / "la.png")[0].tolist() == [[128, 128, 128], [9, 9, 9]]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert colours(tmp_path / "rgb.png")[0, 0].tolist() == [128, 128, 128]


def test_one_pixel_image_fills_the_crop(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 200, 30)).save(tmp_path / "one.png")
    image = read_image(tmp_path / "one.png", SMALL)
    assert image.pixels.shape == (3, 14, 14)
    levels = (image.pixels * 255).round()
    assert levels.amin((1, 2)).tolist() == levels.amax((1, 2)).tolist() == [10, 200, 30]


def test_text_file_named_jpg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture at all")
    with pytest.raises(CnnvizError, match=r"notes\.jpg' is not an image"):
        read_rgb(tmp_path / "notes.jpg")


def test_empty_missing_and_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(CnnvizError, match=r"empty\.png' is not an image"):
        read_rgb(tmp_path / "empty.png")
    with pytest.raises(CnnvizError, match=r"no file '.*gone\.png'"):
        read_rgb(tmp_path / "gone.png")
    with pytest.raises(CnnvizError, match="is a folder, not a file"):
        read_rgb(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(noise(64, 64)).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CnnvizError, match=rf"cut\.{suffix}' (cannot be decoded|is not an image)"):
        read_rgb(cut)


@pytest.mark.parametrize("factor", [1.1, 3])
def test_bomb_is_refused_whether_pillow_warns_or_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10_000 / factor))
    with pytest.raises(CnnvizError, match=r"bomb\.png' has more pixels than Pillow's safety limit"):
        read_rgb(tmp_path / "bomb.png")


@pytest.mark.parametrize("file_size", [(48, 72), (40, 90), (90, 40), (16, 24), (7, 7)])
def test_a_pair_is_covered_as_tightly_as_the_proportions_allow(file_size: tuple[int, int]) -> None:
    rows, columns = file_size
    ramp = np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)
    working = prepare(Image.fromarray(ramp).convert("RGB"), Preprocess((32, 48), (32, 48)), "x")
    assert working.pixels.shape == (3, 32, 48)
    top, left, bottom, right = working.box_original
    # One side is used whole; of the other the centre, with the proportions of the file kept.
    assert min(top, left, rows - bottom, columns - right) >= 0
    assert bottom - top == pytest.approx(rows) or right - left == pytest.approx(columns)
    assert (bottom - top) / (right - left) == pytest.approx(32 / 48, rel=0.05)
    assert top + bottom == pytest.approx(rows, abs=rows / 32)
    assert left + right == pytest.approx(columns, abs=columns / 48)


def test_image_too_elongated_to_resize_is_refused() -> None:
    thin = Image.new("RGB", (20_000, 1))
    with pytest.raises(CnnvizError, match="'thin' is 20000x1: too elongated"):
        prepare(thin, Preprocess(256, (224, 224)), "thin")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for suffix in ("jpg", "png", "gif", "tiff", "bmp", "webp"):
        Image.fromarray(noise(24, 24)).save(tmp_path / f"a.{suffix}")
        whole = bytearray((tmp_path / f"a.{suffix}").read_bytes())
        for _ in range(60):
            broken = bytearray(whole)
            for place in generator.integers(0, min(len(whole), 200), 4):
                broken[place] = generator.integers(256)
            path.write_bytes(broken)
            try:
                assert read_rgb(path).mode == "RGB"
            except CnnvizError as error:
                assert "damaged" in str(error)  # noqa: PT017


def test_file_is_closed_after_reading(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("open files are not listed on this system")
    read_rgb(tmp_path / "a.png")
    held = [str(link.readlink()) for link in folder.iterdir() if link.is_symlink()]
    assert str(tmp_path / "a.png") not in held


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (100, 150), (256, 256)])
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("resnet50", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet50", ResNet50_Weights.IMAGENET1K_V2),
        ("efficientnet_b0", EfficientNet_B0_Weights.IMAGENET1K_V1),
    ],
)
def test_preprocessing_equals_torchvisions_own_transform(
    name: str, entry: ResNet50_Weights, height: int, width: int
) -> None:
    image = Image.fromarray(noise(height, width))
    preprocess = of_torchvision(name)[0][entry.name].preprocess
    ours = preprocess.normalise(prepare(image, preprocess, "noise").pixels)
    assert (ours - entry.transforms()(image)).abs().max() <= 1e-6


@pytest.mark.parametrize(("height", "width"), [(9, 30), (30, 9), (9, 8), (12, 12), (31, 30)])
def test_crop_equals_torchvisions_where_the_image_is_smaller_too(height: int, width: int) -> None:
    image = Image.fromarray(noise(height, width))
    ours = prepare(image, Preprocess(None, (12, 12)), "noise")
    theirs = functional.to_dtype(
        functional.pil_to_tensor(functional.center_crop(image, [12, 12])), torch.float32, scale=True
    )
    assert (ours.pixels - theirs).abs().max() <= 1e-7
    top, left, bottom, right = (round(side) for side in ours.box_original)
    assert (bottom - top, right - left) == (12, 12)
    inside = np.asarray(image)[max(top, 0) : bottom, max(left, 0) : right]
    found = ours.pixels[:, max(-top, 0) :, max(-left, 0) :][:, : inside.shape[0], : inside.shape[1]]
    assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), inside)


def test_crop_box_in_the_file_is_where_the_pixels_came_from(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:100, 0:160]
    ramp = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    image = prepare(Image.fromarray(ramp), Preprocess(50, (40, 40)), "ramp")
    top, left, bottom, right = image.box_original
    assert image.box_original == (10, 40, 90, 120)
    assert image.original_size == (100, 160)
    # A ramp's mean over the crop is the centre of the box it was cut from.
    assert float(image.pixels[0].mean() * 255) == pytest.approx((top + bottom) / 2 - 0.5, abs=0.75)
    assert float(image.pixels[1].mean() * 255) == pytest.approx((left + right) / 2 - 0.5, abs=0.75)


def test_working_box_maps_to_the_files_pixels_and_is_clipped() -> None:
    image = prepare(Image.new("RGB", (160, 100)), Preprocess(50, (40, 40)), "black")
    assert image.to_original((0, 0, 40, 40)) == (10, 40, 90, 120)
    assert image.to_original((1, 2, 3.4, 5)) == (12, 44, 17, 50)
    assert image.to_original((-100, -100, 100, 100)) == (0, 0, 100, 160)


def test_find_images_lists_folders_sorted_and_files_as_they_are(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.webp", ".hidden.png", ".git/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [str(p.relative_to(tmp_path)) for p in find_images([tmp_path])]
    assert names == ["a.jpg", "b.PNG", "sub/c.webp"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_find_images_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file or folder '.*gone'"):
        find_images([tmp_path / "gone"])
    with pytest.raises(UsageError, match=r"the folder '.*' holds no image \(\.jpg"):
        find_images([tmp_path])
    with pytest.raises(UsageError, match="no image was named"):
        find_images([])


def test_the_files_own_pixels_of_a_crop_show_what_the_working_image_shows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    Image.fromarray(blocks).save(tmp_path / "blocks.png")
    image = read_image(tmp_path / "blocks.png", Preprocess(12, (12, 12)))
    crop = file_crop(image)
    assert crop is not None
    assert np.array_equal(crop, blocks[:, 20:140])
    coarse = crop.reshape(12, 10, 12, 10, 3).mean((1, 3)) / 255
    assert np.abs(coarse - image.pixels.numpy().transpose(1, 2, 0)).max() < 0.25
    assert file_crop(image, longest=60).shape == (60, 60, 3)


def test_a_file_with_no_more_pixels_than_the_working_image_has_no_crop(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "small.png")
    for size in (10, 24):
        assert file_crop(read_image(tmp_path / "small.png", Preprocess(size, (size, size)))) is None
    assert file_crop(read_image(tmp_path / "small.png", Preprocess(4, (12, 12)))) is None


def test_linked_folders_are_read_once_and_folders_left_out_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for place in ("elsewhere/a.png", "data/cat/b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / place)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    found = images_below(tmp_path / "data")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "data/cat/b.png",
        "data/dog/a.png",
    ]
    assert not caplog.text
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    assert images_below(tmp_path / "data") == found
    assert "up (read already by another name)" in caplog.text
    caplog.clear()
    scan = os.scandir

    def closed(place: str) -> Any:
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)  # root may read anything
    assert images_below(tmp_path / "data") == found[:1]
    assert "dog (Permission denied)" in caplog.text


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
(%pipe%touch mark) (w) file
showpage
%%EOF
"""
FITS = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80)
PSD = b"8BPS\0\1" + bytes(6) + b"\0\3" + b"\0\0\0\x14" * 2 + b"\0\x08\0\3" + bytes(64)
WMF = b"\xd7\xcd\xc6\x9a" + bytes(100)


@pytest.mark.parametrize("content", [EPS, FITS, PSD, WMF], ids=["eps", "fits", "psd", "wmf"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".eps"])
def test_only_decoders_of_pictures_are_called(
    content: bytes, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(CnnvizError, match="is not an image that can be read"):
        read_rgb(path)
    with pytest.raises(CnnvizError, match=re.escape(str(path))):
        read_raster(path, replace(SMALL, mean=(0.5,), std=(0.5,)))
    assert started == []
