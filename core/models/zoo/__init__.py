"""From the name of a model to an architecture, which can build the network and knows its weights.

A name is "bundled", a torchvision classification, segmentation or detection model (`published`), a
model of timm or Hugging Face (`hubs`) or ultralytics (`detectors`), or a factory of the user's
(`factories`).
"""

from torch import nn

from cnnviz.core.errors import UsageError, nearest
from cnnviz.core.models import bundled
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.zoo.detectors import YOLO, yolo_architecture
from cnnviz.core.models.zoo.factories import factory_architecture
from cnnviz.core.models.zoo.hubs import (
    OPEN_CLIP,
    open_clip_architecture,
    timm_architecture,
    transformers_architecture,
)
from cnnviz.core.models.zoo.published import (
    Architecture,
    Published,
    torchvision_architecture,
    torchvision_names,
)

PREFIXES = {
    "timm:": timm_architecture,
    "hf:": transformers_architecture,
    OPEN_CLIP: open_clip_architecture,
    YOLO: yolo_architecture,
}
"""Names of networks whose code is a library's, by their beginning."""


def find_architecture(name: str) -> Architecture:
    """Return the architecture of that name; a UsageError offers the nearest names."""
    if name == "bundled":
        return _bundled()
    for prefix, architecture in PREFIXES.items():
        if name.startswith(prefix):
            return architecture(name)
    if name.endswith(".py"):
        raise UsageError(f"'{name}' is a file; name the factory in it: --model {name}:FACTORY")
    if ":" in name:
        return factory_architecture(name)
    known = torchvision_names()
    if name.lower() in known:
        return torchvision_architecture(name.lower())
    near = ", ".join(nearest(name, ["bundled", *known]))
    raise UsageError(
        f"no model '{name}'; the nearest are {near} (cnnviz models lists all; your network is "
        "named FILE.py:FACTORY)"
    )


def _bundled() -> Architecture:
    card = bundled.read_card()
    preprocess = Preprocess(card.size, (card.size, card.size), card.mean, card.std)
    entry = Published("CIFAR10", preprocess, card.labels, bundled.WEIGHTS)

    def make(classes: int | None, _size: tuple[int, int]) -> nn.Module:
        return bundled.CifarNet(len(card.labels) if classes is None else classes)

    return Architecture("bundled", make, True, {entry.name: entry}, entry.name)
