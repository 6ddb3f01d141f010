"""From the name of a model to a network that still lacks its weights.

A name is "bundled", a torchvision classification or segmentation model, one of timm's or Hugging
Face's, or a factory of the user's. Each becomes an `Architecture`.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cnnviz.core.errors import UsageError, nearest
from cnnviz.core.models import bundled
from cnnviz.core.models.behaviour import settled
from cnnviz.core.models.bundled import CifarNet
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.zoo.factories import find_factory
from cnnviz.core.models.zoo.published import Architecture, Published, of_torchvision

# Heads that only help in training; the published weights were trained behind the transform.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True)
class Listed:
    """One set of ready-made weights of a torchvision model.

    Attributes:
        model: what `--model` takes.
        weights: what `--weights` takes.
        is_default: whether these are taken when nothing is said.
        size: side of the input in pixels.
        file: its name in torch's cache.
        on_disk: whether it is there.
    """

    model: str
    weights: str
    is_default: bool
    size: int
    file: str
    on_disk: bool


def torchvision_names() -> list[str]:
    """Every classification and segmentation model that torchvision can build, sorted."""
    from torchvision import models

    return sorted(models.list_models(module=models) + _segmentation_names())


def _segmentation_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models.segmentation))


def list_torchvision() -> list[Listed]:
    """All these models of torchvision with all their weights, by name."""
    listed = []
    for name in torchvision_names():
        published, default = of_torchvision(name)
        listed += [
            Listed(
                model=name,
                weights=entry.name,
                is_default=entry.name == default,
                size=entry.preprocess.crop[0],
                file=entry.file_name,
                on_disk=entry.path.is_file(),
            )
            for entry in published.values()
        ]
    return listed


def _torchvision(name: str) -> Architecture:
    from torchvision import models

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        options = dict(_OPTIONS.get(name, {}))
        if segments:
            options["weights_backbone"] = None
        if name.startswith("vit_"):
            options["image_size"] = size[0]
        elif name.startswith("maxvit"):
            options["input_size"] = size
        if classes is not None:
            options["num_classes"] = classes
        try:
            module: nn.Module = models.get_model(name, weights=None, **options)
        except (AssertionError, ValueError) as error:
            shown = f"{size[0]}x{size[1]}"
            raise UsageError(f"{name} cannot be built for --size {shown}: {error}") from error
        return module

    segments = name in _segmentation_names()
    published, default = of_torchvision(name)
    ignores = _AUXILIARY if segments or name in _OPTIONS else ()
    return Architecture(name, make, True, published, default, ignores)


def _user_factory(name: str) -> Architecture:
    factory = find_factory(name)

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        return settled(factory.build(classes), factory.name, size)

    sets_classes = factory.class_parameter is not None
    return Architecture(factory.name, make, sets_classes, needs_classes=factory.needs_classes)


def _bundled() -> Architecture:
    card = bundled.read_card()
    preprocess = Preprocess(card.size, (card.size, card.size), card.mean, card.std)
    file = bundled.WEIGHTS
    entry = Published("CIFAR10", file.name, "", file.parent, preprocess, card.labels)

    def make(classes: int | None, _size: tuple[int, int]) -> nn.Module:
        return CifarNet(len(card.labels) if classes is None else classes)

    return Architecture("bundled", make, True, {entry.name: entry}, entry.name)


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: there is none; the message offers the nearest names.
        CnnvizError: the bundled model is missing from the installation.
    """
    if name == "bundled":
        return _bundled()
    if name.startswith("timm:"):
        from cnnviz.core.models.zoo.hubs import timm_architecture

        return timm_architecture(name)
    if name.startswith("hf:"):
        from cnnviz.core.models.zoo.hubs import transformers_architecture

        return transformers_architecture(name)
    if name.endswith(".py"):
        raise UsageError(f"'{name}' is a file; name the factory in it: --model {name}:FACTORY")
    if ":" in name:
        return _user_factory(name)
    known = torchvision_names()
    if name.lower() in known:
        return _torchvision(name.lower())
    near = ", ".join(nearest(name, ["bundled", *known]))
    raise UsageError(
        f"no model '{name}'; the nearest are {near} (cnnviz models lists all; a network of your "
        "own is named FILE.py:FACTORY)"
    )
