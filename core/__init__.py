"""The basis of every analysis: models, images, layers, graphs, results, drawing."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.core.choices import Precision
    from cnnviz.core.data.datasets import ImageData, open_data
    from cnnviz.core.data.images import WorkingImage, read_image
    from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError
    from cnnviz.core.maps import agreement, rank_correlation
    from cnnviz.core.models.load import Model, load_model
    from cnnviz.core.output.options import Look
else:
    __getattr__ = lazily(
        __name__,
        {
            "choices": ("Precision",),
            "errors": ("CheckFailed", "CnnvizError", "UsageError"),
            "maps": ("agreement", "rank_correlation"),
            "models.load": ("Model", "load_model"),
            "data.datasets": ("ImageData", "open_data"),
            "data.images": ("WorkingImage", "read_image"),
            "output.options": ("Look",),
        },
    )

__all__ = [
    "CheckFailed",
    "CnnvizError",
    "ImageData",
    "Look",
    "Model",
    "Precision",
    "UsageError",
    "WorkingImage",
    "agreement",
    "load_model",
    "open_data",
    "rank_correlation",
    "read_image",
]
