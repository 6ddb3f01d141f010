"""Architectures and their ready-made weights: torchvision's, and how to fetch any publisher's."""

import hashlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import regular
from cnnviz.core.lazy import torchvision
from cnnviz.core.models.preprocess import Assumed, Preprocess, plain

DOWNLOAD_TIMEOUT_SECONDS = 30
CANDIDATES = 12  # models that a checkpoint without a name is compared with
ANOTHER_FILE = "name a file with --checkpoint FILE, or random weights with --weights none"
_HUBS = ("huggingface_hub", "timm", "transformers")  # their warnings are not shown
# Heads that only help in training; the published weights were trained behind the transform.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
_SIDES = {"320": 320, "ssd300": 300}
"""Shorter side of the images of some detectors, by their names; of the others 800."""
_WITHOUT_EPS = tuple(
    f"{name}_resnet50_fpn" for name in ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet")
)


@dataclass(frozen=True)
class Published:
    """One set of ready-made weights, and what belongs to it.

    Attributes:
        name: the publisher's name, for instance "IMAGENET1K_V1".
        preprocess: the transform it was measured with.
        labels: its class names; empty if it has none.
        file: its file in torch's cache; None if `network` loads it.
        url: where to fetch the file; empty for the bundled model.
        network: loads the network with these weights, for an input size, and says why it has no
            classifier (nothing if it has one).
        notes: what the user should know about the preprocessing.
        head: what the publisher says about the outputs.
        assumed: whose preprocessing it is, if the publisher defines none.
        eps: of the backbone's batch norms, if the weights were trained with another one.
    """

    name: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    file: Path | None = None
    url: str = ""
    network: Callable[[tuple[int, int]], tuple[nn.Module, str]] | None = None
    notes: tuple[str, ...] = ()
    head: HeadChoice = HeadChoice.AUTO
    assumed: Assumed | None = None
    eps: float | None = None

    def holds(self, file: Path) -> bool:
        """Whether a file is that of these weights: by its name, or by its hash in the name."""
        if self.file is None or self.file.name == file.name:
            return self.file is not None
        known = torch.hub.HASH_REGEX.search(self.file.name)
        return known is not None and _sha256(file).startswith(known.group(1))


