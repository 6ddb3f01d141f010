"""Networks, models and working images that several test files use."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.choices import Precision
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.models.load import Model
from cnnviz.core.models.preprocess import Preprocess


def model_of(
    module: nn.Module,
    size: tuple[int, int],
    labels: Sequence[str],
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    resize: int | None = None,
    **changes: Any,
) -> Model:
    """A model on the processor that takes pictures of that size as they are."""

    def each(value: float | Sequence[float]) -> tuple[float, ...]:
        return (value,) * 3 if isinstance(value, float) else tuple(value)

    fields: dict[str, Any] = {
        "module": module.eval(),
        "name": "net",
        "preprocess": Preprocess(resize, size, each(mean), each(std)),
        "labels": tuple(labels),
        "input_size": size,
        "weights_sha256": "0" * 64,
        "device": torch.device("cpu"),
        "precision": Precision.FP32,
    }
    return Model(**(fields | changes))


def image_of(pixels_CHW: Tensor, path: str = "picture.png") -> WorkingImage:
    """Pixels as the working image of a file of the same size."""
    height, width = map(int, pixels_CHW.shape[1:])
    box = (0.0, 0.0, float(height), float(width))
    return WorkingImage(path, pixels_CHW, box, (height, width))


def noise(size: tuple[int, int], seed: int = 2, path: str = "random.png") -> WorkingImage:
    """A picture of independent, uniform pixels."""
    return image_of(torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)), path)


def randomised(module: nn.Module) -> nn.Module:
    """Norms as after training, so that no layer's signal dies on the way."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.weight, 0.8, 1.6, generator=generator)
            nn.init.normal_(layer.bias, 0, 0.2, generator=generator)
    return module.eval()
