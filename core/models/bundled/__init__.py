"""The model that ships with cnnviz: its network, its training, its weights and its card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnviz.core.errors import CnnvizError

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "cifar10.safetensors"
CARD = FOLDER / "card.json"


@dataclass(frozen=True)
class Card:
    """What the bundled model was trained on and how well it does.

    Attributes:
        labels: class names in the order of the logits.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        size: side of the square input.
        text: the whole card as it stands in the file: data, recipe, accuracy, limits.
    """

    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    text: dict[str, Any]


def read_card() -> Card:
    """The card that ships beside the weights.

    Raises:
        CnnvizError: it is not there; the installation is incomplete.
    """
    try:
        text = json.loads(CARD.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CnnvizError(
            f"the bundled model is missing from this installation ({CARD} is not there); "
            "install cnnviz again, or train it with python -m cnnviz.core.models.bundled.train"
        ) from error
    return Card(
        tuple(text["labels"]), tuple(text["mean"]), tuple(text["std"]), int(text["size"]), text
    )
