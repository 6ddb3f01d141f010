"""Architectures and their ready-made weights: what their publisher says, and how to get them."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, one_line
from cnnviz.core.extras import required
from cnnviz.core.models.preprocess import Preprocess

DOWNLOAD_TIMEOUT_SECONDS = 30
ANOTHER_FILE = "name a file with --checkpoint FILE, or random weights with --weights none"
_HUBS = ("huggingface_hub", "timm", "transformers")  # their own warnings stay out of ours


@dataclass(frozen=True)
class Published:
    """One set of ready-made weights, and what goes with it.

    Attributes:
        name: as torchvision calls it, for instance "IMAGENET1K_V1".
        file_name: the file in torch's cache.
        url: where to fetch it; empty for the bundled model.
        folder: where the file lies or will lie.
        preprocess: the transform it was measured with.
        labels: its class names; empty where it has none.
        network: the publisher's own way to the network with these weights, for an input size;
            None where a file is fetched.
        notes: what the user should know of the preprocessing.
    """

    name: str
    file_name: str
    url: str
    folder: Path
    preprocess: Preprocess
    labels: tuple[str, ...]
    network: Callable[[tuple[int, int]], nn.Module] | None = None
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the file is, once it is on disk."""
        return self.folder / self.file_name


@dataclass(frozen=True)
class Architecture:
    """A network that can be built, and what its publisher says of it.

    Attributes:
        name: as messages and summaries call it.
        make: (number of classes or None, input size) to a network with random weights.
        sets_classes: whether `make` heeds the number of classes.
        needs_classes: whether it must guess one where it is told none.
        published: ready-made weights by name, the first entry the customary one.
        default: the publisher's best entry; None where nothing is published.
        ignores: beginnings of names in a state dict that inference has no use for.
    """

    name: str
    make: Callable[[int | None, tuple[int, int]], nn.Module]
    sets_classes: bool
    published: dict[str, Published] = field(default_factory=dict)
    default: str | None = None
    ignores: tuple[str, ...] = ()
    needs_classes: bool = False


def cache_folder() -> Path:
    """Where torchvision keeps weights: TORCH_HOME and XDG_CACHE_HOME are heeded."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def of_torchvision(name: str) -> tuple[dict[str, Published], str | None]:
    """All weights of a torchvision model by name, and the name of its default entry."""
    from torchvision import models

    entries = models.get_model_weights(name)
    published = {entry.name: _of_entry(entry) for entry in entries}
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
    file_name = entry.url.rpartition("/")[2]
    labels = tuple(entry.meta["categories"] or ())
    return Published(entry.name, file_name, entry.url, cache_folder(), preprocess, labels)


def fetch(entry: Published, name: str) -> Path:
    """The file of these weights, downloaded into torch's cache where it is not there yet.

    Raises:
        CnnvizError: it is not on disk and cannot be fetched, or is not what its name promises.
    """
    if entry.path.is_file() or not entry.url:
        return entry.path
    prefix = torch.hub.HASH_REGEX.search(entry.file_name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        entry.folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            entry.url, str(entry.path), prefix.group(1) if prefix else None, progress=False
        )
    except (OSError, RuntimeError) as error:
        raise CnnvizError(
            f"the weights {entry.name} of {name} are not on disk and could not be fetched: "
            f"looked for {entry.file_name} in {entry.folder}; put the file there or name one "
            f"with --checkpoint FILE ({one_line(error)})"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return entry.path


@contextmanager
def fetched(what: str, hub_id: str, remedy: str) -> Iterator[None]:
    """Turns what a library's own download may raise into one line.

    Args:
        what: that is fetched.
        hub_id: where Hugging Face's hub has it, or a folder.
        remedy: what to do where it cannot be had.

    Raises:
        CnnvizError: it is not on disk and cannot be fetched, or cannot be read.
    """
    constants = required("huggingface_hub.constants", what, "timm")
    loggers = [logging.getLogger(library) for library in _HUBS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    except USER_CODE_ERRORS as error:  # of networks, of files, and the library's own
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
