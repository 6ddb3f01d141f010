"""Somebody else's transform of pictures, measured: resize, crop, mean and std from what it does.

Libraries describe their transforms each in its own words, which change with versions. What counts
is what comes out, so two plain pictures, and one of noise, are sent through: the plain ones give
mean and deviation, the noise is compared with what our own resizing makes of it.

Shapes: C channels, H W rows and columns.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, nearest, one_line
from cnnviz.core.extras import required
from cnnviz.core.models.preprocess import Preprocess, plain
from cnnviz.core.models.zoo.published import ANOTHER_FILE, Architecture, Published, fetched


def timm_architecture(name: str) -> Architecture:
    """`timm:NAME` or `timm:NAME.TAG`, as timm itself names networks and weights.

    Raises:
        UsageError: timm is not installed, or has no such network or weights.
    """
    timm = required("timm", f"--model {name}", "timm")
    base, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(base):
        near = ", ".join(f"timm:{found}" for found in nearest(base, timm.list_models()))
        raise UsageError(f"no model '{name}'; the nearest are {near}")
    configs = timm.models.get_arch_pretrained_cfgs(base)
    known = {full.partition(".")[2]: config for full, config in configs.items()}
    tagged = {key or "DEFAULT": config for key, config in known.items() if _has_weights(config)}
    if tag and tag not in tagged:
        there = ", ".join(tagged) or "none"
        raise UsageError(f"no weights '{tag}' for timm:{base}; there are {there}")
    chosen = tag or next(iter(tagged), None)
    order = sorted(tagged, key=lambda key: key != chosen)

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        return _made(name, f"{base}.{tag}" if tag else base, size, num_classes=classes)

    published = {key: _timm_published(f"timm:{base}", base, key, tagged[key]) for key in order}
    return Architecture(name, make, True, published, chosen)


def _has_weights(config: Any) -> bool:
    return bool(config.url or config.hf_hub_id or config.file)


def _made(name: str, full: str, size: tuple[int, int], **options: Any) -> nn.Module:
    """Timm's network, for an input size where it asks for one (transformers)."""
    timm = required("timm", name, "timm")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        try:
            module: nn.Module = timm.create_model(full, img_size=size, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            module = timm.create_model(full, **given)
    except (AssertionError, ValueError, TypeError) as error:
        shown = f"{size[0]}x{size[1]}"
        raise UsageError(f"{name} cannot be built for --size {shown}: {one_line(error)}") from error
    return module


def _timm_published(name: str, base: str, tag: str, config: Any) -> Published:
    timm = required("timm", name, "timm")
    values = config.to_dict()
    data = timm.data.resolve_data_config(pretrained_cfg=values)
    preprocess, note = _timm_preprocess(name, tuple(data.items()))
    subset = timm.data.infer_imagenet_subset(values)
    labels: tuple[str, ...] = ()
    if subset is not None:
        info = timm.data.ImageNetInfo(subset)
        labels = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    full = base if tag == "DEFAULT" else f"{base}.{tag}"

    def network(size: tuple[int, int]) -> nn.Module:
        with fetched(f"the weights {tag} of {name}", config.hf_hub_id or config.url, ANOTHER_FILE):
            return _made(name, full, size, pretrained=True)

    return Published(tag, "", "", Path(), preprocess, labels, network, (note,) if note else ())


@cache
def _timm_preprocess(name: str, data: tuple[tuple[str, Any], ...]) -> tuple[Preprocess, str]:
    """Many weights of a network share one transform."""
    timm = required("timm", name, "timm")
    given = dict(data)
    resize = (math.floor(min(given["input_size"][1:]) / given["crop_pct"]),)
    return measured(timm.data.create_transform(**given), resize, name)


PRETRAINED = "pretrained"


def transformers_architecture(name: str) -> Architecture:
    """`hf:FOLDER` or `hf:ID`, as transformers' `from_pretrained` takes it.

    Raises:
        UsageError: transformers is not installed.
        CnnvizError: its configuration is not on disk and cannot be fetched, or is of no network for
            image classification.
    """
    transformers = required("transformers", f"--model {name}", "transformers")
    transformers.utils.logging.disable_progress_bar()
    where = name.removeprefix("hf:")
    folder = Path(where)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(f"--model {name}: there is no config.json in that folder")
    kind = transformers.AutoModelForImageClassification
    with fetched(f"the configuration and weights of {name}", where, "name a folder that has them"):
        config = transformers.AutoConfig.from_pretrained(where)
    if type(config) not in kind._model_mapping:
        raise CnnvizError(
            f"{name} is a network of the type '{config.model_type}', which transformers has no "
            "image classifier of"
        )

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        options = dict(config.to_dict())
        if classes is not None:
            options.update(id2label={k: str(k) for k in range(classes)}, label2id=None)
        if isinstance(options.get("image_size"), int) and size[0] == size[1]:
            options["image_size"] = size[0]
        options.pop("num_labels", None)
        try:
            module: nn.Module = kind.from_config(type(config)(**options))
        except USER_CODE_ERRORS as error:  # the library's own, and of whatever the file says
            raise CnnvizError(f"{name} cannot be built: {one_line(error)}") from error
        return module

    def network(_size: tuple[int, int]) -> nn.Module:
        with fetched(f"the weights of {name}", where, ANOTHER_FILE):
            module: nn.Module = kind.from_pretrained(where)
        return module

    preprocess, notes = _hf_preprocess(transformers, where, name, config)
    labels = _hf_labels(config)
    entry = Published(PRETRAINED, "", "", Path(where), preprocess, labels, network, notes)
    return Architecture(name, make, True, {PRETRAINED: entry}, PRETRAINED)


def _hf_labels(config: Any) -> tuple[str, ...]:
    """Class names; none where the configuration has only numbers for them."""
    named = {int(key): str(value) for key, value in (config.id2label or {}).items()}
    labels = tuple(named.get(k, str(k)) for k in range(config.num_labels))
    return () if all(label == f"LABEL_{k}" for k, label in enumerate(labels)) else labels


def _hf_preprocess(
    transformers: Any, where: str, name: str, config: Any
) -> tuple[Preprocess, tuple[str, ...]]:
    """What its image processor does; where it brings none, ImageNet's, with a line."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(where)
    except USER_CODE_ERRORS as error:  # the library's own, and its dependencies'
        size = config.image_size if isinstance(getattr(config, "image_size", None), int) else None
        return plain(size), (
            f"{name} says nothing of how to prepare pictures ({one_line(error)}); they are "
            "prepared as for ImageNet (--size, --mean, --std)",
        )

    def transform(picture: Image.Image) -> Tensor:
        found = processor(images=picture, return_tensors="pt")["pixel_values"]
        return torch.as_tensor(found[0])

    preprocess, note = measured(transform, _sides(processor, transform), name)
    return preprocess, (note,) if note else ()


def _sides(processor: Any, transform: Callable[[Image.Image], Tensor]) -> list[int]:
    """Sides that it may resize pictures to before it crops."""
    crop = min(transform(Image.new("RGB", SIDES)).shape[-2:])
    given = dict(processor.size or {}).values()
    shares = (getattr(processor, "crop_pct", None) or 1, 224 / 256)
    return [side for side in given if isinstance(side, int)] + [int(crop / s) for s in shares]


Transform = Callable[[Image.Image], Tensor]
"""An RGB picture to normalised pixels (C, H, W)."""

SIDES = (320, 240)
"""Columns and rows of the pictures sent through, of neither square."""
MODES = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
ALIKE = 2 / 255
"""Mean difference of pixels up to which two ways to resize are the same: they round differently."""


def measured(transform: Transform, resize: Iterable[int], name: str) -> tuple[Preprocess, str]:
    """The preprocessing that does what a transform does.

    Args:
        transform: it.
        resize: sides that it may resize pictures to before it crops, beside the crop's own.
        name: of the network, for the note.

    Returns:
        The preprocessing, and a line where it is not the same; empty where it is.
    """
    black, white = (
        transform(Image.new("RGB", SIDES, value)).double() for value in ("black", "white")
    )
    rows, columns = black.shape[-2:]
    low, high = (found[:, rows // 2, columns // 2] for found in (black, white))
    std = 1 / (high - low)
    mean = -low * std
    base = Preprocess(None, (rows, columns), _rounded(mean), _rounded(std))
    if transform(Image.new("RGB", SIDES[::-1])).shape != black.shape:
        side = min(rows, columns)
        return replace(base, resize=side, crop=(side, side)), (
            f"{name} takes pictures of any proportions; here their central square is taken, "
            f"{side}x{side} (--size HxW for another)"
        )
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(SIDES, Image.Resampling.BICUBIC)
    right = transform(picture).double() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)

    def distance(tried: Preprocess) -> float:
        pixels = torch.from_numpy(np.array(tried.cut(picture))).movedim(2, 0) / 255
        return float((pixels - right).abs().mean())

    best = min(_candidates(base, resize), key=distance)
    apart = distance(best)
    if apart <= ALIKE:
        return best, ""
    return best, (
        f"{name} prepares pictures in a way that is not followed here exactly: pixels "
        f"differ by {apart:.2g} of their range in the mean"
    )


def _rounded(values_C: Tensor) -> tuple[float, ...]:
    """To what people write: 0.485, 0.4815."""
    return tuple(round(value, 6) for value in values_C.tolist())


def _candidates(base: Preprocess, resize: Iterable[int]) -> Iterator[Preprocess]:
    rows, columns = base.crop
    for side in dict.fromkeys((min(base.crop), *resize)):
        share = side / min(base.crop)
        size = (round(rows * share), round(columns * share))
        for squash in (False, True):
            for mode in MODES:
                yield replace(base, resize=size, squash=squash, interpolation=mode)
    yield replace(base, resize=None)
