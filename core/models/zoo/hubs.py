"""Networks by the names of timm and Hugging Face's transformers, with their preprocessing measured.

Each library describes its transforms differently, and changes that with versions. What counts is
the result. So two plain images, and one of noise, are transformed: the plain ones give mean and
deviation, and the noise is compared with the results of our ways to resize it.

Code that comes with a network is never run (`trust_remote_code` stays off), and pickled weights are
read by torch's restricted unpickler.

Shapes: C channels, H W rows and columns.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, nearest, one_line
from cnnviz.core.extras import required
from cnnviz.core.models.files.kinds import first_few
from cnnviz.core.models.fitting import remove_head, untrained_head
from cnnviz.core.models.preprocess import Assumed, Preprocess, both, plain_for
from cnnviz.core.models.zoo.detectors import with_query_boxes
from cnnviz.core.models.zoo.published import ANOTHER_FILE, Architecture, Published, fetched
from cnnviz.core.models.zoo.towers import OpenClipTower, as_tower

PRETRAINED, OPEN_CLIP = "pretrained", "open_clip:"
_OPEN_CLIP_STEPS = ("mean", "std", "interpolation", "resize_mode")
SIDES = (320, 240)
"""Columns and rows of the test images; neither equals a usual crop."""
MAX_LABELS = 1_000_000
MAX_LAYERS, MAX_SIDE = 10_000, 8_192
"""Of each number of layers in a configuration; pixels of the images that a processor makes."""
_LAYERS = re.compile("layers|depth|blocks|stages|repeats")
IMPLEMENTATIONS = (None, "eager", "sdpa")
"""Of attention and experts, those whose code is in torch and transformers."""
HEADS = {
    "single_label_classification": HeadChoice.SOFTMAX,
    "multi_label_classification": HeadChoice.SIGMOID,
    "regression": HeadChoice.NONE,
}
"""What transformers' `problem_type` says about the outputs."""
MODES = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
ALIKE = 2 / 255
"""Mean difference of pixels up to which two ways to resize are the same: they round differently."""

Transform = Callable[[Image.Image], Tensor]
"""An RGB image to normalised pixels (C, H, W)."""


def timm_architecture(name: str) -> Architecture:
    """The architecture `timm:NAME` or `timm:NAME.TAG`, by timm's names of networks and weights."""
    timm = required("timm", f"--model {name}", "timm")
    base, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(base):
        near = ", ".join(f"timm:{match}" for match in nearest(base, timm.list_models()))
        raise UsageError(f"no model '{name}'; the nearest are {near}")
    configs = {
        full.partition(".")[2] or "DEFAULT": config
        for full, config in timm.models.get_arch_pretrained_cfgs(base).items()
        if config.url or config.hf_hub_id or config.file
    }
    if tag and tag not in configs:
        there = ", ".join(configs) or "none"
        raise UsageError(f"no weights '{tag}' for timm:{base}; there are {there}")
    chosen = tag or next(iter(configs), None)
    order = sorted(configs, key=lambda key: key != chosen)

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        return _timm_network(
            timm, name, f"{base}.{tag}" if tag else base, size, num_classes=classes
        )

    published = {key: _timm_weights(timm, base, key, configs[key]) for key in order}
    return Architecture(name, make, True, published, chosen, names_weights=bool(tag))


