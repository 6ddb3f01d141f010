"""Ready-made weights: what their publisher says about them, and their place in torch's cache."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.models.preprocess import Preprocess

DOWNLOAD_TIMEOUT_SECONDS = 30


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
    """

    name: str
    file_name: str
    url: str
    folder: Path
    preprocess: Preprocess
    labels: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the file is, once it is on disk."""
        return self.folder / self.file_name


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
