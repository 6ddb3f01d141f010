"""What `--model` and `--weights` can name, and what of it is on disk already."""

from dataclasses import dataclass

from cnnviz.core.models.architectures import torchvision_names
from cnnviz.core.models.published import of_torchvision


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


def list_torchvision() -> list[Listed]:
    """All classification models of torchvision with all their weights, by name."""
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