@cache
def _sha256(file: Path) -> str:
    with regular(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, and what its publisher says about it.

    Attributes:
        name: its name in messages and summaries.
        make: (number of classes or None, input size) to a network with random weights.
        sets_classes: whether `make` uses the number of classes.
        published: ready-made weights by name, the usual ones first.
        default: the publisher's best weights; None if there are none.
        ignores: prefixes of names in a state dict that inference does not need.
        needs_classes: whether `make` has to guess a number of classes if it gets None.
        names_weights: whether the user named one set of the weights with the network.
        transforms_input: the entry for other weights, if the networks of the published ones
            transform their input first (`transform_input`), which is then turned off.
    """

    name: str
    make: Callable[[int | None, tuple[int, int]], nn.Module]
    sets_classes: bool
    published: dict[str, Published] = field(default_factory=dict)
    default: str | None = None
    ignores: tuple[str, ...] = ()
    needs_classes: bool = False
    names_weights: bool = False
    transforms_input: Callable[[Published], Published] | None = None

    def needed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a state dict that inference needs."""
        return {name: v for name, v in state.items() if not name.startswith(self.ignores)}


@dataclass(frozen=True)
class Weights:
    """One set of ready-made weights in the list of `cnnviz models`."""

    name: str
    default: bool
    size: int
    """Side of the input in pixels."""
    file: str
    on_disk: bool


@dataclass(frozen=True)
class Listed:
    """A model of torchvision in the list of `cnnviz models`."""

    model: str
    weights: tuple[Weights, ...]


def cache_folder() -> Path:
    """Torchvision's folder for weights, by TORCH_HOME and XDG_CACHE_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def torchvision_names() -> list[str]:
    """Every classification, segmentation and detection model of torchvision, sorted."""
    models = torchvision("models")
    below = _segmentation_names() + _detection_names()
    return sorted(models.list_models(module=models) + below)


def _segmentation_names() -> list[str]:
    models = torchvision("models")
    return list(models.list_models(module=models.segmentation))


def _detection_names() -> list[str]:
    models = torchvision("models")
    return list(models.list_models(module=models.detection))


def nearest_in_size(parameters: int, file: str) -> list[str]:
    """The models with the most similar number of parameters, first the one that a file is named by.

    Files of torchvision are named `resnet18-f37072fd.pth`.
    """
    models = torchvision("models")
    sizes = {
        name: entry.meta["num_params"]
        for name in models.list_models(module=models)
        for entry in list(models.get_model_weights(name))[:1]
    }
    named = max((n for n in sizes if file.lower().startswith(n)), key=len, default=None)
    order = sorted(sizes, key=lambda name: (name != named, abs(sizes[name] - parameters)))
    return order[:CANDIDATES]


def list_torchvision() -> list[Listed]:
    """All these models of torchvision with all their weights, by name."""
    listed = []
    for name in torchvision_names():
        published, default = of_torchvision(name)
        weights = [
            Weights(
                name=entry.name,
                default=entry.name == default,
                size=entry.preprocess.crop[0],
                file=entry.file.name,
                on_disk=entry.file.is_file(),
            )
            for entry in published.values()
            if entry.file is not None
        ]
        listed.append(Listed(name, tuple(weights)))
    return listed


def of_torchvision(name: str) -> tuple[dict[str, Published], str | None]:
    """All weights of a torchvision model by name, and the name of its default entry."""
    entries = torchvision("models").get_model_weights(name)
    boxes = name in _detection_names()
    published = {e.name: _of_detector(e, name) if boxes else _of_entry(e) for e in entries}
    return published, entries.DEFAULT.name if published else None


def _of_entry(entry: Any) -> Published:
    transform = entry.transforms()
    resize = transform.resize_size[0]
    preprocess = Preprocess(
        resize=resize,
        # Segmentation has no crop, but a working image has one size.
        crop=(getattr(transform, "crop_size", [resize])[0],) * 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    labels = tuple(entry.meta["categories"] or ())
    file = cache_folder() / entry.url.rpartition("/")[2]
    return Published(entry.name, preprocess, labels, file, entry.url)


def _of_detector(entry: Any, name: str) -> Published:
    """The preprocessing lies in the network, which takes over its size later (`boxes.py`)."""
    side = next((side for text, side in _SIDES.items() if text in name), 800)
    labels = tuple(entry.meta["categories"])
    file = cache_folder() / entry.url.rpartition("/")[2]
    eps = 0.0 if name in _WITHOUT_EPS and entry.name == "COCO_V1" else None
    return Published(entry.name, plain(side), labels, file, entry.url, eps=eps)


def torchvision_architecture(name: str) -> Architecture:
    """The architecture of one of `torchvision_names`."""
    models = torchvision("models")

    def make(classes: int | None, size: tuple[int, int]) -> nn.Module:
        options = dict(_OPTIONS.get(name, {}))
        if segments or detects:
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
            raise UsageError(
                f"{name} cannot be built for --size {size[0]}x{size[1]}: {error}"
            ) from error
        return module

    segments, detects = name in _segmentation_names(), name in _detection_names()
    published, default = of_torchvision(name)
    ignores = _AUXILIARY if segments or name in _OPTIONS else ()
    inner = _of_inner_network if name in _OPTIONS else None
    return Architecture(name, make, True, published, default, ignores, transforms_input=inner)


def _of_inner_network(entry: Published) -> Published:
    """The preprocessing after `transform_input`, which turns ImageNet's mean and std to 0.5."""
    halves = (0.5,) * 3
    return replace(entry, preprocess=replace(entry.preprocess, mean=halves, std=halves))


def fetch(entry: Published, name: str) -> Path:
    """Return the file of these weights, after downloading it into torch's cache if necessary."""
    file = entry.file
    assert file is not None  # noqa: S101 (entries have a file or a network)
    if file.is_file() or not entry.url:
        return file
    prefix = torch.hub.HASH_REGEX.search(file.name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            entry.url, str(file), prefix.group(1) if prefix else None, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise CnnvizError(
            f"the weights {entry.name} of {name} are not on disk and could not be fetched: "
            f"looked for {file.name} in {file.parent}; put the file there or name one "
            f"with --checkpoint FILE ({one_line(error)})"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return file


@contextmanager
def fetched(what: str, hub_id: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises while it fetches `what` from a hub or folder into one line."""
    constants = required("huggingface_hub.constants", what, "timm")
    loggers = [logging.getLogger(library) for library in _HUBS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except USER_CODE_ERRORS as error:  # of networks, of files, and of the library
        reason = one_line(error)
        if Path(hub_id).is_dir():
            raise CnnvizError(f"{what} cannot be read from {hub_id}: {reason}") from error
        raise CnnvizError(
            f"{what} are not on disk and could not be fetched: looked for {hub_id} in "
            f"{constants.HF_HUB_CACHE}; {remedy} ({reason})"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