def _timm_network(
    timm: Any, name: str, full: str, size: tuple[int, int], **options: Any
) -> nn.Module:
    """Build timm's network, for an input size if it takes one (transformers)."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        try:
            module: nn.Module = timm.create_model(full, img_size=size, **given)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            module = timm.create_model(full, **given)
    except (AssertionError, ValueError, TypeError) as error:
        raise UsageError(
            f"{name} cannot be built for --size {size[0]}x{size[1]}: {one_line(error)}"
        ) from error
    return module


def _timm_weights(timm: Any, base: str, tag: str, config: Any) -> Published:
    name, values = f"timm:{base}", config.to_dict()
    data = timm.data.resolve_data_config(pretrained_cfg=values)
    preprocess, notes = _timm_preprocess(timm, name, tuple(data.items()))
    subset = timm.data.infer_imagenet_subset(values)
    labels: tuple[str, ...] = ()
    if subset is not None:
        info = timm.data.ImageNetInfo(subset)
        labels = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    elif names := values.get("label_names"):
        described = values.get("label_descriptions") or {}
        labels = tuple(described.get(name, name) for name in names)
    full = base if tag == "DEFAULT" else f"{base}.{tag}"

    def network(size: tuple[int, int]) -> tuple[nn.Module, str]:
        with fetched(f"the weights {tag} of {name}", config.hf_hub_id or config.url, ANOTHER_FILE):
            return _timm_network(timm, name, full, size, pretrained=True), ""

    return Published(tag, preprocess, labels, network=network, notes=notes)


@cache
def _timm_preprocess(
    timm: Any, name: str, data: tuple[tuple[str, Any], ...]
) -> tuple[Preprocess, tuple[str, ...]]:
    """Cached, since many weights of a network share one transform."""
    given = dict(data)
    resize = (math.floor(min(given["input_size"][1:]) / given["crop_pct"]),)
    return measured(timm.data.create_transform(**given), resize, name)


def transformers_architecture(name: str) -> Architecture:
    """The architecture `hf:FOLDER` or `hf:ID`, as transformers' `from_pretrained` takes it."""
    transformers = required("transformers", f"--model {name}", "transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    source = name.removeprefix("hf:")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        adapter = (Path(source) / "adapter_config.json").is_file()
        remedy = ", only PEFT's adapter: save the network after merge_and_unload()"
        raise UsageError(
            f"--model {name}: there is no config.json in that folder{remedy if adapter else ''}"
        )
    kind = transformers.AutoModelForImageClassification
    with fetched(f"the configuration and weights of {name}", source, "name a folder that has them"):
        _check_labels(transformers.PretrainedConfig.get_config_dict(source)[0], name)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    _use_own_kernels(config)
    zero_shot = transformers.AutoModelForZeroShotImageClassification
    classifies = any("ForImageClassification" in listed for listed in config.architectures or ())
    towers = type(config) in zero_shot._model_mapping and not classifies
    detection = transformers.AutoModelForObjectDetection
    detects = type(config) in detection._model_mapping and any(
        "ForObjectDetection" in listed for listed in config.architectures or ()
    )
    kind = detection if detects else zero_shot if towers else kind
    if type(config) not in kind._model_mapping:
        raise CnnvizError(
            f"{name} is a network of the type '{config.model_type}', for which transformers has no "
            "image classifier or detector"
        )

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        options = dict(config.to_dict())
        if classes is not None:
            options.update(id2label={k: str(k) for k in range(classes)}, label2id=None)
        if isinstance(options.get("image_size"), int) and size[0] == size[1]:
            options["image_size"] = size[0]
        options.pop("num_labels", None)
        try:
            module: nn.Module = kind.from_config(
                _use_own_kernels(type(config)(**options)), trust_remote_code=False
            )
        except USER_CODE_ERRORS as error:  # of the library, and of the file's content
            raise CnnvizError(f"{name} cannot be built: {one_line(error)}") from error
        if detects:
            return with_query_boxes(module)
        return as_tower(module, source) if towers else module

    def network(_size: tuple[int, int]) -> tuple[nn.Module, str]:
        with fetched(f"the weights of {name}", source, ANOTHER_FILE):
            module, info = kind.from_pretrained(
                source, config=config, trust_remote_code=False, output_loading_info=True
            )
        if towers and not info["missing_keys"]:
            return as_tower(module, source), ""
        headless = _without_untrained(module, info, name)
        return with_query_boxes(module) if detects and not headless else module, headless

    preprocess, notes, assumed = _transformers_preprocess(
        transformers, source, name, config, whole=detects
    )
    entry = Published(
        PRETRAINED,
        preprocess,
        () if towers else _transformers_labels(config),
        network=network,
        notes=notes,
        head=HEADS.get(str(getattr(config, "problem_type", None)), HeadChoice.AUTO),
        assumed=assumed,
    )
    return Architecture(name, make, True, {PRETRAINED: entry}, PRETRAINED)


def open_clip_architecture(name: str) -> Architecture:
    """The architecture `open_clip:NAME` or `open_clip:NAME.TAG`, by open_clip's names."""
    open_clip = required("open_clip", f"--model {name}", "open_clip")
    base, _, tag = name.removeprefix(OPEN_CLIP).partition(".")
    content, tags = open_clip.get_model_config(base), open_clip.list_pretrained_tags_by_model(base)
    if content is None or (tag and tag not in tags):
        known = [f"{base}.{one}" for one in tags] if content else open_clip.list_models()
        near = ", ".join(f"{OPEN_CLIP}{match}" for match in nearest(name.partition(":")[2], known))
        raise UsageError(f"no model '{name}'; the nearest are {near or 'none'}")
    side = content["vision_cfg"].get("image_size", 224)

    def network(size: tuple[int, int], key: str | None) -> nn.Module:
        options: dict[str, Any] = {} if size == both(side) else {"force_image_size": size}
        options |= {"pretrained_text": False, "load_weights": key is not None}
        with fetched(f"the weights {key or 'of the text tower'} of {name}", base, ANOTHER_FILE):
            module = open_clip.create_model(base, pretrained=key, **options)
        return as_tower(module, base, OpenClipTower)

    def published(key: str | None) -> Published:
        def made(size: tuple[int, int]) -> tuple[nn.Module, str]:
            if key is None:
                raise UsageError(f"open_clip has no weights for {name}; {ANOTHER_FILE}")
            return network(size, key), ""

        given = open_clip.pretrained.get_pretrained_cfg(base, key) if key else {}
        chosen = {"size": side, **{k: given[k] for k in _OPEN_CLIP_STEPS if k in given}}
        preprocess, notes = _open_clip_preprocess(open_clip, name, tuple(chosen.items()))
        return Published(key or "none", preprocess, (), network=made, notes=notes)

    order = sorted(tags, key=lambda key: key != tag) or [None]
    entries = {key or "none": published(key) for key in order}
    return Architecture(
        name,
        lambda _classes, size: network(size, None),
        False,
        entries,
        next(iter(entries)),
        names_weights=bool(tag),
    )


@cache
def _open_clip_preprocess(
    open_clip: Any, name: str, steps: tuple[tuple[str, Any], ...]
) -> tuple[Preprocess, tuple[str, ...]]:
    """Cached, since many weights of a network share one transform."""
    config = open_clip.transform.PreprocessCfg(**dict(steps))
    transform = open_clip.transform.image_transform_v2(config, is_train=False)
    return measured(transform, [min(both(config.size))], name)


def _without_untrained(module: nn.Module, info: Mapping[str, Any], name: str) -> str:
    """Removes a classifier that was drawn at random, and says so; other such parts are an error."""
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if not missing:
        return ""
    unused = sorted(info["unexpected_keys"])
    beside = f"; not used: {first_few(unused)}" if unused else ""
    head = untrained_head(module, missing)
    if not head:
        raise CnnvizError(
            f"the weights of {name} lack {first_few(missing)}, which would be random{beside}"
        )
    remove_head(module, head)
    return f"the weights of {name} hold no classifier ({first_few(missing)}{beside})"


def _use_own_kernels(config: Any) -> Any:
    """The configuration without implementations of layers that transformers would download."""
    parts = [getattr(config, key, None) for key in getattr(config, "sub_configs", {})]
    for part in [config, *filter(None, parts)]:
        for key in ("_attn_implementation", "_experts_implementation"):
            if getattr(part, key, None) not in IMPLEMENTATIONS:
                setattr(part, key, None)
    return config


def _check_labels(content: Mapping[str, Any], name: str) -> None:
    """Refuses a number of classes for which transformers would fill the memory with names."""
    count = content.get("num_labels", 0)
    if not isinstance(count, int) or count > MAX_LABELS:
        raise CnnvizError(
            f"{name}: num_labels is {str(count)[:40]}; at most {MAX_LABELS:,} classes are read"
        )
    for key, number in _whole_numbers(content):
        if number > MAX_LAYERS and _LAYERS.search(key):
            raise CnnvizError(f"{name}: {key} is {number:.6g}; at most {MAX_LAYERS:,} are built")


def _whole_numbers(content: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in JSON data, with the key that it is below."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _whole_numbers(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _whole_numbers(value, key)
    elif isinstance(content, int):
        yield key, content


def _transformers_labels(config: Any) -> tuple[str, ...]:
    """Class names; none if the configuration has only numbers for them."""
    described = getattr(config, "label_descriptions", None) or {}  # timm's
    named = {int(k): str(described.get(v, v)) for k, v in (config.id2label or {}).items()}
    labels = tuple(named.get(k, str(k)) for k in range(config.num_labels))
    return () if all(label == f"LABEL_{k}" for k, label in enumerate(labels)) else labels


def _transformers_preprocess(
    transformers: Any, source: str, name: str, config: Any, *, whole: bool
) -> tuple[Preprocess, tuple[str, ...], Assumed | None]:
    """The preprocessing of its image processor; ImageNet's is assumed if it has none.

    `whole`: images of any proportions are fitted in, not cropped.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except USER_CODE_ERRORS as error:  # of the library, and of its dependencies
        sides = getattr(getattr(config, "vision_config", config), "image_size", None)
        size = sides if isinstance(sides, int) else None
        return plain_for(size), (), Assumed(f"{name} ({one_line(error)})")

    given = dict(getattr(processor, "size", None) or {})
    sides = [side for side in given.values() if isinstance(side, int)]
    crop = dict(getattr(processor, "crop_size", None) or {})
    if largest := [side for side in (*sides, *crop.values()) if side and side > MAX_SIDE]:
        raise CnnvizError(f"{name} prepares images of {largest[0]} pixels; at most {MAX_SIDE:,}")
    try:
        return *_processors_preprocess(processor, sides, name, whole=whole), None
    except USER_CODE_ERRORS as error:  # of the library, which does not check its files
        raise CnnvizError(
            f"{name}: its preprocessor_config.json cannot be used: {one_line(error)}"
        ) from error


def _processors_preprocess(
    processor: Any, sides: Sequence[int], name: str, *, whole: bool
) -> tuple[Preprocess, tuple[str, ...]]:
    """What a working image processor does; `sides` are those that it may resize images to."""

    def transform(image: Image.Image) -> Tensor:
        return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])

    crop = min(transform(Image.new("RGB", SIDES)).shape[-2:])
    timms = getattr(processor, "data_config", {}).get("crop_pct")  # a network of timm's
    shares = (getattr(processor, "crop_pct", None) or timms or 1, 224 / 256)
    return measured(
        transform, [*sides, *(int(crop / share) for share in shares)], name, whole=whole
    )


def measured(
    transform: Transform, resize: Iterable[int], name: str, *, whole: bool = False
) -> tuple[Preprocess, tuple[str, ...]]:
    """Find the preprocessing that does the same as a transform, or nearly so with a note.

    `resize` lists sides that it may resize images to before it crops, in addition to the crop's.
    `whole`: images of any proportions are fitted in; the others' central square is taken.
    """
    black, white = (
        transform(Image.new("RGB", SIDES, value)).double() for value in ("black", "white")
    )
    rows, columns = black.shape[-2:]
    low, high = (pixels[:, rows // 2, columns // 2] for pixels in (black, white))
    std = 1 / (high - low)
    mean = -low * std
    base = Preprocess(None, (rows, columns), _rounded(mean), _rounded(std))
    if transform(Image.new("RGB", SIDES[::-1])).shape != black.shape:
        side = min(rows, columns)
        if whole:
            return replace(base, resize=side, crop=(side, side)).fitted(), ()
        return replace(base, resize=side, crop=(side, side)), (
            f"{name} takes images of any proportions; here their central square is taken, "
            f"{side}x{side} (--size HxW for another)",
        )
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(SIDES, Image.Resampling.BICUBIC)
    expected = transform(image).double() * std.view(-1, 1, 1) + mean.view(-1, 1, 1)

    def distance(candidate: Preprocess) -> float:
        pixels = torch.from_numpy(np.array(candidate.cut(image))).movedim(2, 0) / 255
        return float((pixels - expected).abs().mean())

    best = min(_candidates(base, resize), key=distance)
    if (difference := distance(best)) <= ALIKE:
        return best, ()
    return best, (
        f"{name} prepares images in a way that is only approximated here: pixels differ by "
        f"{difference:.2g} of their range on average",
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
