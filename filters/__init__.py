"""What the filters of a network are: kernels, feature maps, strongest patches, ablation."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.filters.ablation.ablation import ablate
    from cnnviz.filters.ablation.options import AblationSpec, Mode
    from cnnviz.filters.ablation.results import AblationResult
    from cnnviz.filters.activations.maps import feature_maps
    from cnnviz.filters.activations.results import Activations
    from cnnviz.filters.kernels.results import KernelStats
    from cnnviz.filters.kernels.weights import kernel_stats
    from cnnviz.filters.layers.inventory import take_inventory
    from cnnviz.filters.layers.results import Inventory
    from cnnviz.filters.patches.max_patches import max_patches
    from cnnviz.filters.patches.options import Crop, MaxPatchesSpec, Ranking
    from cnnviz.filters.patches.results import MaxPatches
else:
    __getattr__ = lazily(
        __name__,
        {
            "ablation.ablation": ("ablate",),
            "ablation.options": ("AblationSpec", "Mode"),
            "ablation.results": ("AblationResult",),
            "activations.maps": ("feature_maps",),
            "activations.results": ("Activations",),
            "kernels.results": ("KernelStats",),
            "kernels.weights": ("kernel_stats",),
            "layers.inventory": ("take_inventory",),
            "layers.results": ("Inventory",),
            "patches.options": ("Crop", "MaxPatchesSpec", "Ranking"),
            "patches.max_patches": ("max_patches",),
            "patches.results": ("MaxPatches",),
        },
    )

__all__ = [
    "AblationResult",
    "AblationSpec",
    "Activations",
    "Crop",
    "Inventory",
    "KernelStats",
    "MaxPatches",
    "MaxPatchesSpec",
    "Mode",
    "Ranking",
    "ablate",
    "feature_maps",
    "kernel_stats",
    "max_patches",
    "take_inventory",
]
