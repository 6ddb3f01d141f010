"""Networks for image classification in Hugging Face's format: a folder, or an id of the hub.

The library builds the network from its configuration; code that comes with a network is never run
(`trust_remote_code` stays off), and pickled weights are read by torch's restricted unpickler.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.models.measured import SIDES, measured
from cnnviz.core.models.preprocess import Preprocess, plain
from cnnviz.core.models.published import ANOTHER_FILE, Architecture, Published, fetched

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

    preprocess, notes = _preprocess(transformers, where, name, config)
    labels = _labels(config)
    entry = Published(PRETRAINED, "", "", Path(where), preprocess, labels, network, notes)
    return Architecture(name, make, True, {PRETRAINED: entry}, PRETRAINED)


def _labels(config: Any) -> tuple[str, ...]:
    """Class names; none where the configuration has only numbers for them."""
    named = {int(key): str(value) for key, value in (config.id2label or {}).items()}
    labels = tuple(named.get(k, str(k)) for k in range(config.num_labels))
    return () if all(label == f"LABEL_{k}" for k, label in enumerate(labels)) else labels


def _preprocess(
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
