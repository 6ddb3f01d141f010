"""Networks by timm's names, with timm's own weights, preprocessing and class names."""

import math
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from cnnviz.core.errors import UsageError, nearest, one_line
from cnnviz.core.extras import required
from cnnviz.core.models.measured import measured
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.published import ANOTHER_FILE, Architecture, Published, fetched


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

    published = {key: _published(f"timm:{base}", base, key, tagged[key]) for key in order}
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


def _published(name: str, base: str, tag: str, config: Any) -> Published:
    timm = required("timm", name, "timm")
    values = config.to_dict()
    data = timm.data.resolve_data_config(pretrained_cfg=values)
    preprocess, note = _preprocess(name, tuple(data.items()))
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
def _preprocess(name: str, data: tuple[tuple[str, Any], ...]) -> tuple[Preprocess, str]:
    """Many weights of a network share one transform."""
    timm = required("timm", name, "timm")
    given = dict(data)
    resize = (math.floor(min(given["input_size"][1:]) / given["crop_pct"]),)
    return measured(timm.data.create_transform(**given), resize, name)
