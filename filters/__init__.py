"""What the filters of a network are: kernels, feature maps, strongest patches, ablation."""

from typing import TYPE_CHECKING

from cnnviz.core.lazy import lazily

if TYPE_CHECKING:
    from cnnviz.filters.ablation.ablation import ablate
    from cnnviz.filters.ablation.options import AblationSpec, Mode
    from cnnviz.filters.ablation.results import AblationResult
    from cnnviz.filters.activations.maps import Activations, feature_maps
    from cnnviz.filters.kernels.weights import KernelStats, kernel_stats
    from cnnviz.filters.layers.inventory import Inventory, take_inventory
    from cnnviz.filters.patches.choices import Crop, MaxPatchesSpec, Ranking
    from cnnviz.filters.patches.max_patches import MaxPatches, max_patches
else:
    __getattr__ = lazily(
        __name__,
        {
            "ablation.ablation": ("ablate",),
            "ablation.options": ("AblationSpec", "Mode"),
            "ablation.results": ("AblationResult",),
            "activations.maps": ("Activations", "feature_maps"),
            "kernels.weights": ("KernelStats", "kernel_stats"),
            "layers.inventory": ("Inventory", "take_inventory"),
            "patches.choices": ("Crop", "MaxPatchesSpec", "Ranking"),
            "patches.max_patches": ("MaxPatches", "max_patches"),
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
